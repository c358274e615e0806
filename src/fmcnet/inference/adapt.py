"""A model adapted to a pair of cameras: its statistics, estimated from unlabelled images of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmcnet.data.pixels import RANGE_UNUSED, Remarks, ValueRange
from fmcnet.errors import DataError, FmcnetError
from fmcnet.files import file_key
from fmcnet.inference.backends import TorchBackend
from fmcnet.inference.calibration import CALIBRATION
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.image_input import Fault, ImageLike, Item, expand, list_faults
from fmcnet.models.card import CARD, WEIGHTS, ModelCard, model_digest, read_card
from fmcnet.models.shipped import check_target, replaced
from fmcnet.types import NO_CAMERA, FloatArray, IntArray, Modality

if TYPE_CHECKING:
    from torch import Tensor

    from fmcnet.data.table import Table
    from fmcnet.models.fmcnet import FMCNet
    from fmcnet.models.normalization import FeatureNorm

logger = logging.getLogger(__name__)

MIN_IMAGES = 16
"""Fewest images of each modality that statistics are estimated from."""
MIN_DIFFERENT_IMAGES = 4
"""Fewest different images of each modality: copies of one differ by rounding errors only."""


@dataclass(frozen=True)
class Crops:
    """Unlabelled images of a pair of cameras.

    Attributes:
        images: paths, Pillow images, arrays or tensors, N of them.
        modality: of each image, (N,).
        camera: of each image, (N,) int64; `NO_CAMERA` where unknown. Cameras of one modality have equal weight,
            however many images each has.
    """

    images: Sequence[ImageLike]
    modality: Sequence[Modality]
    camera: IntArray

    @staticmethod
    def of(visible: ImageLike | Iterable[ImageLike], infrared: ImageLike | Iterable[ImageLike]) -> Crops:
        """Crops of two modalities.

        Args:
            visible: one or several paths, folders, Pillow images, arrays or tensors.
            infrared: the same of the other modality.

        Returns:
            The crops, of unknown cameras. A file of several paths or links is taken once, with a warning.

        Raises:
            DataError: for a modality without an image, or files given as both.
        """
        both = [_by_file(expand(visible, Modality.VISIBLE)), _by_file(expand(infrared, Modality.INFRARED))]
        if conflicting := [item.name for key, item in both[0].items() if key in both[1]]:
            raise DataError(
                f"{len(conflicting)} files are given as visible and as infrared, the first is {conflicting[0]}: "
                "give crops of each camera once"
            )
        items = [item for by_file in both for item in by_file.values()]
        cameras = np.full(len(items), NO_CAMERA, dtype=np.int64)
        return Crops([item.source for item in items], [item.modality for item in items], cameras)

    @staticmethod
    def of_table(table: Table) -> Crops:
        """All images of a dataset.

        Args:
            table: the dataset; its identities are not used.
        """
        modalities = [Modality.from_code(code) for code in table.modality.tolist()]
        return Crops(table.full_paths(), modalities, table.camid)


def _by_file(items: Sequence[Item]) -> dict[Hashable, Item]:
    """The items by their file, each file once; images that are no files by their place."""
    by_file: dict[Hashable, Item] = {}
    for place, item in enumerate(items):
        key: Hashable = (item.modality, place)
        if isinstance(item.source, (str, Path)):
            key = item.source
            with contextlib.suppress(OSError):  # told when it is read
                key = file_key(Path(item.source))
        by_file.setdefault(key, item)
    if copies := len(items) - len(by_file):
        logger.warning(
            "%d of %d images are files given before, or links to them: left out", copies, len(items)
        )
    return by_file


@dataclass(frozen=True)
class Adapted:
    """What `adapt_model` did.

    Attributes:
        folder: of the adapted model.
        digest: of the adapted model.
        source: digest of the model that it was made from.
        images: number of images used, by modality.
        cameras: number of known cameras, by modality.
        left_out: images that cannot be read.
    """

    folder: Path
    digest: str
    source: str
    images: dict[str, int]
    cameras: dict[str, int]
    left_out: tuple[Fault, ...]


def adapt_model(
    source: str | Path,
    crops: Crops,
    out: str | Path,
    *,
    overwrite: bool = False,
    batch: int = 64,
    device: str = "auto",
    progress: bool | None = None,
    value_range: ValueRange | None = None,
) -> Adapted:
    """Estimate a model's statistics from unlabelled images and write it as a model of its own, whole or not at all.

    Two things are estimated, each by modality: the running statistics of `model.normalization=modality`, if the
    model has it, and mean and deviation of each value of the descriptor. No weight changes. What is written has its
    own digest, and needs a gallery and a calibration of its own.

    Args:
        source: a run with weights, or a shipped model's name. It may be adapted before.
        crops: of both modalities, at least `MIN_IMAGES` of each. Images that cannot be read are left out and named.
        out: the folder to write.
        overwrite: replace an existing adapted model.
        batch: images at once.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        progress: show a bar; None: on a terminal only.
        value_range: as that of `Encoder.encode`; take the one that galleries of the model are indexed with.

    Returns:
        The folder, its digest, and what was used.

    Raises:
        CheckpointError: when there is no model with weights, or `out` is not to be written to.
        DataError: for too few images of a modality, or images that do not differ.
        FmcnetError: for a projected model.
    """
    from fmcnet.models.build import build_model
    from fmcnet.models.checkpoint import load_weights, save_pretrained

    encoder = Encoder.from_pretrained(source, device=device, runtime="torch")
    if encoder.projection is not None:
        raise FmcnetError(
            f"{source} is projected to {encoder.projection.dim} values, which its statistics would not fit: adapt "
            "the model that it was made from, then project that"
        )
    target = Path(out)
    check_target(
        target,
        "adapted",
        lambda names: CARD in names and bool(read_card(target).adapted),
        {CARD, WEIGHTS, CALIBRATION},
        overwrite,
        lambda: "an adapted model",
    )
    _check_count(crops.modality)
    card, source_digest = encoder.card, encoder.digest
    model = _standardized(encoder)
    del encoder  # its weights
    options = {"batch_size": batch, "progress": progress, "value_range": value_range}
    with model.unstandardized():
        features, rows, faults = _adapt_norms_and_encode(model, card, crops, options)
    _check_count([crops.modality[row] for row in rows], faults, len(crops.images))
    images, cameras = _set_standard(model, features, rows, crops)
    if faults:
        logger.warning("left out: %s", list_faults(faults, len(crops.images)))
    settings = card.config.model.model_copy(update={"standardized": True})
    adapted = replace(
        card,
        config=card.config.model_copy(update={"model": settings}),
        adapted={"source": source_digest, "images": images, "cameras": cameras},
    )
    with replaced(target) as folder:
        save_pretrained(model, adapted, folder)
        load_weights(build_model(settings, card.classes), folder / WEIGHTS)
    return Adapted(target, model_digest(target), source_digest, images, cameras, tuple(faults))


def _standardized(encoder: Encoder) -> FMCNet:
    """A copy of a model that standardises its descriptor, in evaluation mode."""
    from fmcnet.models.build import build_model

    settings = encoder.card.config.model.model_copy(update={"standardized": True})
    model = build_model(settings, encoder.card.classes)
    keys = model.load_state_dict(encoder.model.state_dict(), strict=False)
    assert not keys.unexpected_keys
    assert set(keys.missing_keys) <= {"standard.mean", "standard.std"}
    return model.to(encoder.device).eval()


def _set_standard(
    model: FMCNet, features: FloatArray, rows: IntArray, crops: Crops
) -> tuple[dict[str, int], dict[str, int]]:
    """Set mean and deviation of the descriptors (N', E) of some crops; returns images and cameras by modality."""
    import torch

    assert model.standard is not None
    codes = np.array([crops.modality[row].code for row in rows])
    images: dict[str, int] = {}
    cameras: dict[str, int] = {}
    for modality in Modality:
        selected = codes == modality.code
        camera = crops.camera[rows][selected]
        images[str(modality)] = len(camera)
        cameras[str(modality)] = len({*camera.tolist()} - {NO_CAMERA})
        mean, variance = moments(features[selected], camera)
        _check_different(features[selected], modality)
        model.standard.set(modality, torch.from_numpy(mean), torch.from_numpy(variance))
    return images, cameras


def moments(values: FloatArray, camera: IntArray) -> tuple[FloatArray, FloatArray]:
    """Mean and variance (E,) float32 of rows (N, E), with equal weight for each `camera` (N,)."""
    _, index, count = np.unique(camera, return_inverse=True, return_counts=True)
    weight = (1.0 / count)[index] / len(count)
    doubles = values.astype(np.float64)
    mean = weight @ doubles
    variance = weight @ (doubles - mean) ** 2
    return mean.astype(np.float32), variance.astype(np.float32)


def _adapt_norms_and_encode(
    model: FMCNet, card: ModelCard, crops: Crops, options: dict[str, Any]
) -> tuple[FloatArray, IntArray, list[Fault]]:
    """Set the statistics of `FeatureNorm`; then return descriptors (N', E), their rows, and faults.

    `options` are of `Encoder.encode`.
    """
    import torch

    from fmcnet.models.normalization import watch_norms

    encoder = Encoder(TorchBackend(model, model.mean.device), card)
    recorded: dict[tuple[FeatureNorm, Modality], list[FloatArray]] = {}

    def record(norm: FeatureNorm, modality: Modality, features: Tensor) -> None:
        recorded.setdefault((norm, modality), []).append(features.float().cpu().numpy())

    remarks = Remarks()
    with watch_norms(model, record):
        features, rows, faults = _encode(encoder, crops, remarks, options)
    for line in remarks.lines():
        logger.warning("%s", line)
    if options["value_range"] is not None and not remarks.ranged():
        logger.warning("%s", RANGE_UNUSED)
    if not recorded:
        return features, rows, faults
    camera = crops.camera[rows]
    codes = np.array([crops.modality[row].code for row in rows])
    for (norm, modality), parts in recorded.items():
        mean, variance = moments(np.concatenate(parts), camera[codes == modality.code])
        norm.set(modality, torch.from_numpy(mean), torch.from_numpy(variance))
    return _encode(encoder, crops, Remarks(), options)  # they are logged already


def _encode(
    encoder: Encoder, crops: Crops, remarks: Remarks, options: dict[str, Any]
) -> tuple[FloatArray, IntArray, list[Fault]]:
    faults: list[Fault] = []
    settings: dict[str, Any] = {"normalize": False, "on_error": faults.append, "remarks": remarks, **options}
    embeddings = encoder.encode(crops.images, crops.modality, **settings)
    rows = np.setdiff1d(np.arange(len(crops.images)), [fault.position for fault in faults])
    return embeddings.features, rows.astype(np.int64), faults


def _check_different(features: FloatArray, modality: Modality) -> None:
    """Refuse, or warn of, descriptors (N, E) of one modality with few different rows, rounding errors aside."""
    scale = float(np.sqrt((features**2).mean()))
    num_different = len(np.unique(np.round(features / max(scale, 1e-12), 3), axis=0))
    if num_different < MIN_DIFFERENT_IMAGES:
        raise DataError(f"the {modality} images do not differ: give images of several people")
    if num_different < MIN_IMAGES:
        logger.warning(
            "only %d of %d %s images differ: some hundred of several people do better",
            num_different,
            len(features),
            modality,
        )


def _check_count(modalities: Sequence[Modality], faults: Sequence[Fault] = (), total: int = 0) -> None:
    for modality in Modality:
        count = sum(entry is modality for entry in modalities)
        if count < MIN_IMAGES:
            details = f"\n{list_faults(faults, total)}" if faults else ""
            raise DataError(
                f"{count or 'no'} {modality} image{'s' * (count != 1)}: adapting needs at least {MIN_IMAGES} of each "
                f"modality, and some hundred do better{details}"
            )
