"""Models that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from fmcnet.errors import CheckpointError
from fmcnet.models.card import CARD

FOLDER = Path(__file__).parents[1] / "weights"


def shipped_models() -> dict[str, Path]:
    """The folders of the models inside the package, by name, sorted."""
    if not FOLDER.is_dir():
        return {}
    return {path.name: path for path in sorted(FOLDER.iterdir()) if (path / CARD).is_file()}


def is_shipped(folder: str | Path) -> bool:
    """Whether a folder lies inside the package, where nothing is to be written."""
    return Path(folder).resolve().is_relative_to(FOLDER.resolve())


def find_model(source: str | Path) -> Path:
    """The folder of a model: `source` itself, or the shipped model of that name.

    A folder wins over a shipped model of the same name.

    Raises:
        CheckpointError: when there is neither; says what there is.
    """
    path, known = Path(source).expanduser(), shipped_models()
    if path.exists():
        return path
    if str(source) in known:
        return known[str(source)]
    names = (
        f", or a shipped model: {', '.join(known)}" if known else " (no model is shipped with this package)"
    )
    raise CheckpointError(
        f"there is no model '{source}': give the folder of a finished run (fmcnet train --out FOLDER) or of an "
        f"exported one (fmcnet export){names}"
    )
