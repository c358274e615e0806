"""What `fmcnet embed` and `fmcnet info` do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.data.images import open_rgb
from fmcnet.errors import DataError
from fmcnet.files import write_atomically
from fmcnet.inference.encoder import load, parse_modality
from fmcnet.model.build import build_model
from fmcnet.model.checkpoint import CARD, WEIGHTS, read_card, weights_digest

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def list_images(sources: Sequence[str | Path]) -> list[Path]:
    """The images named, and those below the folders named, each folder's sorted by path.

    Raises:
        DataError: for a path that does not exist or a folder without images.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise DataError(f"{source} holds no images ({', '.join(SUFFIXES)})")
            found += inside
        elif source.is_file():
            found.append(source)
        else:
            raise DataError(f"no such image or folder: {source}")
    return found


def embed_files(
    run: str | Path,
    sources: Sequence[str | Path],
    modality: str,
    out: str | Path,
    *,
    batch: int = 64,
    normalize: bool = True,
    skip: bool = False,
    device: str = "auto",
) -> tuple[int, int]:
    """Embed images and write `features` (N, E) float32, `name` (N,) and `modality` to an `.npz`.

    Returns:
        (N, E).

    Raises:
        DataError: listing every image that cannot be read (nothing is written then), unless `skip` leaves them out.
    """
    out = Path(out)
    if out.is_dir() or out.suffix != ".npz":
        raise DataError(f"--out {out}: give the name of an .npz file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: {error.strerror}") from error
    kind = parse_modality(modality)
    encoder = load(run, device)
    paths = list_images(sources)
    faults: dict[Path, str] = {}
    for path in paths:
        try:
            open_rgb(path)
        except DataError as error:
            faults[path] = str(error)
    if faults:
        shown = "\n".join(f"  {fault}" for fault in list(faults.values())[:20])
        said = f"{len(faults)} of {len(paths)} images cannot be read:\n{shown}"
        if not skip or len(faults) == len(paths):
            raise DataError(said if skip else f"{said}\n--skip-unreadable leaves them out")
        logger.warning("left out: %s", said)
        paths = [path for path in paths if path not in faults]
    features = encoder.encode(list(paths), kind, batch_size=batch, normalize=normalize)

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(
                stream,
                features=features,
                name=np.array([str(p) for p in paths]),
                modality=np.full(len(paths), kind.code, dtype=np.uint8),
            )

    write_atomically(out, write)
    return features.shape[0], features.shape[1]


def describe_run(run: str | Path) -> dict[str, Any]:
    """What a run is, as a flat dictionary with one nested "config".

    Of a run that is not finished its newest checkpoint is described: "finished" is False then.

    Raises:
        CheckpointError: when there is no model, or a damaged one.
    """
    folder = Path(run)
    if not (folder / CARD).is_file():
        stored = [
            p for p in (folder / "checkpoints").glob("step-*") if p.name.removeprefix("step-").isdecimal()
        ]
        newest = max(stored, key=lambda path: int(path.name.removeprefix("step-")), default=None)
        folder = newest or folder
    card = read_card(folder)
    model = build_model(card.config.model, card.classes)
    weights = folder / WEIGHTS
    return {
        "run": str(run),
        "variant": model.variant,
        "backbone": f"{card.config.model.arch}, width {card.config.model.width}",
        "input": f"{card.config.data.height} x {card.config.data.width} (H x W)",
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_on": card.dataset,
        "identities": card.classes,
        "step": card.step,
        "finished": folder == Path(run),
        "selected_on": card.selected,
        "similarity": card.similarity,
        "weights": str(weights),
        "weights_mib": round(weights.stat().st_size / 2**20, 1) if weights.is_file() else None,
        "weights_sha256": weights_digest(weights),
        "versions": card.versions,
        "config": card.config.model_dump(mode="json"),
    }
