"""Training images, augmented and in batches: a `Dataset` for any `DataLoader`, and the loop over batches.

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
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fmcnet.config import AugmentConfig
from fmcnet.data.augmentation import AugmentationParams, augment_image, draw_params
from fmcnet.data.sampler import IdentityModalitySampler, ImageIndex
from fmcnet.distributed import seeded_generator
from fmcnet.errors import DataError
from fmcnet.types import IntArray, Modality


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
