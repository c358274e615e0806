"""Training batches: which images they hold (`IdentityModalitySampler`), and the images, augmented (`TrainingImages`).

sampler = IdentityModalitySampler(labels, table.modality, identities=8, images=4)
dataset = TrainingImages(cache.images, labels, table.modality, config.augment, seed=0, draws=8 * 4)
loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
for epoch in range(epochs):
    sampler.set_epoch(epoch)  # otherwise each epoch repeats the same batches
    for batch in loader:
        ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fmcnet.config import AugmentConfig, Config
from fmcnet.data.augmentation import AugmentationParams, augment_image, draw_params
from fmcnet.data.table import Table, hold_out
from fmcnet.distributed import seeded_generator
from fmcnet.errors import ConfigError, DataError
from fmcnet.types import IntArray, Modality

MAX_STEPS = 100_000
"""Most batches that an epoch may be set to: drawing them takes about 7 s and 300 MB, before its first step."""


class ImageIndex(NamedTuple):
    """One image of a batch: the sampler yields it, and `TrainingImages` takes it as the index of an item.

    An image's random augmentation is a function of the seed and of `batch` and `position`. It is therefore the same
    after a resume, and however many processes share a batch.
    """

    row: int  # of the table
    batch: int  # number of the batch, counted from the start of the training
    position: int  # among the images of its modality in the batch of all processes


class IdentityModalitySampler(Sampler[list[ImageIndex]]):
    """A batch sampler for `DataLoader`: P*K visible and then P*K infrared images of the same P identities.

    A batch is a function of (data, seed, epoch, step, rank). One draw is made for all ranks: `world * identities`
    distinct identities a step, of which each rank takes its own `identities`. Two ranks with P each therefore see the
    batches of one process with 2 P. Within an epoch identities come as one shuffled pass after another, so any two
    differ by at most one appearance. The images of an identity come in shuffled passes of their own.

    A loop of your own calls `sampler.set_epoch(epoch)` before each epoch: otherwise each repeats the same batches.

    Args:
        pid_labels: (N,) the identity of each row (any integers).
        modality: (N,) 0 visible, 1 infrared.
        identities: P, of one rank.
        images: K, of each identity and modality.
        seed: of all draws.
        rank: this process, 0..world-1.
        world: number of processes.
        steps: batches an epoch, at most `MAX_STEPS`; default: as many as it takes for as many draws as the larger
            modality has images, `ceil(max(N_visible, N_infrared) / (world * P * K))` over the identities in use.
        multiple: the default number of steps is rounded up to a multiple of it.

    Attributes:
        steps: batches an epoch.
        pids: the identities in use, ascending.
        notes: warnings for the user: identities left out, images repeated.

    Raises:
        DataError: when the arguments are out of range or too few identities have both modalities.
    """

    def __init__(
        self,
        pid_labels: NDArray[np.integer],
        modality: NDArray[np.integer],
        *,
        identities: int = 8,
        images: int = 4,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        steps: int | None = None,
        multiple: int = 1,
    ) -> None:
        if identities < 1 or images < 1 or (steps is not None and steps < 1):
            raise DataError(
                f"identities, images and steps must be at least 1, got {identities}, {images}, {steps}"
            )
        if steps is not None and steps > MAX_STEPS:
            raise DataError(
                f"an epoch of {steps:,} batches is too long, as all are drawn before its first step: take at most "
                f"{MAX_STEPS:,} (training.steps_per_epoch times training.accumulate) and more training.epochs"
            )
        if not 0 <= rank < world:
            raise DataError(f"rank {rank} is not among the {world} processes 0..{world - 1}")
        pid_labels, modality = np.asarray(pid_labels), np.asarray(modality)
        if pid_labels.shape != modality.shape or pid_labels.ndim != 1:
            raise DataError(
                f"one identity and one modality a row: got {pid_labels.shape} and {modality.shape}"
            )
        if unknown := {*np.unique(modality).tolist()} - {kind.code for kind in Modality}:
            raise DataError(
                f"modality is 0 (visible) or 1 (infrared) in each row, got {sorted(unknown)[0]!r}"
            )
        self.identities, self.images = identities, images
        self.seed, self.rank, self.world = seed, rank, world
        self._epoch = self._start = 0
        rows = [_rows_by_pid(pid_labels, np.flatnonzero(modality == kind.code)) for kind in Modality]
        self.pids = sorted(set(rows[0]) & set(rows[1]))
        self.notes = self._notes(rows)
        needed = identities * world
        if len(self.pids) < needed:
            ranks = f" x {world} processes" if world > 1 else ""
            feasible = len(self.pids) // world
            lower = f"lower the number of identities in a batch (data.identities) to {feasible} or less, or "
            advice = lower if feasible > 1 else ""
            raise DataError(
                f"a batch needs {identities} identities{ranks}, but only {len(self.pids)} of those to train on have "
                f"both visible and infrared images: {advice}give more training identities"
            )
        self._rows = [[by_pid[pid] for pid in self.pids] for by_pid in rows]
        larger = max(sum(map(len, half)) for half in self._rows)
        if steps is None:
            steps = ceil(larger / (needed * images * multiple)) * multiple
        self.steps = steps

    def __len__(self) -> int:
        return self.steps - self._start

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Make `__iter__` yield the batches of `epoch`, from step `start` on (to resume)."""
        self._epoch, self._start = epoch, start

    def __iter__(self) -> Iterator[list[ImageIndex]]:
        offset = self.rank * self.identities * self.images
        for step, halves in enumerate(self.batches(self._epoch, self._start), self._start):
            batch = self._epoch * self.steps + step
            yield [
                ImageIndex(row, batch, offset + position)
                for half in halves
                for position, row in enumerate(half.tolist())
            ]

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[IntArray, IntArray]]:
        """Yield the rows of the batches of an epoch, from step `start` on: visible and infrared, (P*K,) each.

        The halves are aligned: position `p * K + k` holds the k-th image of the p-th identity in both.
        """
        visible, infrared = self.plan(epoch)
        rank_slice = slice(self.rank * self.identities, (self.rank + 1) * self.identities)
        for step in range(start, self.steps):
            yield visible[step, rank_slice].reshape(-1), infrared[step, rank_slice].reshape(-1)

    def plan(self, epoch: int) -> tuple[IntArray, IntArray]:
        """Draw the rows of a whole epoch, all ranks: visible and infrared, each (steps, world * P, K)."""
        rng = np.random.default_rng([self.seed & (2**63 - 1), epoch])
        stream = _ShuffledStream(np.arange(len(self.pids)), rng)
        drawn = [stream.take(self.identities * self.world) for _ in range(self.steps)]
        halves = []
        for rows in self._rows:
            streams = [_ShuffledStream(identity_rows, rng) for identity_rows in rows]
            half = [[streams[identity].take(self.images) for identity in step] for step in drawn]
            halves.append(np.array(half))
        return halves[0], halves[1]

    def _notes(self, rows: Sequence[dict[int, IntArray]]) -> tuple[str, ...]:
        notes = []
        if left_out := len(set(rows[0]) ^ set(rows[1])):
            notes.append(f"{left_out} identities lack a modality and are left out of the batches")
        for by_pid, modality in zip(rows, Modality, strict=True):
            if repeated := sum(len(by_pid[pid]) < self.images for pid in self.pids):
                notes.append(
                    f"{repeated} of {len(self.pids)} identities have fewer than {self.images} {modality} images: "
                    "theirs are repeated within a batch"
                )
        return tuple(notes)


class _ShuffledStream:
    """Items in one shuffled pass after another; a draw holds no item twice unless there are too few."""

    def __init__(self, items: IntArray, rng: np.random.Generator) -> None:
        self._items, self._rng = items, rng
        self._remaining: list[int] = []

    def take(self, count: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < count:
            if not self._remaining:
                shuffled = self._items[self._rng.permutation(len(self._items))].tolist()
                # In a draw over two passes, items it has already go to the end of the second pass.
                self._remaining = sorted(shuffled, key=set(taken).__contains__)
            missing = count - len(taken)
            taken += self._remaining[:missing]
            self._remaining = self._remaining[missing:]
        return taken


def _rows_by_pid(pids: NDArray[np.integer], rows: IntArray) -> dict[int, IntArray]:
    """The rows of each identity, ascending."""
    order = rows[np.argsort(pids[rows], kind="stable")]
    unique_pids, starts = np.unique(pids[order], return_index=True)
    return dict(zip(unique_pids.tolist(), np.split(order, starts)[1:], strict=True))


class TrainingBatch(NamedTuple):
    """Two aligned halves of P*K images: visible and infrared (P*K, 3, H, W) uint8, labels (P*K,) int64."""

    visible: Tensor
    infrared: Tensor
    labels: Tensor


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Images of a training split, augmented; an item is an image (3, H, W) uint8 and its label.

    The index of an item is an `ImageIndex`, of which the batch and the position select the random numbers. So a
    `DataLoader` needs an `IdentityModalitySampler` as its `batch_sampler`.

    Args:
        images: (N, H, W, 3) uint8, usually memory-mapped.
        labels: (N,) int64.
        modality: (N,) 0 visible, 1 infrared.
        augment: strengths and probabilities.
        seed: of the augmentation.
        draws: images of one modality in a batch of all processes, P*K*world. Random numbers are drawn for all of
            them at once, so that they do not depend on the number of processes.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: IntArray,
        modality: NDArray[np.integer],
        augment: AugmentConfig,
        *,
        seed: int,
        draws: int,
    ) -> None:
        self._images, self._labels, self._modality = images, labels, modality
        self._augment, self._seed, self._draws = augment, seed, draws
        self._batch, self._params = -1, dict[int, AugmentationParams]()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: ImageIndex) -> tuple[Tensor, int]:
        if not isinstance(index, tuple):
            raise DataError(
                f"TrainingImages takes an ImageIndex, not {index!r}: give the DataLoader an IdentityModalitySampler "
                "as batch_sampler"
            )
        row, batch, position = index
        if position >= self._draws:
            raise DataError(
                f"a batch holds more than draws={self._draws} images of a modality: give draws=P*K*world"
            )
        if batch != self._batch:  # the items of a batch share its random numbers
            self._batch, self._params = batch, {kind.code: self._draw(batch, kind) for kind in Modality}
        params = self._params[int(self._modality[row])]
        image = augment_image(self._images[row], params, position, self._augment.pad)
        return torch.from_numpy(image).permute(2, 0, 1), int(self._labels[row])

    def _draw(self, batch: int, modality: Modality) -> AugmentationParams:
        generator = seeded_generator(torch.device("cpu"), self._seed, batch, modality.code)
        height, width = self._images.shape[1:3]
        return draw_params(self._draws, height, width, modality, self._augment, generator)


def collate(samples: Sequence[tuple[Tensor, int]]) -> TrainingBatch:
    """Stack samples in the sampler's order, P*K visible and then P*K infrared, into a batch."""
    # Stacked as (H, W, 3), the order in which they lie in memory: twice as quick, and channels_last.
    images = torch.stack([image.permute(1, 2, 0) for image, _ in samples]).permute(0, 3, 1, 2)
    visible, infrared = images.chunk(2)
    labels = torch.tensor([label for _, label in samples[: len(visible)]])
    return TrainingBatch(visible, infrared, labels)


def load_batches(
    dataset: TrainingImages, sampler: IdentityModalitySampler, device: torch.device, first: int, last: int
) -> Iterator[TrainingBatch]:
    """Yield batches `first` to `last - 1`, counted from the start of the training, on the device.

    One process loads: 64 images of 128x64 take 9 ms of a core. Worker processes would hold the lock of the run folder
    after a kill.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the default one would change the draws of own terms
    )
    while first < last:
        sampler.set_epoch(*divmod(first, sampler.steps))
        for batch in islice(loader, last - first):
            yield TrainingBatch(*(part.to(device, non_blocking=True) for part in batch))
            first += 1


def identities_of(config: Config, world: int) -> int:
    """P of one process: `data.identities`, or its share of them with `data.share=all`.

    Raises:
        ConfigError: when they cannot be shared out equally.
    """
    if config.data.share == "process":
        return config.data.identities
    if config.data.identities % world:
        raise ConfigError(
            f"data.identities={config.data.identities} cannot be shared by {world} processes (data.share=all): "
            f"take a multiple of {world}"
        )
    return config.data.identities // world


def make_sampler(
    config: Config, rows: Table, labels: IntArray, rank: int, world: int
) -> IdentityModalitySampler:
    """Build the sampler of process `rank` of `world`, for the images to train on and their `Table.labels`.

    `training.accumulate` batches in a row make a step of training. An epoch is a whole number of these.
    """
    accumulate = config.training.accumulate
    steps = config.training.steps_per_epoch
    return IdentityModalitySampler(
        labels,
        rows.modality,
        identities=identities_of(config, world),
        images=config.data.images,
        seed=config.training.seed,
        rank=rank,
        world=world,
        steps=steps * accumulate if steps else None,
        multiple=accumulate,
    )


def total_steps(config: Config, table: Table, world: int = 1) -> int:
    """Count the steps that `train` will take on this table, with `world` processes."""
    rows = hold_out(table, config).select(split=config.data.train_splits)
    sampler = make_sampler(config, rows, rows.labels()[0], 0, world)
    return config.training.epochs * sampler.steps // config.training.accumulate
