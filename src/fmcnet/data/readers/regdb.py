"""RegDB (Nguyen et al., Sensors 2017): a visible and a thermal camera, ten published splits in `idx/`."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path

from fmcnet.data.readers.common import DatasetFolder, check_labels, read_idx
from fmcnet.data.table import Record, Table
from fmcnet.errors import DataError
from fmcnet.types import Modality

REGDB_SPLITS = 10
KINDS = {"visible": (Modality.VISIBLE, 1), "thermal": (Modality.INFRARED, 2)}
"""Kind of the list files -> modality and camera."""

EXPECTED = """
    ROOT/
      Visible/<id>/*.bmp
      Thermal/<id>/*.bmp
      idx/train_visible_1.txt ... train_visible_10.txt     lines 'Visible/12/name.bmp label', label 0..205
      idx/train_thermal_*.txt  idx/test_visible_*.txt  idx/test_thermal_*.txt
"""


def read_regdb(root: str | Path, regdb_split: int = 1, *, training: bool = True) -> Table:
    """Read one of the ten splits of a RegDB folder.

    The labels in `idx/` start at 0 in training and in testing alike; the identity of a row is therefore the
    number of the folder its image lies in, after a check that labels and folders match one to one.
    `camid` is 1 for the visible camera and 2 for the thermal one.

    Args:
        root: the folder.
        regdb_split: which, 1 to 10.
        training: False: keep every identity (the images are to be searched).

    Raises:
        DataError: a folder or file is missing, a listed image is absent, labels and folders disagree, or training
            and testing share identities.
    """
    given: object = regdb_split
    is_whole = isinstance(given, Integral) and not isinstance(given, bool)
    if not is_whole or not 1 <= regdb_split <= REGDB_SPLITS:
        raise DataError(f"RegDB has the splits 1 to {REGDB_SPLITS}, not {regdb_split!r}")
    folder = DatasetFolder(root, EXPECTED)
    lists = {
        (split, kind): f"idx/{split}_{kind}_{regdb_split}.txt"
        for split in ("train", "test")
        for kind in KINDS
    }
    folder.require(("Visible", "Thermal"), lists.values())
    records: list[Record] = []
    for split in ("train", "test"):
        listed = []
        for kind, (modality, camera) in KINDS.items():
            name = lists[split, kind]
            images = read_idx(folder, name, kind.capitalize())
            listed += images
            records += [Record(image.path, image.pid, modality, camera, split) for image in images]
        check_labels(listed, f"{folder.root}/idx, {split} split {regdb_split}")
    tops = [folder.find_folder(kind) or "" for kind in ("Visible", "Thermal")]
    folder.note_unlisted_images(tops, {record.path for record in records}, "this split in idx/")
    return folder.table("regdb", records, training, f"{folder.root}, split {regdb_split}")
