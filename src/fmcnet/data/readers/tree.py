"""A dataset's folder as a reader sees it: listed once, sorted, forgiving about case and stray files."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from fmcnet.data.listing import is_image, number_of
from fmcnet.errors import DataError


def shown(items: list[str], limit: int = 10) -> str:
    """The first items, comma-separated, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


class Tree:
    """A folder whose listings are read once and sorted; remembers what it corrected or ignored.

    Args:
        root: the dataset's folder.
        expected: the tree as it should be, appended to messages about something missing.

    Raises:
        DataError: when the folder does not exist or is a file.
    """

    def __init__(self, root: str | Path, expected: str) -> None:
        self.root = Path(root).expanduser()
        self.expected = expected.strip("\n")
        self._listings: dict[str, dict[str, bool]] = {}
        self._lower: dict[str, dict[str, list[str]]] = {}
        self._corrected: dict[str, str] = {}
        self._ignored: Counter[str] = Counter()
        self._counted: set[str] = set()
        if not self.root.exists():
            raise self.error(f"the folder {self.root} does not exist: check the path")
        if not self.root.is_dir():
            raise self.error(f"{self.root} is a file: give the dataset's folder")

    def error(self, message: str) -> DataError:
        """An error that carries the expected tree."""
        return DataError(f"{message}\nExpected:\n{self.expected}")

    def entries(self, folder: str) -> dict[str, bool]:
        """Sorted names in a folder (relative to the root, "" for the root itself) -> is it a folder?"""
        if folder not in self._listings:
            try:
                with os.scandir(self.root / folder) as found:
                    listing = {entry.name: entry.is_dir() for entry in found}
            except OSError as error:
                raise DataError(f"cannot list {self.root / folder}: {error.strerror}") from error
            self._listings[folder] = dict(sorted(listing.items()))
            lower: dict[str, list[str]] = {}
            for name in self._listings[folder]:
                lower.setdefault(name.lower(), []).append(name)
            self._lower[folder] = lower
        return self._listings[folder]

    def find(self, relative: str) -> str | None:
        """The path as it is written on disk: exact, or the only one equal but for letter case; else None.

        Raises:
            DataError: when several names differ from the wanted one, and from each other, in case only.
        """
        parts = [part for part in relative.replace("\\", "/").split("/") if part not in ("", ".")]
        here = ""
        for depth, part in enumerate(parts):
            names = self.entries(here)
            if part not in names:
                same = self._lower[here].get(part.lower(), [])
                if len(same) > 1:
                    place = self.root / here
                    raise DataError(
                        f"{place} holds {', '.join(same)}: which one is '{part}'? Keep one of them"
                    )
                if not same:
                    return None
                if depth < len(parts) - 1 or names[same[0]]:
                    self._corrected[f"{here}/{part}".lstrip("/")] = same[0]
                part = same[0]
            here = f"{here}/{part}" if here else part
            if depth < len(parts) - 1 and not names[part]:
                return None
        return here

    def find_folder(self, relative: str) -> str | None:
        """Like `find`, None where the name is a file."""
        found = self.find(relative)
        return found if found is not None and (self.root / found).is_dir() else None

    def images(self, folder: str) -> list[str]:
        """Sorted paths (relative to the root) of the images in a folder; the rest is counted as ignored."""
        images = []
        for name, is_folder in self.entries(folder).items():
            if not is_folder and is_image(name):
                images.append(f"{folder}/{name}")
            else:
                self._ignore(folder, name)
        return images

    def identity_folders(self, folder: str) -> dict[int, str]:
        """Identity -> its folder (relative to the root) for the numbered folders inside `folder`.

        Raises:
            DataError: when two folders stand for the same number (`7` and `0007`).
        """
        found: dict[int, str] = {}
        for name, is_folder in self.entries(folder).items():
            pid = number_of(name)
            if not is_folder or pid is None:
                self._ignore(folder, name)
                continue
            if pid in found:
                raise DataError(
                    f"{self.root / folder} holds two folders for identity {pid}: "
                    f"'{found[pid].rpartition('/')[2]}' and '{name}': merge or remove one"
                )
            found[pid] = f"{folder}/{name}"
        return dict(sorted(found.items()))

    def _ignore(self, folder: str, name: str) -> None:
        path = f"{folder}/{name}"
        if path not in self._counted:
            self._counted.add(path)
            self._ignored[name if not name.startswith("._") else "._*"] += 1

    def notes(self) -> list[str]:
        """What was corrected or ignored so far, a sentence each."""
        notes = []
        if self._corrected:
            pairs = [f"'{found}' read as '{wanted}'" for wanted, found in sorted(self._corrected.items())]
            notes.append(f"letter case differs from the published layout: {shown(pairs, 6)}")
        if self._ignored:
            total = sum(self._ignored.values())
            kinds = [name for name, _ in sorted(self._ignored.items(), key=lambda item: (-item[1], item[0]))]
            what = "1 entry that is" if total == 1 else f"{total} entries that are"
            notes.append(f"ignored {what} no part of the dataset: {shown(kinds, 5)}")
        return notes
