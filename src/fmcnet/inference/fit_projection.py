"""A model whose embeddings have fewer values, learnt from the identities that it was trained on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmcnet.data.table import Table, fingerprint, sample_images
from fmcnet.errors import DataError, FmcnetError
from fmcnet.files import write_json
from fmcnet.inference.calibration import CALIBRATION
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.projection import METHODS, Method, Projection, l2_normalize
from fmcnet.models.card import CARD, PROJECTION, WEIGHTS, ModelCard, model_digest
from fmcnet.models.shipped import check_target, refuse_shipped, replaced
from fmcnet.parsing import read_json
from fmcnet.types import NO_PID, FloatArray, IntArray


def project_model(
    source: str | Path,
    data: str | Path,
    *,
    dim: int,
    method: Method = "discriminant",
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool | None = None,
) -> tuple[Projection, Path]:
    """Learn a projection and write the model with it into a folder of its own, whole or not at all.

    What is written is another model: it has its own digest, and needs a gallery and a calibration of its own.

    Args:
        source: a run with weights, or a shipped model's name.
        data: a labelled dataset: a folder or CSV. Its training images are learnt from; of the dataset that the model
            was trained on, those of the identities that it was trained on.
        dim: D, values to keep, as that of `fit_projection`.
        method: "discriminant" or "pca", as that of `fit_projection`.
        out: the folder; None: `projected-DIM` in the model's folder.
        overwrite: replace an existing projected model.
        device: where to embed.
        progress: show a bar; None: on a terminal only.

    Returns:
        The projection and the folder.

    Raises:
        CheckpointError: when there is no model with weights, or `out` is not to be written to.
        DataError: when no image is of a training split, or there are too few for `dim`.
    """
    encoder = Encoder.from_pretrained(source, device=device, runtime="torch")
    assert encoder.folder is not None
    if encoder.projection is not None:
        raise FmcnetError(
            f"{source} is projected to {encoder.projection.dim} values already: give the model it was made from, or "
            "a run trained without model.descriptor=discriminant"
        )
    if out is None:
        refuse_shipped(source, encoder.folder, "FOLDER")
    target = Path(out) if out is not None else encoder.folder / f"projected-{dim}"
    check_target(
        target,
        "projected",
        lambda names: PROJECTION in names,
        {CARD, WEIGHTS, PROJECTION, CALIBRATION},
        overwrite,
        lambda: _describe_model(target),
    )
    table = learnt_from(encoder.card, encoder.read_dataset(data))
    projection = _learn_projection(encoder, table, dim, method, progress)
    with replaced(target) as folder:
        shutil.copy(encoder.folder / WEIGHTS, folder / WEIGHTS)
        card = read_json(encoder.folder / CARD)  # as it was written: the digest is of its settings
        card["start_samples"] = sorted({*card.get("start_samples", ()), *sample_images(table)})
        write_json(folder / CARD, card)
        projection.save(folder / PROJECTION)
    return projection, target


def add_discriminant(folder: Path, table: Table, device: str, progress: bool | None) -> None:
    """Write the projection of `model.descriptor=discriminant`, of all directions, beside the weights. Ours.

    `folder` is a run with weights, `table` the images it was trained on. An existing projection is replaced.

    Raises:
        DataError: when every person has one image only.
    """
    from fmcnet.distributed import pick_device
    from fmcnet.inference.backends import TorchBackend
    from fmcnet.models.checkpoint import load_pretrained_model

    (folder / PROJECTION).unlink(missing_ok=True)
    torch_device = pick_device(device)
    model, card = load_pretrained_model(folder, torch_device)
    encoder = Encoder(TorchBackend(model, torch_device), card, model_digest(folder), folder)
    _learn_projection(encoder, table, None, "discriminant", progress).save(folder / PROJECTION)


def _learn_projection(
    encoder: Encoder, table: Table, dim: int | None, method: Method, progress: bool | None
) -> Projection:
    batch = encoder.card.config.evaluation.batch
    features = encoder.embed_table(table, batch_size=batch, progress=progress).features
    persons = len(np.unique(table.pid))
    facts = {
        "table": table.name,
        "fingerprint": fingerprint(table),
        "images": len(table),
        "identities": persons,
    }
    num_values = min(features.shape[1], persons - 1) if dim is None else dim
    return replace(
        fit_projection(features, table.pid, num_values, method), source=encoder.digest, facts=facts
    )


def learnt_from(card: ModelCard, table: Table) -> Table:
    """The rows of a table that a projection is learnt from: no identity of a test set."""
    rows = table.select(split=card.config.data.train_splits)
    if card.data == fingerprint(table):
        rows = rows.take(np.isin(rows.pid, np.array(card.pids, dtype=np.int64)))
    if not len(rows):
        splits = " or ".join(card.config.data.train_splits)
        raise DataError(f"{table.origin} has no image of split {splits}, which a projection is learnt from")
    return rows


def _describe_model(folder: Path) -> str:
    projection = Projection.load(folder / PROJECTION)
    return f"model {model_digest(folder)} (model {projection.source} projected to {projection.dim} values)"


def fit_projection(
    features: FloatArray, pid: IntArray, dim: int, method: Method = "discriminant"
) -> Projection:
    """Learn a projection from descriptors of known persons.

    "pca": the directions of largest variance; `pid` is not used.

    "discriminant": linear discriminant analysis, weighted (ours). Its directions are those along which persons differ
    most, relative to how much images of one person do. On images that a model was trained on, the scatter within
    persons is too small. It is therefore averaged with an isotropic one of the same trace. Every direction is then
    weighted by b / (1 + b), where b is the variance between persons if that within is 1. Directions that do not
    separate persons thus add no noise to a cosine similarity.

    Args:
        features: (N, E), of any length but zero.
        pid: (N,) their identities.
        dim: D, values to keep: at most E, and N - 1 or, discriminant, one less than there are persons.
        method: "discriminant" or "pca".

    Raises:
        FmcnetError: for another method.
        DataError: when `dim` is too large, an identity is unknown, no person has two images, or the descriptors do
            not differ.
    """
    from scipy.linalg import eigh

    if method not in METHODS:
        raise FmcnetError(f"method '{method}': say {' or '.join(METHODS)}")
    if method != "pca" and (pid == NO_PID).any():
        raise DataError(f"{int((pid == NO_PID).sum())} descriptors have no identity: leave them out")
    _, person, images = np.unique(pid, return_inverse=True, return_counts=True)
    count, width = features.shape
    limit, available = (
        (count - 1, f"{count} images") if method == "pca" else (len(images) - 1, f"{len(images)} persons")
    )
    if not 0 < dim <= min(width, limit):
        hint = "" if method == "pca" else "; --method pca knows no such bound"
        raise DataError(
            f"{dim} values cannot be learnt from descriptors of {width} values, {available}: at most "
            f"{min(width, limit)}" + (hint if dim <= width else "")
        )
    units = l2_normalize(features)
    mean = units.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = units - mean
    largest = (width - dim, width - 1)
    if method == "pca":
        _, vectors = eigh(_scatter(centred), subset_by_index=largest)
        return Projection(mean, vectors[:, ::-1].astype(np.float32), method)
    if images.max() < 2:
        raise DataError("every person has one image only: nothing shows how images of one person differ")
    order = np.argsort(person, kind="stable")
    sums = np.add.reduceat(centred[order], np.cumsum(images) - images, axis=0, dtype=np.float64)
    means = (sums / images[:, None]).astype(np.float32)
    within = _scatter(centred - means[person])
    regularized = (within + np.eye(width) * (np.trace(within) / width)) / 2
    try:
        between, vectors = eigh(_scatter(means), regularized, subset_by_index=largest)
    except np.linalg.LinAlgError as error:
        raise DataError(
            "the descriptors do not differ (or are no numbers), so nothing can be learnt from them: train the model "
            "longer, or with a lower training.lr"
        ) from error
    weighted = vectors * (between / (1 + between)).clip(min=0)
    return Projection(mean, weighted[:, ::-1].astype(np.float32), method)


def _scatter(rows: FloatArray) -> NDArray[np.float64]:
    """The mean (E, E) of the outer products of rows (N, E)."""
    return (rows.T @ rows).astype(np.float64) / len(rows)
