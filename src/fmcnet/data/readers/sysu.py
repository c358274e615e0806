"""SYSU-MM01 (Wu et al., ICCV 2017): six cameras, splits by identity in `exp/`."""

from __future__ import annotations

from pathlib import Path

from fmcnet.data.readers.lists import read_ids, read_mat_ids
from fmcnet.data.readers.rules import settle
from fmcnet.data.readers.tree import Tree, shown
from fmcnet.data.table import SPLITS, Record, Table
from fmcnet.errors import DataError
from fmcnet.types import Modality

VISIBLE_CAMERAS = (1, 2, 4, 5)
INFRARED_CAMERAS = (3, 6)

EXPECTED = """
    ROOT/
      cam1/ cam2/ cam4/ cam5/     visible images: camC/IIII/NNNN.jpg (IIII identity, NNNN image)
      cam3/ cam6/                 infrared images, named alike
      exp/train_id.txt            one line of comma-separated identities (or train_id.mat, variable 'id')
      exp/val_id.txt  exp/test_id.txt
"""


def read_sysu(root: str | Path, *, training: bool = True) -> Table:
    """The table of a SYSU-MM01 folder; splits by `exp/*.txt`, or `.mat` where the text file is absent.

    Rows are ordered by split (train, val, test), camera, identity and file name. `exp/val_id` may be absent.

    Args:
        root: the folder. training: False: keep every identity, as `settle` says.

    Raises:
        DataError: when a camera folder or an identity list is missing, a list is empty or damaged, an
            identity is listed but has no image, or splits share identities.
    """
    tree = Tree(root, EXPECTED)
    cameras = {cam: tree.find_folder(f"cam{cam}") for cam in range(1, 7)}
    missing = [f"the camera folder cam{cam}" for cam, folder in cameras.items() if folder is None]
    missing += [f"exp/{split}_id.txt" for split in ("train", "test") if _id_file(tree, split) is None]
    if missing:
        raise tree.error(f"{tree.root} lacks {', '.join(missing)}")
    ids, notes = _split_ids(tree)
    folders = {cam: tree.identity_folders(folder) for cam, folder in cameras.items() if folder is not None}

    records: list[Record] = []
    absent: list[str] = []
    for split, pids in ids.items():
        with_images: set[int] = set()
        for cam, by_pid in folders.items():
            modality = Modality.INFRARED if cam in INFRARED_CAMERAS else Modality.VISIBLE
            for pid in pids:
                for path in tree.images(by_pid[pid]) if pid in by_pid else ():
                    records.append(Record(path, pid, modality, cam, split))
                    with_images.add(pid)
        absent += [f"{pid} ({split})" for pid in pids if pid not in with_images]
    if absent:
        raise DataError(
            f"{tree.root}: {len(absent)} identities are listed in exp/ but have no image in any camera: "
            f"{shown(absent, 20)}; unpack the missing images or correct the lists"
        )
    records, settled = settle(records, str(tree.root), training=training)
    listed = {pid for pids in ids.values() for pid in pids}
    unlisted = {pid for by_pid in folders.values() for pid in by_pid} - listed
    if unlisted:
        notes.append(f"{len(unlisted)} identity folders are in no list of exp/ and were not read")
    return Table.from_records("sysu", tree.root, records, notes=[*notes, *settled, *tree.notes()])


def _id_file(tree: Tree, split: str) -> str | None:
    return tree.find(f"exp/{split}_id.txt") or tree.find(f"exp/{split}_id.mat")


def _split_ids(tree: Tree) -> tuple[dict[str, list[int]], list[str]]:
    """Identities of each split, and notes."""
    ids: dict[str, list[int]] = {}
    notes: list[str] = []
    for split in SPLITS:
        found = _id_file(tree, split)
        if found is None:
            notes.append(f"exp/{split}_id.txt is absent: no {split} split")
            continue
        path = tree.root / found
        ids[split] = read_mat_ids(path) if path.suffix.lower() == ".mat" else read_ids(path)
    return ids, notes
