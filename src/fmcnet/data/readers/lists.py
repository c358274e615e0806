"""The small text files of the benchmarks: identity lists (`exp/`, `test_id.txt`) and `idx/` files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmcnet.data.listing import number_of
from fmcnet.data.readers.tree import Tree, shown
from fmcnet.errors import DataError


class Entry(NamedTuple):
    """One line of an `idx/` file: the image's path as found on disk, its label and the line's number."""

    path: str
    label: int
    line: int


def read_text(path: Path) -> str:
    """A text file in UTF-8 or UTF-16, any line ending, with or without byte-order mark.

    Raises:
        DataError: when the file cannot be read or is not text.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not a text file in UTF-8: {error.reason} at byte {error.start}"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_ids(path: Path) -> list[int]:
    """Sorted identities of a comma-separated list (`1,2,5`), however spaced, broken or ended.

    Raises:
        DataError: when a value is no number, or there is none.
    """
    words = [word for word in re.split(r"[,;\s]+", read_text(path)) if word]
    numbers = {word: number_of(word) for word in words}
    bad = [word[:40] for word in words if numbers[word] is None]
    if bad:
        raise DataError(f"{path} should hold comma-separated identity numbers, but has {shown(bad, 5)}")
    if not words:
        raise DataError(f"{path} lists no identity: the split would be empty; restore the file")
    return sorted({number for number in numbers.values() if number is not None})


def read_mat_ids(path: Path) -> list[int]:
    """Sorted identities of a MATLAB file's variable `id`.

    Raises:
        DataError: when the file cannot be read, lacks `id`, or `id` is empty.
    """
    from scipy.io import loadmat

    try:
        stored = loadmat(path)
    except Exception as error:  # scipy raises many kinds on a damaged file
        raise DataError(f"{path} is not a readable MATLAB file: {error}") from error
    if "id" not in stored:
        names = [name for name in stored if not name.startswith("__")]
        raise DataError(f"{path} has no variable 'id'; it holds {', '.join(names) or 'nothing'}")
    ids = np.asarray(stored["id"]).ravel()
    if not len(ids):
        raise DataError(f"{path} lists no identity: the split would be empty; restore the file")
    if ids.dtype.kind not in "iuf" or not all(0 <= pid < 2**63 and pid == int(pid) for pid in ids.tolist()):
        raise DataError(f"{path}: 'id' should hold whole numbers from 0 to {2**63 - 1}")
    return sorted({int(pid) for pid in ids})


def read_idx(tree: Tree, relative: str) -> list[Entry]:
    """The lines `path label` of an `idx/` file; Windows separators are read as `/`.

    Raises:
        DataError: when the file is missing or empty, lines are malformed, or images are absent (all counted,
            the first ten shown).
    """
    found = tree.find(relative)
    if found is None:
        raise tree.error(f"{tree.root} lacks {relative}")
    entries, malformed, absent = [], [], []
    for number, line in enumerate(read_text(tree.root / found).split("\n"), start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().replace("\t", " ").rpartition(" ")
        value = number_of(label)
        if not path or value is None:
            malformed.append(f"line {number}: '{line.strip()[:60]}'")
            continue
        on_disk = tree.find(path.strip())
        if on_disk is None:
            absent.append(f"{path.strip()} (line {number})")
        else:
            entries.append(Entry(on_disk, value, number))
    if malformed:
        raise DataError(
            f"{tree.root / found}: {len(malformed)} lines are not 'relative/path label': {shown(malformed)}"
        )
    if absent:
        raise DataError(
            f"{tree.root / found} lists {len(absent)} images that are not there: {shown(absent)}; "
            "unpack the archive again or correct the list"
        )
    if not entries:
        raise DataError(f"{tree.root / found} lists no image: the split would be empty; restore the file")
    return entries


def label_of_folder(entries: list[Entry], where: str) -> None:
    """Check that labels and identity folders (the folder an image lies in) match one to one.

    Raises:
        DataError: naming up to five labels or folders that do not.
    """
    by_label: dict[int, set[int]] = {}
    by_folder: dict[int, set[int]] = {}
    for entry in entries:
        folder = folder_id(entry.path)
        by_label.setdefault(entry.label, set()).add(folder)
        by_folder.setdefault(folder, set()).add(entry.label)
    faults = [f"label {k} is given to folders {sorted(v)}" for k, v in sorted(by_label.items()) if len(v) > 1]
    faults += [f"folder {k} has labels {sorted(v)}" for k, v in sorted(by_folder.items()) if len(v) > 1]
    if faults:
        raise DataError(
            f"{where}: labels and identity folders disagree: {shown(faults, 5)}; correct the list"
        )


def folder_id(path: str) -> int:
    """The identity of an image by the folder it lies in (`Visible/12/a.bmp` -> 12).

    Raises:
        DataError: when that folder's name is no number.
    """
    folder = path.split("/")[-2] if "/" in path else ""
    found = number_of(folder)
    if found is None:
        raise DataError(f"'{path[:200]}' does not lie in a folder named by its identity's number")
    return found
