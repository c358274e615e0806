"""What may go wrong in a step, in a person's words, with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fmcnet.config import Config
from fmcnet.errors import TrainingError
from fmcnet.training.checkpointing import checkpoints
from fmcnet.training.train_step import NotFinite


def not_finite(found: NotFinite, run: Path) -> TrainingError:
    """The error of a term that became NaN or infinite."""
    good = checkpoints(run)
    where = f"the last good checkpoint is {good[-1]}" if good else "there was no checkpoint yet"
    return TrainingError(
        f"step {found.step}: {', '.join(found.names)} became NaN or infinite; {where}. "
        "Train into a new --out with a lower training.lr, with training.clip, or training.precision=fp32."
    )


@contextmanager
def said_plainly(config: Config) -> Iterator[None]:
    """Around a step: errors that a person can do something about become `TrainingError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU's memory does not hold a step: {str(error).splitlines()[0]} Try training.recompute=true, "
            "training.accumulate=2 with half of data.identities, or smaller images (docs/guides/train.md)"
        ) from error
    except Exception as error:
        if config.training.compile and type(error).__module__.startswith(
            ("torch._dynamo", "torch._inductor")
        ):
            raise TrainingError(
                f"torch.compile failed ({str(error).strip().splitlines()[0]}): it needs a C++ compiler, on GPUs "
                "Triton; train with training.compile=false"
            ) from error
        raise
