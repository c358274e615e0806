"""Finds models by name or folder, shipped or on the hub, and checks the folder that a new model is written to."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from fmcnet.errors import CheckpointError, FmcnetError
from fmcnet.files import check_writable, put_in_place, room_beside
from fmcnet.models.card import CARD
from fmcnet.models.hub import fetch, is_fetched, is_hub_name
from fmcnet.names import nearest

WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"


def shipped_models() -> dict[str, Path]:
    """The folders of the models inside the package, by name, sorted."""
    return {card.parent.name: card.parent for card in sorted(WEIGHTS_FOLDER.glob(f"*/{CARD}"))}


def is_shipped(folder: str | Path) -> bool:
    """Whether a folder lies inside the package or the hub's cache, which are read-only."""
    return Path(folder).resolve().is_relative_to(WEIGHTS_FOLDER.resolve()) or is_fetched(folder)


def find_model(source: str | Path) -> Path:
    """The folder of a model: `source` itself, the shipped model of that name, or owner/name of the hub.

    A folder wins over a shipped model and one of the hub of the same name. The hub needs the extra `hub`.

    Raises:
        CheckpointError: when there is none; the message lists the shipped models.
    """
    path, known = Path(source).expanduser(), shipped_models()
    if path.exists():
        return path
    if str(source) in known:
        return known[str(source)]
    similar = nearest(path.name, (card.parent.name for card in path.parent.glob(f"*/{CARD}")))
    advice = f" (did you mean {path.with_name(similar)}?)" if similar else ""
    hub_hint = ""
    if is_hub_name(source):
        if importlib.util.find_spec("huggingface_hub"):
            return fetch(str(source), advice)
        hub_hint = ". For a model of the Hugging Face Hub: pip install 'fmcnet[hub]'"
    shipped_hint = (
        f", or a shipped model: {', '.join(known)}" if known else " (no model is shipped with this package)"
    )
    raise CheckpointError(
        f"there is no model '{source}'{advice}: give the folder of a finished run (fmcnet train --out FOLDER) or of "
        f"an exported one (fmcnet export){shipped_hint}{hub_hint}"
    )


def refuse_shipped(source: str | Path, folder: Path, option: str) -> None:
    """Raise a `FmcnetError` for the folder of a shipped model or one of the hub; `option` is what to give instead."""
    if is_shipped(folder):
        raise FmcnetError(
            f"{source} came with the package or the hub, which is not written to: say --out {option}"
        )


def check_target(
    target: Path,
    kind: str,
    is_kind: Callable[[Set[str]], bool],
    files: Set[str],
    overwrite: bool,
    describe: Callable[[], str],
) -> None:
    """Raise a `CheckpointError` unless nothing is at `target`, or a model of `kind` (by its `files`) that may go.

    A `DataError` where nothing can be written there.
    """
    check_writable(target, "say --out FOLDER")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    names = {path.name for path in target.iterdir()} if target.is_dir() else set()
    if not is_kind(names):
        raise CheckpointError(f"--out {target} exists and is no {kind} model: give a new folder")
    if not overwrite:
        raise CheckpointError(
            f"--out {target} holds {describe()}: give a new folder, or replace it with --overwrite"
        )
    if others := sorted(names - files):
        raise CheckpointError(
            f"--out {target} holds {', '.join(others)} beside the model, which would be lost: give a new folder"
        )


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `target` when it is whole."""
    with room_beside(target) as scratch:
        folder = scratch / "new"
        folder.mkdir()
        yield folder
        put_in_place(folder, target, scratch / "old")
