"""LLCM (Zhang and Wang, CVPR 2023): nine cameras by night; training by `idx/`, testing by camera folders."""

from __future__ import annotations

import re
from pathlib import Path

from fmcnet.data.readers.common import DatasetFolder, check_labels, read_ids, read_idx
from fmcnet.data.table import Record, Table
from fmcnet.errors import DataError, first_of
from fmcnet.types import Modality

EXPECTED = """
    ROOT/
      vis/IIII/*_cCC_*_vis.jpg    nir/IIII/*_cCC_*_nir.jpg     training (CC camera)
      idx/train_vis.txt           idx/train_nir.txt            lines 'vis/0001/name.jpg label'
      test_vis/camC/IIII/*.jpg    test_nir/camC/IIII/*.jpg     testing
      idx/test_id.txt                                          one line of comma-separated identities
"""

_KINDS = {"vis": Modality.VISIBLE, "nir": Modality.INFRARED}
_CAMERA_TOKEN = re.compile(r"(?:^|_)c(?:am)?(\d+)(?=[_.])", re.IGNORECASE)
_TEST_CAMERAS = {"vis": {1, 2, 3, 4, 5, 6, 7, 8, 9}, "nir": {1, 2, 4, 5, 6, 7, 8, 9}}
"""Of the published dataset: no infrared test image is from camera 3."""


def read_llcm(root: str | Path, *, training: bool = True) -> Table:
    """Read an LLCM folder: training images by `idx/train_*.txt`, test images by `idx/test_id.txt`.

    Identities are the numbers of the folders; cameras are read from the token `_c03_` of a training image's
    name and from the folder `cam3` of a test image. Camera C is the same place in both modalities.

    Args:
        root: the folder.
        training: False: keep every identity (the images are to be searched).

    Raises:
        DataError: a folder or file is missing, a listed image or identity is absent, a camera cannot be read from
            a name, or training and testing share identities.
    """
    folder = DatasetFolder(root, EXPECTED)
    folder.require(
        [name for kind in _KINDS for name in (kind, f"test_{kind}")],
        [f"idx/{name}.txt" for name in ("train_vis", "train_nir", "test_id")],
    )
    records = [*_training_records(folder), *_test_records(folder)]
    tops = [folder.find_folder(kind) or "" for kind in _KINDS]
    folder.note_unlisted_images(tops, {record.path for record in records}, "idx/")
    return folder.table("llcm", records, training)


def _training_records(folder: DatasetFolder) -> list[Record]:
    records, listed, no_camera = [], [], []
    for kind, modality in _KINDS.items():
        for image in read_idx(folder, f"idx/train_{kind}.txt", kind):
            listed.append(image)
            camera = _CAMERA_TOKEN.search(image.path.rpartition("/")[2])
            if camera is None:
                no_camera.append(image.path)
            else:
                records.append(Record(image.path, image.pid, modality, int(camera[1]), "train"))
    if no_camera:
        raise DataError(
            f"{folder.root}: the names of {len(no_camera)} training images hold no camera like '_c03_': "
            f"{first_of(no_camera, 5)}"
        )
    check_labels(listed, f"{folder.root}/idx/train_*.txt")
    return records


def _test_records(folder: DatasetFolder) -> list[Record]:
    pids = read_ids(folder.root / (folder.find("idx/test_id.txt") or ""))
    records: list[Record] = []
    camera_folders: list[str] = []
    for kind, modality in _KINDS.items():
        top = folder.find_folder(f"test_{kind}") or ""
        cameras = folder.camera_folders(top)
        if not cameras:
            raise folder.error(f"{folder.root / top} holds no camera folder (cam1, cam2, ...)")
        images = [
            Record(path, pid, modality, camera, "test")
            for camera, camera_folder in cameras.items()
            for pid, path in folder.identity_images(camera_folder, pids)
        ]
        folder.note_cameras(top, _TEST_CAMERAS[kind], {image.camid for image in images})
        records += images
        camera_folders += cameras.values()
    folder.note_unlisted_folders(camera_folders, pids, "idx/")
    absent = [str(pid) for pid in sorted(set(pids) - {record.pid for record in records})]
    if absent:
        raise DataError(
            f"{folder.root}: {len(absent)} identities are listed in idx/test_id.txt but have no image under "
            f"test_vis/ or test_nir/: {first_of(absent, 20)}; unpack the missing images or correct the list"
        )
    return records
