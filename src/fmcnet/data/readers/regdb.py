"""RegDB (Nguyen et al., Sensors 2017): a visible and a thermal camera, ten published splits in `idx/`."""

from __future__ import annotations

from pathlib import Path

from fmcnet.data.readers.lists import Entry, folder_id, label_of_folder, read_idx
from fmcnet.data.readers.rules import settle
from fmcnet.data.readers.tree import Tree
from fmcnet.data.table import Record, Table
from fmcnet.errors import DataError
from fmcnet.types import Modality

TRIALS = 10
VISIBLE_CAMERA, THERMAL_CAMERA = 1, 2

EXPECTED = """
    ROOT/
      Visible/<id>/*.bmp
      Thermal/<id>/*.bmp
      idx/train_visible_1.txt ... train_visible_10.txt     lines 'Visible/12/name.bmp label', label 0..205
      idx/train_thermal_*.txt  idx/test_visible_*.txt  idx/test_thermal_*.txt
"""


def read_regdb(root: str | Path, trial: int = 1, *, training: bool = True) -> Table:
    """The table of split `trial` (1..10) of a RegDB folder.

    The labels in `idx/` start at 0 in training and in testing alike; the identity of a row is therefore the
    number of the folder its image lies in, after a check that labels and folders match one to one.
    `camid` is 1 for the visible camera and 2 for the thermal one.

    Args:
        root: the folder. trial: which split. training: False: keep every identity, as `settle` says.

    Raises:
        DataError: when a folder or file is missing, a listed image is absent, labels and folders disagree, or
            training and testing share identities.
    """
    if not 1 <= trial <= TRIALS:
        raise DataError(f"RegDB has the splits 1 to {TRIALS}, not {trial}")
    tree = Tree(root, EXPECTED)
    names = [
        f"idx/{split}_{kind}_{trial}.txt" for split in ("train", "test") for kind in ("visible", "thermal")
    ]
    missing = [f"the folder {name}" for name in ("Visible", "Thermal") if tree.find_folder(name) is None]
    missing += [name for name in names if tree.find(name) is None]
    if missing:
        raise tree.error(f"{tree.root} lacks {', '.join(missing)}")

    records: list[Record] = []
    for split in ("train", "test"):
        both: list[Entry] = []
        for kind, modality, camera in (
            ("visible", Modality.VISIBLE, VISIBLE_CAMERA),
            ("thermal", Modality.INFRARED, THERMAL_CAMERA),
        ):
            name = f"idx/{split}_{kind}_{trial}.txt"
            entries = read_idx(tree, name)
            _check_modality(tree, name, kind, entries)
            both += entries
            for entry in sorted(entries):
                records.append(Record(entry.path, folder_id(entry.path), modality, camera, split))
        label_of_folder(both, f"{tree.root}/idx, {split} split {trial}")
    records, notes = settle(records, f"{tree.root}, split {trial}", training=training)
    return Table.from_records("regdb", tree.root, records, notes=[*notes, *tree.notes()])


def _check_modality(tree: Tree, name: str, kind: str, entries: list[Entry]) -> None:
    wrong = [entry for entry in entries if entry.path.split("/")[0].lower() != kind]
    if wrong:
        raise DataError(
            f"{tree.root / name}: {len(wrong)} lines name an image outside {kind.capitalize()}/, the "
            f"first is line {wrong[0].line}: {wrong[0].path}"
        )
