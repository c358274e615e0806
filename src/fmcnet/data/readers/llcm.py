"""LLCM (Zhang and Wang, CVPR 2023): nine cameras by night; training by `idx/`, testing by camera folders."""

from __future__ import annotations

import re
from pathlib import Path

from fmcnet.data.readers.lists import Entry, folder_id, label_of_folder, read_ids, read_idx
from fmcnet.data.readers.rules import settle
from fmcnet.data.readers.tree import Tree, shown
from fmcnet.data.table import Record, Table
from fmcnet.errors import DataError
from fmcnet.types import Modality

EXPECTED = """
    ROOT/
      vis/IIII/*_cCC_*_vis.jpg    nir/IIII/*_cCC_*_nir.jpg     training (CC camera)
      idx/train_vis.txt           idx/train_nir.txt            lines 'vis/0001/name.jpg label'
      test_vis/camC/IIII/*.jpg    test_nir/camC/IIII/*.jpg     testing
      idx/test_id.txt                                          one line of comma-separated identities
"""

_KINDS = (("vis", Modality.VISIBLE), ("nir", Modality.INFRARED))
_CAMERA_TOKEN = re.compile(r"(?:^|_)c(?:am)?(\d+)(?=[_.])", re.IGNORECASE)
_CAMERA_FOLDER = re.compile(r"cam(\d+)", re.IGNORECASE)


def read_llcm(root: str | Path, *, training: bool = True) -> Table:
    """The table of an LLCM folder: training images by `idx/train_*.txt`, test images by `idx/test_id.txt`.

    Identities are the numbers of the folders; cameras are read from the token `_c03_` of a training image's
    name and from the folder `cam3` of a test image. Camera C is the same place in both modalities.

    Args:
        root: the folder. training: False: keep every identity, as `settle` says.

    Raises:
        DataError: when a folder or file is missing, a listed image or identity is absent, a camera cannot be
            told, or training and testing share identities.
    """
    tree = Tree(root, EXPECTED)
    folders = [name for kind in ("vis", "nir") for name in (kind, f"test_{kind}")]
    missing = [f"the folder {name}" for name in folders if tree.find_folder(name) is None]
    lists = ("idx/train_vis.txt", "idx/train_nir.txt", "idx/test_id.txt")
    missing += [name for name in lists if tree.find(name) is None]
    if missing:
        raise tree.error(f"{tree.root} lacks {', '.join(missing)}")
    records, notes = settle([*_training(tree), *_testing(tree)], str(tree.root), training=training)
    return Table.from_records("llcm", tree.root, records, notes=[*notes, *tree.notes()])


def _training(tree: Tree) -> list[Record]:
    records: list[Record] = []
    both: list[Entry] = []
    no_camera: list[str] = []
    for kind, modality in _KINDS:
        entries = sorted(read_idx(tree, f"idx/train_{kind}.txt"))
        both += entries
        for entry in entries:
            camera = _CAMERA_TOKEN.search(entry.path.rpartition("/")[2])
            if camera is None:
                no_camera.append(entry.path)
                continue
            records.append(Record(entry.path, folder_id(entry.path), modality, int(camera[1]), "train"))
    if no_camera:
        raise DataError(
            f"{tree.root}: the names of {len(no_camera)} training images hold no camera like '_c03_': "
            f"{shown(no_camera, 5)}"
        )
    label_of_folder(both, f"{tree.root}/idx/train_*.txt")
    return records


def _testing(tree: Tree) -> list[Record]:
    found = tree.find("idx/test_id.txt")
    assert found is not None
    pids = read_ids(tree.root / found)
    records: list[Record] = []
    for kind, modality in _KINDS:
        top = tree.find_folder(f"test_{kind}")
        assert top is not None
        cameras = {}
        for name, is_folder in tree.entries(top).items():
            match = _CAMERA_FOLDER.fullmatch(name)
            if match and is_folder:
                cameras[int(match[1])] = f"{top}/{name}"
        if not cameras:
            raise tree.error(f"{tree.root / top} holds no camera folder (cam1, cam2, ...)")
        for camera, folder in sorted(cameras.items()):
            by_pid = tree.identity_folders(folder)
            for pid in pids:
                for path in tree.images(by_pid[pid]) if pid in by_pid else ():
                    records.append(Record(path, pid, modality, camera, "test"))
    absent = [str(pid) for pid in sorted(set(pids) - {record.pid for record in records})]
    if absent:
        raise DataError(
            f"{tree.root}: {len(absent)} identities are listed in idx/test_id.txt but have no image under "
            f"test_vis/ or test_nir/: {shown(absent, 20)}; unpack the missing images or correct the list"
        )
    return records
