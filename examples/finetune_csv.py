"""Fine-tune a trained run on your own images: a CSV with the columns path, pid and modality.

    python examples/finetune_csv.py runs/sysu people.csv --out runs/people

The new run starts from all weights of the old one but the classifiers, because the identities differ.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fmcnet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the trained run to start from")
    parser.add_argument("csv", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("settings", nargs="*", help="as training.epochs=4")
    args = parser.parse_intermixed_args()

    table = fmcnet.read_dataset(args.csv)  # without a column split, 3/10 of the identities are for testing
    print(*table.notes, sep="\n")
    settings = [f"model.pretrained={args.run}", "training.lr=0.001", *args.settings]
    config = fmcnet.load_config(args.run / "config.yaml", settings)
    fmcnet.train(config, table, args.out, resume=True)

    encoder = fmcnet.load(args.out)
    embeddings = encoder.embed_table(table.select(split="test"))
    print(fmcnet.evaluate(embeddings, fmcnet.protocols.custom("infrared", "visible")).summary())


if __name__ == "__main__":
    main()
