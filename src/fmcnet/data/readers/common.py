"""What the readers share: a dataset's folder, its list files, and the rules for identities and splits."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from fmcnet.data.listing import is_hidden, is_image, near_file
from fmcnet.data.mat import read_mat
from fmcnet.data.table import SPLITS, Record, Table
from fmcnet.errors import DataError, first_of
from fmcnet.files import file_key
from fmcnet.parsing import read_text
from fmcnet.types import Modality

_CAMERA_FOLDER = re.compile(r"cam(\d+)", re.IGNORECASE)
_IDENTITY_FOLDER = re.compile(r"(\d+)")

MANIFEST = "generated.json"
"""In the folder of a generated dataset."""


def require_complete(folder: Path) -> None:
    """Refuse (DataError) a generated dataset whose generation was interrupted."""
    with contextlib.suppress(OSError):
        if b'"complete": false' in (folder / MANIFEST).read_bytes():
            advice = "call the same fmcnet data generate again, which continues it"
            raise DataError(f"{folder}: its generation was interrupted: {advice}")


class DatasetFolder:
    """The folder of a dataset: listed once, sorted, tolerant of letter case and stray files.

    Args:
        root: the dataset's folder.
        expected: the layout, appended to messages about missing parts.

    Raises:
        DataError: the folder does not exist or is a file.
    """

    def __init__(self, root: str | Path, expected: str) -> None:
        self.root = Path(root).expanduser()
        self.expected = expected.strip("\n")
        self._listings: dict[str, dict[str, bool]] = {}
        self._corrected: dict[str, str] = {}
        self._ignored: dict[str, str] = {}
        self._notes: list[str] = []
        if not self.root.exists():
            raise self.error(f"the folder {self.root} does not exist: check the path")
        if not self.root.is_dir():
            raise self.error(f"{self.root} is a file: give the dataset's folder")

    def error(self, message: str) -> DataError:
        """An error that carries the expected layout."""
        return DataError(f"{message}\nExpected:\n{self.expected}")

    def require(self, folders: Iterable[str], files: Iterable[str], kind: str = "folder") -> None:
        """Check that folders and files exist; a DataError names all that do not, with `kind` for the folders."""
        missing = [f"the {kind} {name}" for name in folders if self.find_folder(name) is None]
        missing += [name for name in files if self.find(name) is None]
        if missing:
            raise self.error(f"{self.root} lacks {', '.join(missing)}")

    def entries(self, folder: str) -> dict[str, bool]:
        """Sorted names in a folder (relative to the root, "" for the root) -> whether it is a folder."""
        if folder not in self._listings:
            try:
                with os.scandir(self.root / folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError as error:
                raise DataError(f"cannot list {self.root / folder}: {error.strerror}") from error
            self._listings[folder] = {entry.name: entry.is_dir() for entry in entries}
        return self._listings[folder]

    def find(self, relative: str) -> str | None:
        """The path as written on disk: exact, or the only one (DataError: several) in other letter case; or None."""
        folder, is_folder = "", True
        for part in PurePosixPath(relative.replace("\\", "/").lstrip("/")).parts:
            names = self.entries(folder) if is_folder else {}
            if part not in names:
                matches = [name for name in names if name.lower() == part.lower()]
                if not matches:
                    return None
                part = self._choose(folder, part, matches)
            folder, is_folder = f"{folder}/{part}".lstrip("/"), names[part]
        return folder

    def find_folder(self, relative: str) -> str | None:
        """Like `find`; None where the name is a file. Folders of other letter case beside it are ignored."""
        found = self.find(relative)
        if found is None or not (self.root / found).is_dir():
            return None
        parent, _, name = found.rpartition("/")
        folders = [other for other, is_folder in self.entries(parent).items() if is_folder]
        self._choose(parent, name, [other for other in folders if other.lower() == name.lower()])
        return found

    def _choose(self, folder: str, expected: str, names: Sequence[str]) -> str:
        """Of the names in a folder that fit an expected one: itself, the others ignored; or the only one."""
        if expected not in names and len(names) > 1:
            raise DataError(
                f"{self.root / folder} holds {', '.join(names)}: which one is '{expected}'? Keep one of them"
            )
        chosen = expected if expected in names else names[0]
        self._ignored |= {f"{folder}/{name}".lstrip("/"): name for name in names if name != chosen}
        if chosen != expected and self.entries(folder)[chosen]:
            self._corrected[f"{folder}/{expected}".lstrip("/")] = chosen
        return chosen

    def exists(self, relative: str) -> bool:
        """Whether a path exists, in any letter case."""
        try:
            return self.find(relative) is not None
        except DataError:  # two names that differ in case only
            return True

    def camera_folders(self, top: str) -> dict[int, str]:
        """Camera -> its folder, for `cam1`, `cam2`... inside `top`, sorted; DataError: `Cam1` and `CAM1`."""
        return {
            number: f"{top}/{self._choose(top, f'cam{number}', names)}"
            for number, names in sorted(self._numbered_folders(top, _CAMERA_FOLDER).items())
        }

    def identity_folders(self, folder: str) -> dict[int, str]:
        """Identity -> its folder, for the numbered folders inside `folder`; DataError: `7` and `0007`."""
        numbered = self._numbered_folders(folder, _IDENTITY_FOLDER)
        for pid, names in numbered.items():
            if len(names) > 1:
                raise DataError(
                    f"{self.root / folder} holds two folders for identity {pid}: '{names[0]}' and '{names[1]}': "
                    "merge or remove one"
                )
        return {pid: f"{folder}/{names[0]}" for pid, names in numbered.items()}

    def _numbered_folders(self, top: str, pattern: re.Pattern[str]) -> dict[int, list[str]]:
        """The folders inside `top` by their number, which is the pattern's group; all else is ignored."""
        folders = defaultdict[int, list[str]](list)
        for name, is_folder in self.entries(top).items():
            match = pattern.fullmatch(name) if is_folder else None
            number = number_of(match[1]) if match else None
            if number is None:
                self._ignored[f"{top}/{name}"] = name
            else:
                folders[number].append(name)
        return folders

    def identity_images(self, folder: str, pids: Iterable[int]) -> Iterator[tuple[int, str]]:
        """(identity, path) of each image in the numbered folders of these identities inside a folder, sorted."""
        folders = self.identity_folders(folder)
        for pid in (pid for pid in pids if pid in folders):
            yield from ((pid, path) for path in self._images(folders[pid]))

    def _images(self, folder: str) -> Iterator[str]:
        """The paths of the images in a folder, sorted; all else is ignored."""
        for name, is_folder in self.entries(folder).items():
            path = f"{folder}/{name}"
            if not is_folder and is_image(name):
                yield path
            else:
                self._ignored[path] = name

    def note_unlisted_folders(self, folders: Iterable[str], listed: Collection[int], lists: str) -> None:
        """Note the identity folders inside `folders` of identities that `lists` do not name."""
        names = {pid: name for folder in folders for pid, name in self.identity_folders(folder).items()}
        if unlisted := [name for pid, name in sorted(names.items()) if pid not in listed]:
            self.note(
                f"{len(unlisted)} identity folders are in no list of {lists} and were not read: "
                f"{first_of([PurePosixPath(name).name for name in unlisted])}"
            )

    def note_unlisted_images(self, tops: Iterable[str], listed: Collection[str], lists: str) -> None:
        """Note the images in the identity folders inside `tops` that `lists` do not name."""
        folders = [
            f"{top}/{name}"
            for top in tops
            for names in self._numbered_folders(top, _IDENTITY_FOLDER).values()
            for name in names
        ]
        if unlisted := [path for folder in folders for path in self._images(folder) if path not in listed]:
            subject = "1 image is" if len(unlisted) == 1 else f"{len(unlisted)} images are"
            self.note(f"{subject} in no list of {lists} and not read: {first_of(unlisted, 3)}")
        parents = {path.rpartition("/")[0] for path in listed}
        read = {
            *listed,
            *parents,
            *(above.as_posix() for path in parents for above in PurePosixPath(path).parents),
        }
        self._ignored = {path: name for path, name in self._ignored.items() if path not in read}

    def without_links(self, records: Sequence[Record]) -> list[Record]:
        """The records without those of a file that an earlier one names by another path or link; notes them.

        A file that two identities, cameras, modalities or splits have stays in each, as in a store that keeps equal
        contents once.
        """
        first_records: dict[Hashable, Record] = {}
        kept, links, others = list[Record](), list[str](), list[str]()
        for record in records:
            first = record
            with contextlib.suppress(OSError):  # a broken link
                first = first_records.setdefault(file_key(self.root / record.path), record)
            if first._replace(path=record.path) == record != first:
                links.append(f"{record.path} (is {first.path})")
                continue
            kept.append(record)
            if first is not record:
                others.append(f"{record.path} (is {first.path})")
        for found, consequence in (
            (links, "counted once"),
            (others, "though identity, camera, modality or split differ: counted in each"),
        ):
            if found:
                subject = "1 image is the file" if len(found) == 1 else f"{len(found)} images are files"
                self.note(f"{subject} of another image, by a link, {consequence}: {first_of(found, 3)}")
        return kept

    def note_cameras(self, top: str, published: Iterable[int], found: Iterable[int]) -> None:
        """Note cameras of the published dataset without an image in `top` ("" for the root), and others with some."""

        def named(cameras: set[int]) -> str:
            return first_of([f"{top}/cam{number}".lstrip("/") for number in sorted(cameras)])

        if extra := set(found) - set(published):
            self.note(
                f"the published dataset has no image in {named(extra)}: are visible and infrared folders swapped?"
            )
        if absent := set(published) - set(found):
            self.note(
                f"no image was read from {named(absent)}, where the published dataset has some: unpack it again, or "
                "correct the folder's name or the lists"
            )

    def note(self, sentence: str) -> None:
        """Add a sentence to the table's notes."""
        self._notes.append(sentence)

    def table(self, name: str, records: list[Record], training: bool, where: str = "") -> Table:
        """The table of the records, with notes on all that was corrected, left out or ignored.

        With `training`, `check_splits` applies; `where` is the dataset in its messages, "" the folder.
        """
        notes: list[str] = []
        if training:
            records, notes = check_splits(self.without_links(records), where or str(self.root))
        return Table.from_records(name, self.root, records, notes=[*notes, *self._all_notes()])

    def _all_notes(self) -> list[str]:
        notes = [*self._notes]
        folders = [name for name, is_folder in self.entries("").items() if is_folder and not is_hidden(name)]
        self._ignored |= {name: name for name in folders if name not in self._listings}
        if self._corrected:
            pairs = [f"'{found}' read as '{expected}'" for expected, found in sorted(self._corrected.items())]
            notes.append(f"names differ from the published layout: {first_of(pairs, 6)}")
        if self._ignored:
            counts = Counter("._*" if name.startswith("._") else name for name in self._ignored.values())
            names = sorted(counts, key=lambda name: (-counts[name], name))
            total = len(self._ignored)
            subject = "1 entry that is" if total == 1 else f"{total} entries that are"
            notes.append(f"ignored {subject} no part of the dataset: {first_of(names, 5)}")
        return notes


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8 or UTF-16, with any line ending; DataError: none, or a line over 1 MiB."""
    try:
        text = read_text(path, long_lines=False)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not a text file in UTF-8: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_ids(path: Path) -> list[int]:
    """Sorted identities of a comma-separated list (`1,2,5`), however spaced or broken; DataError: none, or others."""
    words = [word for line in read_lines(path) for word in re.split(r"[,;\s]+", line) if word]
    if bad := [word[:40] for word in words if number_of(word) is None]:
        raise DataError(f"{path} should hold comma-separated identity numbers, but has {first_of(bad, 5)}")
    return _sorted_ids(path, words)


def read_mat_ids(path: Path) -> list[int]:
    """Sorted identities of a MATLAB file's variable `id`; DataError: it cannot be read, or holds none or others."""
    try:
        ids = np.asarray(read_mat(path, "id")).ravel()
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    are_ids = ids.dtype.kind in "iuf" and all(0 <= x < 2**63 and x == int(x) for x in ids.tolist())
    if len(ids) and not are_ids:
        raise DataError(f"{path}: 'id' should hold whole numbers from 0 to {2**63 - 1}")
    return _sorted_ids(path, ids)


def _sorted_ids(path: Path, ids: Iterable[Any]) -> list[int]:
    if sorted_ids := sorted({int(pid) for pid in ids}):
        return sorted_ids
    raise DataError(f"{path} lists no identity: the split would be empty; restore the file")


def number_of(text: str) -> int | None:
    """A whole number of ASCII digits that fits 64 bits (0 to 9223372036854775807); None for any other text."""
    digits = text.lstrip("0") or "0"
    if not (text.isascii() and text.isdigit()) or len(digits) > 19:
        return None
    return int(digits) if int(digits) < 2**63 else None


class ListedImage(NamedTuple):
    """A line of an `idx/` file: the image's path as on disk, its label, the line's number, its folder's number."""

    path: str
    label: int
    line: int
    pid: int


def read_idx(folder: DatasetFolder, relative: str, top: str) -> list[ListedImage]:
    """The lines `path label` of an `idx/` file, sorted by path; Windows separators are read as `/`.

    An image that is listed twice is read once, with a note.

    Args:
        folder: of the dataset.
        relative: the file.
        top: the folder of all its images, such as "Visible".

    Raises:
        DataError: the file is missing or empty, lines are malformed, images are absent (all counted, the first ten
            shown) or outside `top`, or an image lies in a folder that is not a number.
    """
    folder.require((), (relative,))
    file = folder.root / (folder.find(relative) or "")
    listed, malformed, absent = list[ListedImage](), list[str](), list[str]()
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().replace("\t", " ").rpartition(" ")
        value = number_of(label)
        if not path or value is None:
            malformed.append(f"line {number}: '{line.strip()[:60]}'")
        elif (on_disk := folder.find(path.strip())) is None:
            hint = near_file(path.strip(), folder.root) if not absent else ""
            absent.append(f"{path.strip()} (line {number}){hint}")
        elif (pid := number_of(on_disk.split("/")[-2] if "/" in on_disk else "")) is None:
            raise DataError(f"'{on_disk[:200]}' does not lie in a folder named by its identity's number")
        else:
            listed.append(ListedImage(on_disk, value, number, pid))
    if malformed:
        raise DataError(
            f"{file}: {len(malformed)} lines are not 'relative/path label': {first_of(malformed)}"
        )
    if absent:
        raise DataError(
            f"{file} lists {len(absent)} images that are not there: {first_of(absent)}; "
            "unpack the archive again or correct the list"
        )
    if not listed:
        raise DataError(f"{file} lists no image: the split would be empty; restore the file")
    if misplaced := [image for image in listed if image.path.split("/")[0].lower() != top.lower()]:
        raise DataError(
            f"{file}: {len(misplaced)} line{'s' * (len(misplaced) > 1)} with an image outside {top}/, the first is "
            f"line {misplaced[0].line}: {misplaced[0].path}; correct the list"
        )
    unique: dict[tuple[str, int], ListedImage] = {}
    repeats = []
    for image in listed:
        if unique.setdefault((image.path, image.label), image) is not image:
            repeats.append(f"{image.path} (line {image.line})")
    if repeats:
        images = "1 image" if len(repeats) == 1 else f"{len(repeats)} images"
        folder.note(f"{relative} repeats {images}, counted once: {first_of(repeats, 5)}")
    return sorted(unique.values())


def check_labels(images: Iterable[ListedImage], where: str) -> None:
    """Check that labels and identity folders match one to one; a DataError names up to five that do not."""
    by_label, by_folder = defaultdict[int, set[int]](set), defaultdict[int, set[int]](set)
    for image in images:
        by_label[image.label].add(image.pid)
        by_folder[image.pid].add(image.label)
    faults = [f"label {k} is given to folders {sorted(v)}" for k, v in sorted(by_label.items()) if len(v) > 1]
    faults += [f"folder {k} has labels {sorted(v)}" for k, v in sorted(by_folder.items()) if len(v) > 1]
    if faults:
        raise DataError(
            f"{where}: labels and identity folders disagree: {first_of(faults, 5)}; correct the list"
        )


def check_splits(
    records: Sequence[Record],
    where: str,
    name: Callable[[int], str] = str,
    required: Sequence[str] = ("train", "test"),
) -> tuple[list[Record], list[str]]:
    """Check the splits of a dataset that is learnt from or scored; drop training identities of one modality.

    Args:
        records: the rows.
        where: the dataset, for messages.
        name: gives an identity's name, for messages.
        required: splits that must not be empty.

    Returns:
        The rows to keep, and notes. An identity of `val` or `test` seen in one modality only is kept: it is a
        distractor, or a query without match, as the protocols provide for.

    Raises:
        DataError: splits share identities, a required split is empty, or training has nothing to learn from.
    """
    by_split = {split: defaultdict[int, set[Modality]](set) for split in SPLITS}
    for record in records:
        by_split[record.split][record.pid].add(record.modality)
    for first, second in combinations(SPLITS, 2):
        if shared := sorted(by_split[first].keys() & by_split[second].keys()):
            raise DataError(
                f"{where}: {len(shared)} identities are in both {first} and {second}: "
                f"{first_of([name(pid) for pid in shared])}; an identity belongs to one split"
            )
    for split in required:
        if not by_split[split]:
            raise DataError(f"{where}: the {split} split is empty: no image belongs to it")
    notes = []
    dropped: list[int] = []
    for split, modalities in by_split.items():
        pids = sorted(pid for pid in modalities if len(modalities[pid]) == 1)
        fate = "kept: a query of it has no match in the other modality"
        if split == "train":
            dropped, fate = pids, "dropped from training"
        if pids:
            subject = "1 identity" if len(pids) == 1 else f"{len(pids)} identities"
            names = first_of([name(pid) for pid in pids])
            notes.append(f"{split}: {subject} seen in one modality only, {fate}: {names}")
    if dropped and len(dropped) == len(by_split["train"]):
        raise DataError(
            f"{where}: no training identity has both visible and infrared images, so there is nothing to "
            f"learn from ({len(dropped)} identities with one modality only); check the modality of each image"
        )
    left_out = set(dropped)
    return [r for r in records if r.split != "train" or r.pid not in left_out], notes
