"""Errors that a user can cause.

Every error a user can cause is an `FmcnetError`: its text says what was wrong, where, and what to do.
The command line prints that text without a traceback and ends with exit code 2.
"""

from __future__ import annotations

import enum
import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


class PrintedBy(enum.Enum):
    """Which processes of a job print an error that they raise: those in which this variable of torchrun is 0."""

    EACH = ""  # its error is its own
    ONE_PER_MACHINE = "LOCAL_RANK"  # the processes are not connected yet
    ONE = "RANK"  # all processes raise the same error


class FmcnetError(Exception):
    """A mistake in the input (data, configuration, checkpoint, arguments), not a bug in fmcnet.

    Attributes:
        printed_by: which processes of a job print it.
    """

    printed_by = PrintedBy.ONE_PER_MACHINE


class DataError(FmcnetError):
    """A dataset, table or image that cannot be used as it is."""


class ConfigError(FmcnetError):
    """A configuration with faults; the message lists all of them."""


class CheckpointError(FmcnetError):
    """Weights, a run folder or a model's file that is missing, damaged, or belongs to another model."""


class TrainingError(FmcnetError):
    """Training cannot continue: no batch can be formed, a loss became NaN or infinite, or memory is short."""


class ProtocolError(FmcnetError):
    """Embeddings and protocol do not fit each other."""


class GalleryError(FmcnetError):
    """A gallery, or a request to it, that cannot be used as it is.

    Attributes:
        added: None; or the `Added` of an add that is stored, but could not erase what it replaced from the files.
    """

    added: Any = None


class GalleryBusyError(GalleryError):
    """Another process writes to the gallery (or reads, where it must not just now); try again later."""


class GalleryDamagedError(GalleryError):
    """A gallery's database is damaged: it refuses to answer instead of answering wrongly."""


class GalleryReplacedError(GalleryError):
    """A gallery's files were removed, or others were put in their place, since it was opened."""


class DuplicateIdError(GalleryError):
    """An id is in the gallery already, or twice in one batch."""


class MissingDependencyError(FmcnetError):
    """An optional package is not installed; the message names the extra that brings it."""


class Interrupted(KeyboardInterrupt):
    """Work stopped by Ctrl-C or SIGTERM; the message says what was kept and how to continue.

    Attributes:
        code: exit code of the process: 130 after Ctrl-C, 143 after SIGTERM.
        printed_by: which processes of a job print it.
    """

    printed_by = PrintedBy.ONE

    def __init__(self, message: str, code: int = 130) -> None:
        super().__init__(message)
        self.code = code


class _Collector(logging.Handler):
    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        if (text := record.getMessage()) not in self._texts:
            self._texts.append(text)


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Collect the texts of the package's warnings, each once, for reports and JSON; they are logged as well."""
    texts: list[str] = []
    collector, logger = _Collector(texts), logging.getLogger("fmcnet")
    logger.addHandler(collector)
    try:
        yield texts
    finally:
        logger.removeHandler(collector)


@contextmanager
def translate_errors(*, compiled: bool) -> Iterator[None]:
    """Turn PyTorch's errors in a training step, `compiled` by torch.compile or not, into `TrainingError`s."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU's memory does not hold a step: {str(error).splitlines()[0]} Try training.recompute=true, "
            "training.accumulate=2 with half of data.identities, or smaller images (fmcnet docs train)"
        ) from error
    except Exception as error:
        if not compiled or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise TrainingError(
            f"torch.compile failed ({str(error).strip().splitlines()[0]}): it needs a C++ compiler, on GPUs "
            "Triton; train with training.compile=false"
        ) from error


def one_line(error: BaseException) -> str:
    """The type and the text of an error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def first_of(names: Sequence[str], most: int = 10, separator: str = ", ") -> str:
    """The first names, and how many more there are: "a, b and 3 more"."""
    return separator.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


MOST_FAULTS = 1000
"""Number of faults after which a file is read no further."""
LISTED = 20
"""Faults that a message lists."""


def refuse_faults(path: Path, faults: Sequence[str]) -> None:
    """Raise a `DataError` that counts and lists the faults of a file, if there are any."""
    if not faults:
        return
    count = "1 fault" if len(faults) == 1 else f"{len(faults):,} faults"
    if len(faults) >= MOST_FAULTS:
        count += " or more: it was read no further"
    raise DataError(f"{path} has {count}:\n{fault_lines(faults)}")


def fault_lines(faults: Sequence[str]) -> str:
    """The first `LISTED` faults, an indented line each, and how many more there are."""
    more = [f"... and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
    return "\n".join(f"  {fault}" for fault in [*faults[:LISTED], *more])


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package; raises `MissingDependencyError` naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"this needs {module.split('.')[0]}, which is not installed: pip install 'fmcnet[{extra}]'"
        ) from error
