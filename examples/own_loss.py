"""A loss of your own in a training: it is weighed, summed, logged and resumed like the others.

    python examples/own_loss.py data --out runs/own --steps 20

A term is a function of a batch's output and its labels. The batch has two halves with the same labels, visible
and infrared images of the same people.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor
from torch.nn.functional import cosine_similarity

import fmcnet
from fmcnet.models.fmcnet import FMCNetOutput
from fmcnet.training.loggers import read_log


def alignment(output: FMCNetOutput, labels: Tensor) -> Tensor:
    """One minus the mean cosine of the shared features of one person, visible beside infrared."""
    return 1 - cosine_similarity(output.visible.shared, output.infrared.shared).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a dataset's folder or CSV")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--weight", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()

    settings = ["training.epochs=1", "training.log_every=1", f"training.steps_per_epoch={args.steps}"]
    config = fmcnet.load_config(args.config, [*settings, f"losses.terms={{alignment: {args.weight}}}"])
    fmcnet.train(config, args.data, args.out, terms={"alignment": alignment})
    # After a stop, the same call with resume=True continues; without the term it is refused.
    records = [record for record in read_log(args.out) if "step" in record]
    for record in records[:: max(1, args.steps // 5)]:
        print(f"step {record['step']:3d}  loss {record['loss']:.3f}  alignment {record['alignment']:.4f}")


if __name__ == "__main__":
    main()
