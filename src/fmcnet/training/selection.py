"""Which weights a training keeps: the last, the best on held-out identities, or (stamped) the best on test."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmcnet.config import Config
from fmcnet.data.cache import ImageCache, cache_folder
from fmcnet.data.table import Table
from fmcnet.distributed import DistributedContext
from fmcnet.errors import CheckpointError, DataError
from fmcnet.evaluation import protocols
from fmcnet.evaluation.evaluate import evaluate
from fmcnet.inference.backends import TorchBackend
from fmcnet.inference.embed import embed_shared
from fmcnet.inference.encoder import Encoder
from fmcnet.models.card import WEIGHTS, ModelCard
from fmcnet.models.checkpoint import load_weights, save_pretrained
from fmcnet.models.fmcnet import FMCNet
from fmcnet.types import Modality


def hold_out(table: Table, config: Config) -> Table:
    """Move a share of the training identities to the split "val", where validation needs some and there are none.

    RegDB, LLCM and most CSVs name no validation identities. The share is `data.val_share` of the training
    identities, drawn by `training.seed`.

    Returns:
        The new table; the same one without validation or with identities of split "val".
    """
    wanted = config.training.validate_every and config.training.select != "test"
    if not wanted or (table.split == "val").any() or not config.data.val_share:
        return table
    pids = np.unique(table.pid[table.split == "train"])
    count = max(1, round(config.data.val_share * len(pids)))
    held = np.random.default_rng(config.training.seed).permutation(pids)[:count]
    mask = (table.split == "train") & np.isin(table.pid, held)
    note = f"{count} of {len(pids)} training identities are held out for validation (data.val_share)"
    split = np.where(mask, "val", table.split.astype("<U5"))
    return replace(table, split=split, notes=(*table.notes, note))


class ModelSelection:
    """Validates every `training.validate_every` epochs and remembers the best weights.

    The measure is mAP of infrared queries in a visible gallery, over the identities of split "val" (see `hold_out`).
    With `training.select=test` the test identities take their place, and every report of the run says so.

    Args:
        config: all settings of the run.
        table: the whole dataset.
        run: the run folder.
        ctx: device and rank.

    Attributes:
        best: mAP and step of the best weights so far, for the checkpoint; empty before the first validation.

    Raises:
        DataError: when the identities to validate on are missing or too few.
    """

    def __init__(self, config: Config, table: Table, run: Path, ctx: DistributedContext) -> None:
        self.select, self.every = config.training.select, config.training.validate_every
        self.batch, self.ctx, self.folder = config.evaluation.batch, ctx, run / "checkpoints"
        self.best: dict[str, float] = {}
        self._unsaved: tuple[FMCNet, ModelCard] | None = None
        self.rows: Table | None = None
        if not self.every:
            return
        split = "test" if self.select == "test" else "val"
        rows = table.select(split=split)
        if not all(len(rows.select(modality=modality)) for modality in Modality):
            raise DataError(
                f"validation needs '{split}' identities seen in both modalities, and {table.root} has none: set "
                "training.validate_every=0 and training.select=last, or data.val_share above 0"
            )
        if len(rows) < ctx.world:
            raise DataError(f"{len(rows)} '{split}' images cannot be shared by {ctx.world} processes")
        folder = cache_folder(config.data.cache, table.root)
        # Raises now when an image cannot be read.
        ImageCache(rows, config.data.height, config.data.width, folder=folder, progress=False)
        self.rows = rows

    def due(self, epoch: int) -> bool:
        """Return whether to validate after `epoch` (1-based)."""
        return bool(self.every) and epoch % self.every == 0

    def validate(self, model: FMCNet, card: ModelCard, step: int) -> dict[str, Any]:
        """Measure, and remember the weights for `write` if they are the best so far.

        Every process must call, and embeds its share of the images.

        Args:
            model: in eval mode, with the same weights on all processes.
            card: of the model.
            step: steps done.

        Returns:
            The log's record; empty except on rank 0.
        """
        assert self.rows is not None
        encoder = Encoder(TorchBackend(model, self.ctx.device), card)
        embeddings = embed_shared(encoder, self.rows, self.ctx, batch_size=self.batch, progress=False)
        if embeddings is None:
            return {}
        protocol = protocols.custom(query=Modality.INFRARED, gallery=Modality.VISIBLE, name="validation")
        mean = evaluate(embeddings, protocol).mean
        if self.select != "last" and mean["mAP"] > self.best.get("mAP", -1.0):
            self.best = {"mAP": mean["mAP"], "step": step}
            self._unsaved = model, card
        return {"validated_step": step, "mAP": mean["mAP"], "rank1": mean["rank1"]}

    def write(self) -> None:
        """Write the best weights, if they are new (rank 0).

        Raises:
            OSError: when they cannot be written.
        """
        if self._unsaved is not None:
            model, card = self._unsaved
            save_pretrained(model, card, self._best(card.step))
            self._unsaved = None

    def _best(self, step: int) -> Path:
        return self.folder / f"best-{step:06d}"

    def forget(self, recorded: Iterable[dict[str, float]]) -> None:
        """Remove earlier best weights that no checkpoint names, given `best` of every checkpoint."""
        named = {self._best(int(best["step"])) for best in recorded if best}
        for old in self.folder.glob("best-*"):
            if old not in named:
                shutil.rmtree(old, ignore_errors=True)

    def restore(self, best: dict[str, float]) -> None:
        """Restore `best` from a checkpoint.

        Raises:
            CheckpointError: when the weights that it names are missing.
        """
        self.best = dict(best)
        if self.best and not (self._best(int(self.best["step"])) / WEIGHTS).is_file():
            raise CheckpointError(
                f"{self._best(int(self.best['step']))}, the best weights so far, are gone: bring them back, or train "
                "anew into another folder"
            )

    @torch.no_grad()
    def chosen(self, model: FMCNet) -> tuple[FMCNet, int | None]:
        """Load the selected weights into `model`; returns it and their step, None for the last weights."""
        if not self.best:
            return model, None
        model.cpu()
        load_weights(model, self._best(int(self.best["step"])) / WEIGHTS)
        return model, int(self.best["step"])
