"""What a model is: its data, size, settings and versions (`fmcnet info`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmcnet.errors import CheckpointError
from fmcnet.files import file_digest
from fmcnet.inference.backends import EXPORT_MANIFEST, read_manifest
from fmcnet.inference.calibration import CALIBRATION
from fmcnet.inference.projection import Projection
from fmcnet.models.card import CARD, PROJECTION, WEIGHTS, ModelCard, read_card
from fmcnet.models.shipped import find_model


def model_info(run: str | Path) -> dict[str, Any]:
    """What a run is, as a flat dictionary with one nested "config".

    "weights_sha256" is the SHA-256 of the weights' names, types, shapes and values, equal for the same model in
    another file; "weights_file_sha256" that of the file, as `sha256sum` gives it.

    Of a run that is not finished its newest checkpoint is described: "finished" is False then.

    Raises:
        CheckpointError: when there is no model, or a damaged one.
    """
    folder = find_model(run)
    if not (folder / CARD).is_file():
        checkpoints = [
            p for p in (folder / "checkpoints").glob("step-*") if p.name.removeprefix("step-").isdecimal()
        ]
        newest = max(checkpoints, key=lambda path: int(path.name.removeprefix("step-")), default=None)
        folder = newest or folder
    card = read_card(folder)
    exported = (folder / EXPORT_MANIFEST).is_file() and not (folder / WEIGHTS).is_file()
    return {
        "run": str(run),
        **(_describe_export(folder, card) if exported else _describe_weights(folder, card)),
        "backbone": f"{card.config.model.arch}, width {card.config.model.width}",
        "input": f"{card.config.data.height} x {card.config.data.width} (H x W)",
        "trained_on": card.dataset,
        "identities": card.classes,
        "step": card.step,
        **({"adapted": _adapted_text(card.adapted)} if card.adapted else {}),
        "finished": folder == find_model(run),
        "selected_on": card.selected,
        "similarity": card.similarity,
        "calibrated": (folder / CALIBRATION).is_file(),
        "versions": card.versions,
        "config": card.config.model_dump(mode="json"),
    }


def _describe_weights(folder: Path, card: ModelCard) -> dict[str, Any]:
    from fmcnet.models.checkpoint import build_described, weights_digest

    weights, projected = folder / WEIGHTS, {}
    model = build_described(card, weights)
    if (folder / PROJECTION).exists():
        projection = Projection.load(folder / PROJECTION)
        projected = {
            "embedding": projection.dim,
            "projected_from": f"{len(projection.mean)} values of model {projection.source}, {projection.method}",
        }
    return {
        "variant": model.variant,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": str(weights),
        "weights_mib": round(weights.stat().st_size / 2**20, 1),
        "weights_sha256": weights_digest(weights),  # of names and tensors
        "weights_file_sha256": file_digest(weights),
        **projected,
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


def _adapted_text(adapted: dict[str, Any]) -> str:
    try:
        images = ", ".join(f"{count:,} {modality}" for modality, count in adapted["images"].items())
        return f"from model {adapted['source']} by statistics of {images} images"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{CARD} is damaged: adapted = {adapted!r:.60}") from error
