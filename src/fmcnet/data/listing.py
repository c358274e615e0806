"""Which files of a folder are images: one rule for every command."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fmcnet.errors import first_of
from fmcnet.files import file_key
from fmcnet.names import printable

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".heic", ".heif", ".hif", ".avif"),
    }
)
"""In lower case; the letter case of a file's name does not matter."""

_RESOURCE_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_RESOURCE_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information"}
)
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
MAX_NAMED = 20


@dataclass(frozen=True)
class Ignored:
    """A file or folder that is not an image, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """The images below a folder, sorted by path, and everything else below it that is not hidden."""

    images: tuple[Path, ...]
    ignored: tuple[Ignored, ...]


def is_hidden(name: str) -> bool:
    """Whether a name is hidden or a system's resource: `._a.jpg`, `.DS_Store`, `Thumbs.db`, `@eaDir`."""
    return name.startswith(".") or name.lower() in _RESOURCE_FILES | _RESOURCE_FOLDERS


def is_image(name: str) -> bool:
    """Whether a file name is an image's: by suffix; hidden and resource files are none."""
    return not is_hidden(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def has_image_head(path: str | Path) -> bool:
    """Whether the first bytes are those of an image."""
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(16)
    except OSError:
        return False
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    heic = head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS | AVIF_BRANDS
    return head.startswith(_MAGIC) or webp or heic


def list_folder(folder: str | Path) -> Listing:
    """List the images below a folder.

    - An image has a suffix of `IMAGE_SUFFIXES`, in any letter case, or no suffix and the first bytes of an image.
    - Linked folders are entered, except those that hold the link. Each folder is read once, under its own name if
      that lies below `folder` too.
    - Hidden and resource files and folders (`is_hidden`) are left out without a note.
    - Everything else is in `ignored`.
    """
    images: list[Path] = []
    ignored: list[Ignored] = []
    seen: set[tuple[int, int]] = set()
    top = Path(folder)
    folders, linked = [top], list[Path]()
    while folders or linked:  # linked folders last, so that each is read under its own name first
        current = folders.pop() if folders else linked.pop(0)
        try:
            key = file_key(current)
            names = sorted(os.listdir(current))  # noqa: PTH208 (names are all that is needed)
        except OSError as error:
            ignored.append(Ignored(str(current), f"cannot be listed ({error.strerror})"))
            continue
        if key in seen:
            ignored.append(Ignored(str(current), "a link to a folder that was read already"))
            continue
        seen.add(key)
        for path in (current / name for name in names if not is_hidden(name)):
            if not os.path.isdir(path):  # noqa: PTH112 (False for a loop of links)
                if reason := _not_image_reason(path):
                    ignored.append(Ignored(str(path), reason))
                else:
                    images.append(path)
            elif not path.is_symlink():
                folders.append(path)
            elif any(real.is_relative_to(path.resolve()) for real in (current.resolve(), top.resolve())):
                ignored.append(Ignored(str(path), "a link to a folder above it"))
            else:
                linked.append(path)
    return Listing(tuple(sorted(images)), tuple(sorted(ignored, key=lambda entry: entry.path)))


def _not_image_reason(path: Path) -> str:
    """Why a file is no image; "" for one that is."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a broken link"
    if not stat.S_ISREG(mode):
        return "no file"
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ""
    if has_image_head(path):
        return f"an image with the suffix {path.suffix}, which no image has" if path.suffix else ""
    return f"no image ({path.suffix.lower()})" if path.suffix else "no image (no suffix)"


def near_file(path: str | Path, base: Path | None = None) -> str:
    """An end for the message that there is no file: it names one of nearly this path, or "".

    Nearly: other letter case or Unicode form (macOS writes "ä" as two characters), backslashes, another suffix of
    images. With `base`, the folder that paths are relative to, the first folders of the path may be too many.
    Where there is none, a path with backslashes is named as one of Windows.
    """
    parts = PurePosixPath(str(path).replace("\\", "/")).parts
    for first in range(len(parts) if base else 1):
        folder = base or Path()
        for part in parts[first:]:
            if not os.path.exists(folder / part):  # noqa: PTH110 (False for names that no file can have)
                names = _names_by_key(folder)
                name = _name_key(part)
                part = names.get(name) or names.get(os.path.splitext(name)[0]) or ""  # noqa: PTH122
            if not part:
                break
            folder /= part
        else:
            if os.path.isfile(folder):  # noqa: PTH113 (False where it cannot be read)
                found = folder.relative_to(base) if base and folder.is_relative_to(base) else folder
                if str(found) == str(path):
                    found = Path(os.path.normpath(found))
                same = unicodedata.normalize("NFC", str(found)) == unicodedata.normalize("NFC", str(path))
                return f"; did you mean '{found}'{', which is written in another Unicode form' * same}?"
    if "\\" in str(path) and os.sep == "/":
        return "; a path of Windows, whose \\ was read as /: write it as it is on this machine"
    return ""


def _name_key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _names_by_key(folder: Path) -> dict[str, str]:
    """The names in a folder by `_name_key`, those of images also by that of their stem."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return {}
    stems = {_name_key(os.path.splitext(name)[0]): name for name in names if is_image(name)}  # noqa: PTH122
    return stems | {_name_key(name): name for name in names}


def ignored_facts(ignored: tuple[Ignored, ...]) -> dict[str, Any]:
    """For JSON: how many, how many of each reason, and the first `MAX_NAMED`."""
    counts = Counter(entry.reason for entry in ignored)
    return {
        "count": len(ignored),
        "reasons": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        "first": [entry.path for entry in ignored[:MAX_NAMED]],
    }


def ignored_line(ignored: tuple[Ignored, ...]) -> str:
    """One line of text; "" for nothing."""
    if not ignored:
        return ""
    reasons = ignored_facts(ignored)["reasons"]
    counts = ", ".join(f"{count} {reason}" for reason, count in list(reasons.items())[:6])
    return f"ignored {len(ignored)}: {counts}; {printable(first_of([entry.path for entry in ignored], 3))}"
