"""What a training writes so that it can go on, and takes up again: checkpoints, the best weights, the model."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fmcnet.data.samplers import IdentityModalitySampler
from fmcnet.data.table import Table
from fmcnet.distributed import agree, from_main, gather, known_to_all, together
from fmcnet.errors import CheckpointError
from fmcnet.inference.fit_projection import add_discriminant
from fmcnet.models.card import PROJECTION
from fmcnet.models.checkpoint import ModelCard, save_pretrained
from fmcnet.models.fmcnet import FMCNet
from fmcnet.runtime import Runtime
from fmcnet.training.checkpointing import checkpoints, load_newest, process_state, recorded, save_checkpoint
from fmcnet.training.records import Records
from fmcnet.training.selection import ModelSelection
from fmcnet.training.train_step import Game

logger = logging.getLogger(__name__)


class Keeper:
    """The checkpoints of one training.

    Args:
        run: the run folder. place: this process. card: of the model, without its step.
        game, sampler, selection, records: whose state is kept.
        identity: what must not change between a checkpoint and its resume, beside the settings.

    Attributes:
        saved: when a checkpoint was last written or tried, `time.monotonic()` seconds.
    """

    def __init__(
        self,
        run: Path,
        place: Runtime,
        game: Game,
        card: ModelCard,
        sampler: IdentityModalitySampler,
        selection: ModelSelection,
        records: Records,
        identity: dict[str, Any],
    ) -> None:
        self._run, self._place, self._game, self._card = run, place, game, card
        self._sampler, self._selection, self._records = sampler, selection, records
        self._identity, self._steps = identity, int(identity["steps"])
        self.saved = 0.0

    def restore(self) -> int:
        """Take up the newest whole checkpoint; the number of steps done, 0 where there is none.

        Raises:
            CheckpointError: when it is of other data, steps or processes, or all are damaged.
        """
        with together(self._place):
            stored = load_newest(self._run, self._game, self._check_same)
        at = stored[0]["step"] if stored else 0
        if any(agree([at != int(from_main(torch.tensor([at]), self._place))], self._place)):
            raise known_to_all(
                CheckpointError(
                    f"the processes do not find the same checkpoint in {self._run}: all must see one folder"
                )
            )
        if stored is None:
            if self._place.main:
                logger.info("there is no checkpoint in %s: starting from the first step", self._run)
            return 0
        facts, extra = stored
        self._records.terms = facts["terms"]
        with together(self._place):
            self._selection.restore(facts["selection"])
        if "neighbors" in extra:
            self._sampler.neighbors = extra["neighbors"].numpy()
        if self._place.main:
            if facts["step"] == self._steps:
                logger.info("%s had finished already: writing its model again", self._run)
            else:
                logger.info("resuming %s from step %d of %d", self._run, facts["step"], self._steps)
        return int(facts["step"])

    def _check_same(self, facts: dict[str, Any]) -> None:
        names = {
            "data": "other images or identities",
            "processes": "another number of processes",
            "steps": "other steps",
            "precision": "another precision",
            "device": "another kind of device",
            "pixels": "images that looked different",
            "discriminators": "another optimiser of the discriminators",
        }
        now = self._identity
        changed = [
            f"{names[key]} ({facts.get(key, 'not recorded')} there, {now[key]} now)"
            for key in now
            if facts.get(key) != now[key]
        ]
        if changed:
            raise CheckpointError(
                f"{self._run} cannot be resumed exactly: it was made with {', '.join(changed)}"
            )

    def keep_best(self, done: int) -> None:
        """Write the best weights, if they were found just now.

        Raises:
            CheckpointError: they cannot be made up for, so without them the training ends.
        """
        try:
            self._selection.keep()
        except OSError as error:
            raise CheckpointError(
                f"the best weights so far, of step {done}, could not be written into {self._run / 'checkpoints'}: "
                f"{error.strerror or error}: make room, then go on from the last checkpoint with --resume"
            ) from error

    def save(self, done: int, must: bool) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: it cannot be written and must be; else that is a warning.
        """
        with together(self._place):
            self._save_or_warn(done, must)

    def _save_or_warn(self, done: int, must: bool) -> None:
        facts = {"terms": self._records.terms, "selection": self._selection.facts(), **self._identity}
        neighbors = self._sampler.neighbors
        extra = {} if neighbors is None else {"neighbors": torch.from_numpy(neighbors)}
        self.saved = time.monotonic()
        everybody = gather(process_state(self._game), self._place)
        if not self._place.main:
            return
        try:
            if self._records.log:  # a checkpoint beyond the log's end would leave a gap there
                self._records.log.flush()
            card = replace(self._card, step=done)
            keep = self._card.config.training.keep
            save_checkpoint(self._run, done, self._game, everybody, card, facts, keep=keep, extra=extra)
        except OSError as error:
            good = checkpoints(self._run)
            said = (
                f"no checkpoint of step {done} could be written into {self._run / 'checkpoints'}: "
                f"{error.strerror or error}. {f'The last one is {good[-1].name}' if good else 'There is none yet'}"
            )
            if must:
                raise CheckpointError(f"{said}: make room, then go on from there with --resume") from error
            logger.warning("%s; training goes on and tries again at the next", said)
            return
        self._selection.forget(recorded(self._run, "selection"))

    def selected(self) -> str:
        """How the weights were picked; the last, where nothing was ever validated."""
        return self._card.config.training.select if self._selection.best else "last"

    def write_model(self, exported: FMCNet) -> None:
        """Write the model that the run is of: the best, or the last, which is `exported`.

        Raises:
            CheckpointError: when it cannot be written.
        """
        chosen, at = self._selection.chosen(exported)
        final = replace(self._card, step=at or self._steps, selected=self.selected())
        try:
            save_pretrained(chosen, final, self._run)
        except OSError as error:
            raise CheckpointError(
                f"the model could not be written into {self._run}: {error.strerror or error}. Nothing is lost: "
                "make room, then the same command with --resume writes it"
            ) from error

    def write_projection(self, table: Table, progress: bool | None) -> None:
        """Learn what `model.descriptor=discriminant` asks for from the training images; keep it beside the model.

        Raises:
            CheckpointError: when it cannot be written.
        """
        try:
            add_discriminant(self._run, table, str(self._place.device), progress)
        except torch.OutOfMemoryError as error:
            raise CheckpointError(
                f"{PROJECTION} was not learnt: the GPU's memory does not hold the model again. Nothing is lost: the "
                "same command with --resume, and --device cpu if need be, learns it"
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"{PROJECTION} could not be written into {self._run}: {error.strerror or error}. Nothing is lost: "
                "make room, then the same command with --resume writes it"
            ) from error
