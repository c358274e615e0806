"""SYSU-MM01 (Wu et al., ICCV 2017): six cameras, splits by identity in `exp/`."""

from __future__ import annotations

from pathlib import Path

from fmcnet.data.readers.common import DatasetFolder, read_ids, read_mat_ids
from fmcnet.data.table import SPLITS, Record, Table
from fmcnet.errors import DataError, first_of
from fmcnet.types import Modality

INFRARED_CAMERAS = (3, 6)
CAMERAS = tuple(f"cam{number}" for number in range(1, 7))

EXPECTED = """
    ROOT/
      cam1/ cam2/ cam4/ cam5/     visible images: camC/IIII/NNNN.jpg (IIII identity, NNNN image)
      cam3/ cam6/                 infrared images, named alike
      exp/train_id.txt            one line of comma-separated identities (or train_id.mat, variable 'id')
      exp/val_id.txt  exp/test_id.txt
"""


def read_sysu(root: str | Path, *, training: bool = True) -> Table:
    """Read a SYSU-MM01 folder; splits by `exp/*.txt`, or `.mat` where the text file is absent.

    Rows are ordered by split (train, val, test), camera, identity and file name. `exp/val_id` may be absent.

    Args:
        root: the folder.
        training: False: keep every identity (the images are to be searched).

    Raises:
        DataError: a camera folder or an identity list is missing, a list is empty or damaged, an identity is listed
            but has no image, or splits share identities.
    """
    folder = DatasetFolder(root, EXPECTED)
    lists = [f"exp/{split}_id.txt" for split in ("train", "test") if not folder.find(f"exp/{split}_id.mat")]
    folder.require(CAMERAS, lists, "camera folder")
    ids = _split_ids(folder)
    cameras = [folder.find(name) or name for name in CAMERAS]
    records: list[Record] = []
    absent: list[str] = []
    for split, pids in ids.items():
        start = len(records)
        for number, camera in enumerate(cameras, start=1):
            modality = Modality.INFRARED if number in INFRARED_CAMERAS else Modality.VISIBLE
            images = folder.identity_images(camera, pids)
            records += [Record(path, pid, modality, number, split) for pid, path in images]
        present = {record.pid for record in records[start:]}
        absent += [f"{pid} ({split})" for pid in pids if pid not in present]
    if absent:
        raise DataError(
            f"{folder.root}: {len(absent)} identities are listed in exp/ but have no image in any camera: "
            f"{first_of(absent, 20)}; unpack the missing images or correct the lists"
        )
    folder.note_cameras("", range(1, len(CAMERAS) + 1), {record.camid for record in records})
    folder.note_unlisted_folders(cameras, {pid for pids in ids.values() for pid in pids}, "exp/")
    return folder.table("sysu", records, training)


def _split_ids(folder: DatasetFolder) -> dict[str, list[int]]:
    """Identities of each split."""
    ids: dict[str, list[int]] = {}
    for split in SPLITS:
        if found := folder.find(f"exp/{split}_id.txt"):
            ids[split] = read_ids(folder.root / found)
        elif found := folder.find(f"exp/{split}_id.mat"):
            ids[split] = read_mat_ids(folder.root / found)
        else:
            folder.note(f"exp/{split}_id.txt is absent: no {split} split")
    return ids
