"""Validation, the weights and the projection of a run, and the statistics of descriptors for search."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fmcnet.config import Config
from fmcnet.data.cache import ImageCache
from fmcnet.data.loader import TrainingBatch
from fmcnet.data.table import Table, fingerprint
from fmcnet.distributed import DistributedContext
from fmcnet.errors import CheckpointError, DataError
from fmcnet.evaluation import protocols
from fmcnet.evaluation.evaluate import evaluate
from fmcnet.inference.backends import TorchBackend
from fmcnet.inference.embed import embed_shared
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.fit_projection import add_discriminant
from fmcnet.models.card import PROJECTION, WEIGHTS, ModelCard
from fmcnet.models.checkpoint import load_weights, save_pretrained
from fmcnet.models.fmcnet import FMCNet
from fmcnet.models.normalization import feature_norms, watch_norms
from fmcnet.types import Modality

logger = logging.getLogger(__name__)

STATISTICS_BATCHES = 50
"""Maximum number of batches for statistics: 3,200 images with the generated benchmark's batches of 64. A smaller
training set is read once."""


@contextmanager
def writing(what: str, folder: Path, then: str) -> Iterator[None]:
    """Turn a disk error into a message that says how to continue."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{what} could not be written into {folder}: {error.strerror or error}. Nothing is lost: make room, then "
            f"the same command with --resume {then}"
        ) from error


class ModelSelection:
    """Validates every `training.validate_every` epochs and keeps the best weights.

    The measure is mAP of infrared queries in a visible gallery, over the identities of split "val" (see `hold_out`).
    With `training.select=test` the test identities take their place, and every report of the run says so.

    Raises:
        DataError: when the identities to validate on are missing or too few.
    """

    def __init__(self, config: Config, table: Table, run: Path, ctx: DistributedContext) -> None:
        self.select, self.every = config.training.select, config.training.validate_every
        self.batch, self.ctx, self.folder = config.evaluation.batch, ctx, run / "checkpoints"
        # mAP and step of the best weights so far, for the checkpoint; empty before the first validation, and always
        # with training.select=last
        self.best: dict[str, float] = {}
        self.digest: str | None = None  # of the images to validate on
        self._unsaved: tuple[FMCNet, ModelCard] | None = None
        self.rows: Table | None = None
        if not self.every:
            return
        if self.select != "last" and self.every > config.training.epochs and ctx.main:
            logger.warning(
                "training.select=%s: no epoch is validated, because training.validate_every=%d is more than "
                "training.epochs=%d, so the last weights are kept",
                self.select,
                self.every,
                config.training.epochs,
            )
        split = "test" if self.select == "test" else "val"
        rows = table.select(split=split)
        seen = [{*rows.select(modality=modality).pid.tolist()} for modality in Modality]
        if (both := len(set.intersection(*seen))) < 2:  # of one every order is right
            raise DataError(
                f"validation needs two '{split}' identities, each seen in both modalities, and {table.origin} has "
                f"{both or 'none'}: set training.validate_every=0 and training.select=last, or data.val_share above 0"
            )
        if len(rows) < ctx.world:
            raise DataError(f"{len(rows)} '{split}' images cannot be shared by {ctx.world} processes")
        data = config.data
        # Raises now when an image cannot be read.
        cache = ImageCache(rows, data.height, data.width, folder=data.cache, progress=False)
        self.digest = f"{fingerprint(rows, rows.modality.astype(str))} {cache.digest()}"
        self.rows = rows

    def due(self, epoch: int) -> bool:
        """Return whether to validate after `epoch` (1-based)."""
        return bool(self.every) and epoch % self.every == 0

    def validate(self, model: FMCNet, card: ModelCard) -> dict[str, Any]:
        """Measure a model, and keep it for `write` if it is the best so far.

        Every process must call, with a model in evaluation mode, and embeds its share of the images. `card` has the
        number of steps done. Returns the log's record on rank 0, nothing elsewhere.
        """
        assert self.rows is not None
        encoder = Encoder(TorchBackend(model, self.ctx.device), card)
        embeddings = embed_shared(encoder, self.rows, self.ctx, batch_size=self.batch, progress=False)
        if embeddings is None:
            return {}
        protocol = protocols.custom(query=Modality.INFRARED, gallery=Modality.VISIBLE, name="validation")
        metrics = evaluate(embeddings, protocol).mean
        if self.select != "last" and metrics["mAP"] > self.best.get("mAP", -1.0):
            self.best = {"mAP": metrics["mAP"], "step": card.step}
            self._unsaved = model, card
        return {"validated_step": card.step, "mAP": metrics["mAP"], "rank1": metrics["rank1"]}

    def write(self) -> None:
        """Write the best weights, if they are new (rank 0); without them the training cannot continue."""
        if self._unsaved is not None:
            model, card = self._unsaved
            with writing(f"the best weights so far, of step {card.step},", self.folder, "goes on"):
                save_pretrained(model, card, self._best(card.step))
            self._unsaved = None

    def _best(self, step: float) -> Path:
        return self.folder / f"best-{int(step):06d}"

    def forget(self, recorded: Iterable[dict[str, float]]) -> None:
        """Remove earlier best weights that no checkpoint refers to; `recorded` is `best` of every checkpoint."""
        referenced = {self._best(best["step"]) for best in recorded if best}
        for folder in self.folder.glob("best-*"):
            if folder not in referenced:
                shutil.rmtree(folder, ignore_errors=True)

    def restore(self, best: dict[str, float]) -> None:
        """Restore `best` from a checkpoint; raises `CheckpointError` when the weights that it names are missing."""
        self.best = dict(best)
        if best and not ((folder := self._best(best["step"])) / WEIGHTS).is_file():
            raise CheckpointError(
                f"{folder}, the best weights so far, are gone: bring them back, or train anew into another folder"
            )

    @property
    def selected(self) -> str:
        """How the weights were selected: "val" or "test"; "last" as long as there are no best ones."""
        return self.select if self.best else "last"

    @torch.no_grad()
    def write_model(self, model: FMCNet, card: ModelCard, run: Path) -> None:
        """Write the model of the run: the best weights if some were selected, otherwise the last, `model`."""
        card = replace(card, selected=self.selected)
        if self.best:
            load_weights(model.cpu(), self._best(self.best["step"]) / WEIGHTS)
            card = replace(card, step=int(self.best["step"]))
        with writing("the model", run, "writes it"):
            save_pretrained(model, card, run)


def write_projection(run: Path, table: Table, device: torch.device, progress: bool | None) -> None:
    """Fit the projection of `model.descriptor=discriminant` to the training images and write it."""
    try:
        with writing(PROJECTION, run, "writes it"):
            add_discriminant(run, table, str(device), progress)
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"{PROJECTION} was not learnt: the GPU's memory does not hold the model again. Nothing is lost: the "
            "same command with --resume, and --device cpu if need be, learns it"
        ) from error


@torch.no_grad()
def estimate_statistics(model: FMCNet, load: Callable[[], Iterable[TrainingBatch]], world: int = 1) -> None:
    """Replace the statistics of every `FeatureNorm`, then those of a standardised descriptor. Ours.

    During training, those of `FeatureNorm` are running averages over a few noisy, augmented batches. Their error is
    a difference between the modalities (docs/findings.md).

    Args:
        model: in evaluation mode; everything else stays as it is.
        load: gives the same batches of images without augmentation at each call.
        world: number of processes; the statistics are over all of them (each process must call).

    Raises:
        ValueError: when the model is in training mode, whose features depend on the batch.
    """
    if model.training:
        raise ValueError("statistics are of a model in evaluation mode: call model.eval() before")
    norms = feature_norms(model)
    if norms:
        norm_moments = {(norm, modality): Moments(norm.dim) for norm in norms for modality in Modality}
        with watch_norms(model, lambda norm, modality, features: norm_moments[norm, modality].add(features)):
            for batch in load():
                model(batch.visible, batch.infrared)
        for (norm, modality), moments in norm_moments.items():
            norm.set(modality, *moments.read(world, model.mean.device))
    if (standard := model.standard) is not None:
        descriptor_moments = {modality: Moments(standard.mean.shape[1]) for modality in Modality}
        with model.unstandardized():
            for batch in load():
                descriptor_moments[Modality.VISIBLE].add(model.embed(batch.visible, Modality.VISIBLE))
                descriptor_moments[Modality.INFRARED].add(model.embed(batch.infrared, Modality.INFRARED))
        for modality, moments in descriptor_moments.items():
            standard.set(modality, *moments.read(world, model.mean.device))


class Moments:
    """Mean and variance of rows of `dim` values, added in batches."""

    def __init__(self, dim: int) -> None:
        self._sums = torch.zeros(3, dim, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Add rows (B, D)."""
        x = rows.cpu().double()  # float64 is not on every device
        self._sums += torch.stack([torch.full_like(x[0], len(x)), x.sum(0), x.square().sum(0)])

    def read(self, world: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased variance (D,) of the rows of all processes, float64 on the CPU."""
        sums = self._sums
        if world > 1:
            device_sums = sums.to(device)
            dist.all_reduce(device_sums)
            sums = device_sums.cpu()
        count, total, total_squares = sums
        mean = total / count
        return mean, (total_squares / count - mean.square()).clamp(min=0) * count / (count - 1).clamp(min=1)
