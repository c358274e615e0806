"""What `fmcnet embed` writes and `fmcnet info` says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.data.depth import Remarks, ValueRange
from fmcnet.data.listing import Ignored
from fmcnet.errors import DataError
from fmcnet.files import write_atomically
from fmcnet.inference.calibration.calibration import CALIBRATION
from fmcnet.inference.encoder import load
from fmcnet.inference.images import list_images, parse_modality
from fmcnet.inference.onnx_engine import MANIFEST, read_manifest
from fmcnet.inference.projection import Projection
from fmcnet.inference.shipped import find_model
from fmcnet.models.card import CARD, PROJECTION, WEIGHTS, ModelCard, read_card


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
    value_range: ValueRange | None = None,
    remarks: Remarks | None = None,
    ignored: list[Ignored] | None = None,
) -> tuple[int, int]:
    """Embed images and write `features` (N, E) float32, `name` (N,) and `modality` to an `.npz`.

    Args:
        run, sources, modality: model, images and folders, and what the images are.
        out: the file to write.
        batch, normalize, value_range, remarks: as `Encoder.encode`.
        skip: leave out what cannot be read.
        device: where to compute.
        ignored: gets what lies in the folders and is no image.

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
    paths = list_images(sources, ignored)
    try:
        found = encoder.encode(
            paths,
            kind,
            batch_size=batch,
            normalize=normalize,
            on_error="skip" if skip else "raise",
            value_range=value_range,
            remarks=remarks,
        )
    except DataError as error:
        raise error if skip else DataError(f"{error}\n--skip-unreadable leaves them out") from error

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, features=found.features, name=found.name, modality=found.modality)

    write_atomically(out, write)
    return found.features.shape[0], found.features.shape[1]


def describe_run(run: str | Path) -> dict[str, Any]:
    """What a run is, as a flat dictionary with one nested "config".

    Of a run that is not finished its newest checkpoint is described: "finished" is False then.

    Raises:
        CheckpointError: when there is no model, or a damaged one.
    """
    folder = find_model(run)
    if not (folder / CARD).is_file():
        stored = [
            p for p in (folder / "checkpoints").glob("step-*") if p.name.removeprefix("step-").isdecimal()
        ]
        newest = max(stored, key=lambda path: int(path.name.removeprefix("step-")), default=None)
        folder = newest or folder
    card = read_card(folder)
    exported = (folder / MANIFEST).is_file() and not (folder / WEIGHTS).is_file()
    return {
        "run": str(run),
        **(_describe_export(folder, card) if exported else _describe_weights(folder, card)),
        "backbone": f"{card.config.model.arch}, width {card.config.model.width}",
        "input": f"{card.config.data.height} x {card.config.data.width} (H x W)",
        "trained_on": card.dataset,
        "identities": card.classes,
        "step": card.step,
        **({"adapted": _said(card.adapted)} if card.adapted else {}),
        "finished": folder == find_model(run),
        "selected_on": card.selected,
        "similarity": card.similarity,
        "calibrated": (folder / CALIBRATION).is_file(),
        "versions": card.versions,
        "config": card.config.model_dump(mode="json"),
    }


def _describe_weights(folder: Path, card: ModelCard) -> dict[str, Any]:
    from fmcnet.models.build import build_model
    from fmcnet.models.checkpoint import weights_digest

    model = build_model(card.config.model, card.classes)
    weights = folder / WEIGHTS
    return {
        "variant": model.variant,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": str(weights),
        "weights_mib": round(weights.stat().st_size / 2**20, 1) if weights.is_file() else None,
        "weights_sha256": weights_digest(weights),
        **_describe_projection(folder / PROJECTION),
    }


def _describe_projection(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    found = Projection.load(path)
    return {
        "embedding": found.dim,
        "projected_from": f"{len(found.mean)} values of model {found.source}, {found.method}",
    }


def _describe_export(folder: Path, card: ModelCard) -> dict[str, Any]:
    manifest = read_manifest(folder)
    sizes = [(folder / name).stat().st_size for name in manifest.sha256 if (folder / name).is_file()]
    return {
        "variant": card.config.model.variant,
        "runtime": f"ONNX Runtime, {manifest.precision}",
        "kept_in_float": len(manifest.kept),
        "embedding": manifest.dim,
        "graphs": ", ".join(manifest.sha256),
        "weights_mib": round(sum(sizes) / 2**20, 1),
        "made_from": manifest.source,
    }


def _said(adapted: dict[str, Any]) -> str:
    images = ", ".join(f"{count:,} {modality}" for modality, count in adapted["images"].items())
    return f"from model {adapted['source']} by statistics of {images} images"
