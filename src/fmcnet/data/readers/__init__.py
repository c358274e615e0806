"""SYSU-MM01, RegDB and LLCM folders, CSVs and layouts of your own as tables; `read_dataset` detects the layout."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fmcnet.data.readers.common import require_complete
from fmcnet.data.readers.csv import read_csv
from fmcnet.data.readers.llcm import read_llcm
from fmcnet.data.readers.regdb import read_regdb
from fmcnet.data.readers.sysu import CAMERAS, INFRARED_CAMERAS, read_sysu
from fmcnet.data.table import Table
from fmcnet.errors import ConfigError, DataError, FmcnetError, one_line
from fmcnet.plugins import READERS, load_plugin, plugins
from fmcnet.types import Modality

if TYPE_CHECKING:
    from fmcnet.config import Config

logger = logging.getLogger(__name__)


class Layout(NamedTuple):
    """The structure of a dataset's folder, and the function that reads it."""

    read: Callable[..., Table]  # takes the dataset's path, and some of the keywords of `read_dataset`
    # Names at the top of the folder; two, in any letter case, identify the layout.
    markers: tuple[str, ...] = ()
    infrared: tuple[str, ...] = ()  # those of them that are folders of infrared images
    lists: tuple[str, ...] = ()  # those that hold no images


LAYOUTS = {
    "sysu": Layout(
        read_sysu,
        markers=("exp", *CAMERAS),
        infrared=tuple(f"cam{number}" for number in INFRARED_CAMERAS),
        lists=("exp",),
    ),
    "regdb": Layout(read_regdb, markers=("Visible", "Thermal"), infrared=("Thermal",)),
    "llcm": Layout(
        read_llcm,
        markers=("vis", "nir", "test_vis", "test_nir"),
        infrared=("nir", "test_nir"),
    ),
    "csv": Layout(read_csv),
}
"""The shipped layouts by name: a new one is one entry here."""
BENCHMARKS = {*LAYOUTS} - {"csv"}
"""All but a CSV; each has a shipped configuration of its name."""

_READERS: dict[str, Layout] = {}
"""The layouts of `register_reader`."""


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
    _READERS[name] = Layout(read, tuple(markers))


def layouts() -> tuple[str, ...]:
    """Names of all layouts: shipped, registered, and those of installed packages."""
    return tuple(dict.fromkeys([*LAYOUTS, *_READERS, *plugins(READERS)]))


def read_dataset(
    path: str | Path,
    *,
    layout: str = "auto",
    regdb_split: int = 1,
    training: bool = True,
    modality: Modality | None = None,
) -> Table:
    """Read a dataset of any known layout.

    Args:
        path: a folder of SYSU-MM01, RegDB or LLCM, a CSV file, a folder that holds exactly one CSV file, or what a
            reader of your own takes.
        layout: "auto" or one of `layouts()`.
        regdb_split: which of RegDB's ten splits; other layouts ignore it.
        training: False: the images are to be searched, not learnt from or scored. No rule about identities and splits
            applies, every image stays, and a CSV needs no `pid`.
        modality: with `training` False, of those rows of a CSV that give none.

    Returns:
        One row per image. `notes` say what the reader corrected, left out or ignored.

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
    if layout not in LAYOUTS:
        return _read_registered(path, layout, training)
    if layout == "csv" and path.is_dir():
        files = _csv_files(path)
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise DataError(f"{path} should hold exactly one CSV file, found {names}: give the file itself")
        path = files[0]
    return _read(LAYOUTS[layout], path, regdb_split=regdb_split, training=training, modality=modality)


def detect_layout(path: str | Path) -> str:
    """Which of `layouts()` a path has, by the names at its top. DataError: none; it lists what was looked for."""
    path = Path(path).expanduser()
    if path.is_file():
        return "csv"
    if not path.is_dir():
        raise DataError(f"{path} does not exist: give a dataset's folder or a CSV file")
    if layout := _layout_by_markers(path):
        return layout
    if len(_csv_files(path)) == 1:
        return "csv"
    children = sorted(path.iterdir())
    tried = "; ".join(f"{name}: {', '.join(found.markers)}" for name, found in _marked_layouts().items())
    inside = next((child for child in children if child.is_dir() and _layout_by_markers(child)), None)
    hint = f"\nDid you mean {inside}?" if inside else ""
    contents = ", ".join(child.name for child in children[:12]) + (", ..." if len(children) > 12 else "")
    raise DataError(
        f"{path} has none of the known layouts. Looked for {tried}; csv: exactly one *.csv file. "
        f"It holds: {contents or 'nothing'}. Give the folder itself, or the layout by name.{hint}"
    )


def check_layout(layout: str) -> None:
    """Raise DataError unless a layout is "auto" or one of `layouts()`."""
    if layout not in ("auto", *layouts()):
        raise DataError(
            f"unknown layout '{layout}': choose auto, {', '.join(layouts())}. Register your own with "
            "fmcnet.register_reader before this call; for commands, install a package with an entry point of the "
            f"group {READERS}"
        )


def _read(layout: Layout, path: Path, **options: Any) -> Table:
    """Read with those of the options that the layout's function takes."""
    try:
        parameters = {*inspect.signature(layout.read).parameters}
    except ValueError:  # of a class or function in C
        parameters = set()
    return layout.read(path, **{name: value for name, value in options.items() if name in parameters})


def _read_registered(path: Path, name: str, training: bool) -> Table:
    """Read with a registered reader or a package's reader; an exception of it becomes a DataError."""
    check_layout(name)
    if not path.exists():
        raise DataError(f"{path} does not exist: give a dataset's folder or a CSV file")
    layout = _READERS.get(name) or Layout(load_plugin(plugins(READERS)[name]))
    try:
        table: object = _read(layout, path, training=training)
    except (FmcnetError, OSError):
        raise
    except Exception as error:
        raise DataError(f"the reader of layout '{name}' failed at {path} ({one_line(error)})") from error
    if not isinstance(table, Table):
        raise DataError(f"the reader of layout '{name}' gives a {type(table).__name__}, not a fmcnet.Table")
    if not len(table):
        raise DataError(f"the reader of layout '{name}' finds no image in {path}")
    return table


def _marked_layouts() -> dict[str, Layout]:
    """All layouts that have markers."""
    return {name: layout for name, layout in (LAYOUTS | _READERS).items() if layout.markers}


def benchmark_layout(folder: Path) -> str | None:
    """The benchmark whose layout, with its list files, a folder has; None for others, such as only cam1 and cam2."""
    try:
        lists = {"exp", "idx", "thermal"} & _lower_names(folder)
        layout = _layout_by_markers(folder) if lists else None
    except OSError:
        return None
    return layout if layout in LAYOUTS else None


def modality_of_folder(layout: str, name: str) -> Modality | None:
    """The modality of a folder at the top of a dataset, as "cam3" of "sysu"; None where its name gives none."""
    name, known = name.lower(), LAYOUTS[layout]
    if name in {folder.lower() for folder in known.infrared}:
        return Modality.INFRARED
    image_folders = {marker.lower() for marker in known.markers if marker not in known.lists}
    return Modality.VISIBLE if name in image_folders else None


def check_split(config: Config, dataset: str) -> None:
    """Raise ConfigError for a `data.split` other than 1 where the table `dataset` is not RegDB, and has one split."""
    if config.data.split != 1 and dataset != "regdb":
        raise ConfigError(f"data.split is for RegDB; the data are {dataset}, which has one: leave it out")


def warn_of_other_benchmark(config: str | None, data: str | Path) -> None:
    """Warn of a shipped configuration that is for another benchmark than the data."""
    if config not in BENCHMARKS or int(os.environ.get("RANK", "0")):
        return
    try:
        layout = detect_layout(data)
    except DataError:
        return  # the training reports the error
    if layout != config and layout in BENCHMARKS:  # any configuration may train on a CSV
        logger.warning(
            "--config %s is for another benchmark: %s has the layout of %s. Take --config %s",
            config,
            data,
            layout,
            layout,
        )


def _lower_names(folder: Path) -> set[str]:
    return {entry.name.lower() for entry in folder.iterdir()}


def _layout_by_markers(folder: Path) -> str | None:
    """The layout with the most markers at the top of a folder, two at least."""
    names, scores = _lower_names(folder), dict[str, int]()
    for name, layout in _marked_layouts().items():
        score = sum(marker.lower() in names for marker in layout.markers)
        if score >= min(2, len(layout.markers)):
            scores[name] = score
    return max(scores, key=scores.__getitem__, default=None)


def _csv_files(folder: Path) -> list[Path]:
    files = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return sorted(p for p in files if p.suffix.lower() in (".csv", ".tsv"))
