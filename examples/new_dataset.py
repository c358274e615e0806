"""A dataset layout of your own: a function that lists the images, registered by name.

    python examples/new_dataset.py data

The layout here is `day/PERSON/*.jpg` and `night/PERSON/*.jpg`. The last quarter of the identities is the test set.
In a package, an entry point of the group `fmcnet.readers` does the same for the commands:
`fmcnet train --data data data.layout=day-night`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fmcnet
from fmcnet import Modality, Record, Table


def read_day_night(root: Path) -> Table:
    """Read one folder a person, below one folder a modality."""
    records = []
    people = sorted({folder.name for folder in root.glob("*/*") if folder.is_dir()})
    test = set(people[3 * len(people) // 4 :])
    for half, modality in (("day", Modality.VISIBLE), ("night", Modality.INFRARED)):
        for path in sorted((root / half).glob("*/*.jpg")):
            person = path.parent.name
            split = "test" if person in test else "train"
            name = path.relative_to(root).as_posix()
            records.append(Record(name, people.index(person), modality, split=split))
    return Table.from_records("day-night", root, records, pid_names=people)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    args = parser.parse_args()

    fmcnet.register_reader("day-night", read_day_night, markers=["day", "night"])
    table = fmcnet.read_dataset(args.data)  # recognised by its folders
    for split in ("train", "test"):
        part = table.select(split=split)
        print(f"{split}: {len(part)} images of {len(part.labels()[1])} people")
    # `fmcnet.train(config, args.data, out)` and `fmcnet.evaluate` take it as any other dataset.


if __name__ == "__main__":
    main()
