"""Models by name: those that come with the package, and those of the hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fmcnet.errors import CheckpointError
from fmcnet.models.card import CARD
from fmcnet.models.hub import fetch, is_fetched, is_hub_name

FOLDER = Path(__file__).parents[1] / "weights"


def shipped_models() -> dict[str, Path]:
    """The folders of the models inside the package, by name, sorted."""
    if not FOLDER.is_dir():
        return {}
    return {path.name: path for path in sorted(FOLDER.iterdir()) if (path / CARD).is_file()}


def is_shipped(folder: str | Path) -> bool:
    """Whether a folder lies inside the package or the hub's cache, where nothing is to be written."""
    return Path(folder).resolve().is_relative_to(FOLDER.resolve()) or is_fetched(folder)


def find_model(source: str | Path) -> Path:
    """The folder of a model: `source` itself, the shipped model of that name, or owner/name of the hub.

    A folder wins over a shipped model and one of the hub of the same name. The hub needs the extra `hub`.

    Raises:
        CheckpointError: when there is none; says what there is.
    """
    path, known = Path(source).expanduser(), shipped_models()
    if path.exists():
        return path
    if str(source) in known:
        return known[str(source)]
    of_hub = ""
    if is_hub_name(source):
        if importlib.util.find_spec("huggingface_hub"):
            return fetch(str(source))
        of_hub = ". For a model of the Hugging Face Hub: pip install 'fmcnet[hub]'"
    names = (
        f", or a shipped model: {', '.join(known)}" if known else " (no model is shipped with this package)"
    )
    raise CheckpointError(
        f"there is no model '{source}': give the folder of a finished run (fmcnet train --out FOLDER) or of an "
        f"exported one (fmcnet export){names}{of_hub}"
    )
