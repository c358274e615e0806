"""SYSU-MM01, RegDB and LLCM folders, CSVs and layouts of your own as tables; `read_dataset` detects the layout."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

from fmcnet.data.readers.common import require_complete
from fmcnet.data.readers.csv import read_csv
from fmcnet.data.readers.llcm import read_llcm
from fmcnet.data.readers.regdb import read_regdb
from fmcnet.data.readers.sysu import CAMERAS, INFRARED_CAMERAS, read_sysu
from fmcnet.data.table import Table
from fmcnet.errors import DataError, FmcnetError, one_line
from fmcnet.plugins import READERS, load_plugin, plugins
from fmcnet.types import Modality

LAYOUTS = ("sysu", "regdb", "llcm", "csv")

MARKERS = {
    "sysu": ("exp", *CAMERAS),
    "regdb": ("Visible", "Thermal"),
    "llcm": ("vis", "nir", "test_vis", "test_nir"),
}
"""Top-level names by which a layout is recognised; two of them (in any letter case) are enough."""


_READERS: dict[str, tuple[Callable[..., Table], tuple[str, ...]]] = {}
"""Function and markers of the layouts of `register_reader`."""

_INFRARED_FOLDERS = {*(f"cam{number}" for number in INFRARED_CAMERAS), "thermal", "nir", "test_nir"}


def register_reader(name: str, read: Callable[..., Table], markers: Sequence[str] = ()) -> None:
    """Add a layout, so that `data.layout=name`, `--layout name` and `read_dataset` read it.

    Args:
        name: of the layout. A second call with the same name replaces the first; a shipped one stays.
        read: `read(root)` or `read(root, training=...)`, where `root` is the dataset's path; gives a `Table`. With
            `training` False the images are to be searched: identities that training would drop stay.
        markers: names at the top of the folder by which the layout is recognised; two of them are enough, or the
            only one. Without any, the layout must be named.

    Raises:
        DataError: for the name of a shipped layout, or a name that is no word.
    """
    if name in (*LAYOUTS, "auto", "images") or not name or name != name.strip():
        raise DataError(f"register_reader: '{name}' is not free: give the layout another name")
    if not callable(read) or isinstance(markers, str):
        raise DataError(f"register_reader('{name}'): give a function, and markers as a list of names")
    _READERS[name] = read, tuple(markers)


def layouts() -> tuple[str, ...]:
    """Names of all layouts: shipped, registered, and those of installed packages."""
    return tuple(dict.fromkeys([*LAYOUTS, *_READERS, *plugins(READERS)]))


def read_dataset(
    path: str | Path,
    *,
    layout: str = "auto",
    trial: int = 1,
    training: bool = True,
    modality: Modality | None = None,
) -> Table:
    """Read a dataset of any known layout.

    Args:
        path: a folder of SYSU-MM01, RegDB or LLCM, a CSV file, a folder that holds exactly one CSV file, or what a
            reader of your own takes.
        layout: "auto" or one of `layouts()`.
        trial: which of RegDB's ten splits; the other layouts have one and ignore it.
        training: False: the images are to be searched, not learnt from or scored. No rule about identities and splits
            applies, every image stays, and a CSV needs no `pid`.
        modality: with `training` False, of those rows of a CSV that give none.

    Raises:
        DataError: when nothing fits (names what was tried), a generated dataset is not complete, or the reader finds
            a fault.
    """
    if not isinstance(path, (str, Path)):
        raise DataError(f"data is of type {type(path).__name__}: give a dataset's folder or a CSV file")
    path = Path(path).expanduser()
    if layout == "auto":
        layout = detect_layout(path)
    require_complete(path if path.is_dir() else path.parent)
    if layout == "regdb":
        return read_regdb(path, trial, training=training)
    if layout in ("sysu", "llcm"):
        return (read_sysu if layout == "sysu" else read_llcm)(path, training=training)
    if layout != "csv":
        return _read_own(path, layout, training)
    if path.is_dir():
        files = _csv_files(path)
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise DataError(f"{path} should hold exactly one CSV file, found {found}: give the file itself")
        path = files[0]
    return read_csv(path, training=training, modality=modality)


def detect_layout(path: str | Path) -> str:
    """Which of `layouts()` a path has, by the names at its top; a DataError says what was looked for in vain."""
    path = Path(path).expanduser()
    if path.is_file():
        return "csv"
    if not path.is_dir():
        raise DataError(f"{path} does not exist: give a dataset's folder or a CSV file")
    if layout := _marked_layout(path):
        return layout
    if len(_csv_files(path)) == 1:
        return "csv"
    children = sorted(path.iterdir())
    tried = "; ".join(f"{name}: {', '.join(markers)}" for name, markers in _markers().items())
    inside = next((child for child in children if child.is_dir() and _marked_layout(child)), None)
    hint = f"\nDid you mean {inside}?" if inside else ""
    holds = ", ".join(child.name for child in children[:12]) + (", ..." if len(children) > 12 else "")
    raise DataError(
        f"{path} has none of the known layouts. Looked for {tried}; csv: exactly one *.csv file. "
        f"It holds: {holds or 'nothing'}. Give the folder itself, or the layout by name.{hint}"
    )


def check_layout(layout: str) -> None:
    """Raise DataError unless a layout is "auto" or one of `layouts()`."""
    if layout not in ("auto", *layouts()):
        raise DataError(
            f"unknown layout '{layout}': choose auto, {', '.join(layouts())}. Register your own with "
            "fmcnet.register_reader before this call."
        )


def _read_own(path: Path, layout: str, training: bool) -> Table:
    """Read by a registered reader, or one of another package."""
    check_layout(layout)
    if not path.exists():
        raise DataError(f"{path} does not exist: give a dataset's folder or a CSV file")
    if layout not in _READERS:
        _READERS[layout] = load_plugin(plugins(READERS)[layout]), ()
    read, _ = _READERS[layout]
    takes_training = "training" in inspect.signature(read).parameters
    try:
        table: object = read(path, training=training) if takes_training else read(path)
    except (FmcnetError, OSError):
        raise
    except Exception as error:
        raise DataError(f"the reader of layout '{layout}' failed at {path} ({one_line(error)})") from error
    if not isinstance(table, Table):
        raise DataError(f"the reader of layout '{layout}' gives a {type(table).__name__}, not a fmcnet.Table")
    if not len(table):
        raise DataError(f"the reader of layout '{layout}' finds no image in {path}")
    return table


def _markers() -> dict[str, tuple[str, ...]]:
    """Markers of all layouts that are recognised by them."""
    return MARKERS | {name: markers for name, (_, markers) in _READERS.items() if markers}


def benchmark_layout(folder: Path) -> str | None:
    """The benchmark whose layout a folder has, lists included; None for others, such as only cam1 and cam2."""
    try:
        lists = {"exp", "idx", "thermal"} & (_names(folder) if folder.is_dir() else set())
        layout = _marked_layout(folder) if lists else None
    except OSError:
        return None
    return layout if layout in MARKERS else None


def modality_of_folder(layout: str, name: str) -> Modality | None:
    """The modality of a folder at the top of a dataset, as "cam3" of "sysu"; None where its name gives none."""
    name = name.lower()
    if name == "exp" or name not in {marker.lower() for marker in MARKERS[layout]}:
        return None
    return Modality.INFRARED if name in _INFRARED_FOLDERS else Modality.VISIBLE


def _names(folder: Path) -> set[str]:
    return {entry.name.lower() for entry in folder.iterdir()}


def _marked_layout(folder: Path) -> str | None:
    """The layout with the most markers at the top of a folder, two at least."""
    names, known = _names(folder), _markers()
    scores = {layout: sum(m.lower() in names for m in markers) for layout, markers in known.items()}
    fits = [layout for layout, markers in known.items() if scores[layout] >= min(2, len(markers))]
    return max(fits, key=lambda layout: scores[layout], default=None)


def _csv_files(folder: Path) -> list[Path]:
    files = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return sorted(p for p in files if p.suffix.lower() in (".csv", ".tsv"))
