"""How the public VI-ReID code feeds and runs training, in our own words: the named baseline of `training.py`.

Rendered is the training script that AGW published (github.com/mangye16/Cross-Modal-Re-ID-baseline: train.py,
data_loader.py and utils.py), that DDAG and most later work started from, and that CAJ (ICCV21_CAJ there) extended by
channel augmentation and random erasing. Nothing is copied.

Kept, for it is what costs time:

- All images are decoded and resized beforehand and held as one uint8 array a modality. An item is one visible and one
  infrared image, each through a chain of transforms in Python: to a Pillow image, pad by 10, random crop, random
  flip, to a float tensor, normalise, and with CAJ erase a box and exchange channels.
- `decode_paths` is the other way there is in public code (PAMI23_Unsupervised in the same repository, and the
  clustering codes it comes from): the file is opened and resized, with Lanczos, at every access.
- A sampler in Python that draws P identities and K images of each modality, with replacement; every epoch a new
  sampler and a new `DataLoader` (so new worker processes) with drop_last, the default collate, no pinned memory.
- A step in NCHW float32: inputs to the device one by one and waited for, zero_grad, backward, step, then `.item()`
  for every term's running average in every iteration, which on a GPU waits for everything before it.
- cudnn.benchmark on a GPU, as there.

Not kept, and why; where it matters to speed, whom it favours:

- torchvision's transforms are written anew, with the same operations on the same types in the same order, because
  torchvision cannot be had beside this project's CPU build of PyTorch. They are plain classes where some of
  torchvision's are modules, which favours the baseline by microseconds an image.
- CAJ returns each visible image twice, as it is and with channels exchanged. Here it is one, exchanged with a chance
  of one half, so that both sides prepare and learn from equally many images (favours the baseline). CAJ's grey-scale
  augmentation of infrared images is left out, for our side has none (likewise). Erasing uses CAJ's own numbers and
  fill.
- The model and the losses are fmcnet's, so that both sides do the same mathematics. The script around them is what
  one would write straight from the method: one forward, the discriminators' step, then everybody else's.
- The two optimisers are Adam, one parameter at a time, over a backbone at a tenth of the rate and a rest. The public
  scripts' default is SGD with Nesterov momentum, which is cheaper by one running average a parameter (favours ours);
  Adam, which their help names as the other choice, is what is nearest to our side's AdamW. One at a time is what
  PyTorch did when this code was written and what it does on a CPU to this day. On a GPU today's PyTorch takes
  `foreach` unless told otherwise (so there one at a time favours ours): `foreach=True` measures that.
- The sampler's index lists are built by appending rather than by copying the whole array once an identity, and the
  training accuracy is not counted (both favour the baseline).
- The model normalises images itself. As the transforms have done so already, its mean and std are set to 0 and 1: the
  subtraction and the division are still done, less than a thousandth of a step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fmcnet.config import Config
from fmcnet.losses.criterion import FMCNetLoss
from fmcnet.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from fmcnet.models.build import build_model
from fmcnet.models.fmcnet import FMCNet

Images = NDArray[np.uint8]
Labels = NDArray[np.integer]
Paths = Sequence[str | Path]
Batch = tuple[Tensor, Tensor, Tensor]

ERASE_FILL = (
    0.4914,
    0.4822,
    0.4465,
)  # CAJ's: means of CIFAR-10, written into images that are normalised already
ERASE_AREA = (0.02, 0.4)
ERASE_ASPECT = 0.3
ERASE_ATTEMPTS = 100


class ToPillow:
    """An array (H, W, 3) uint8 as a Pillow image."""

    def __call__(self, image: Images) -> Image.Image:
        return Image.fromarray(image)


class Pad:
    """Black on every side."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.expand(image, border=self.pixels, fill=(0, 0, 0))


class RandomCrop:
    """A window of (H, W), anywhere."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        top = left = 0
        if (height, width) != (self.height, self.width):
            top = int(torch.randint(0, height - self.height + 1, size=(1,)).item())
            left = int(torch.randint(0, width - self.width + 1, size=(1,)).item())
        return image.crop((left, top, left + self.width, top + self.height))


class RandomFlip:
    """Mirrored, by chance."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(1) < self.probability:
            return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


class ToTensor:
    """A Pillow image as (3, H, W) float32 in 0..1: a copy, another to reorder it, another for each change of type."""

    def __call__(self, image: Image.Image) -> Tensor:
        tensor = torch.from_numpy(np.array(image, np.uint8, copy=True))
        return tensor.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


class Normalize:
    """Less the mean, over the standard deviation, in a copy."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = mean, std

    def __call__(self, image: Tensor) -> Tensor:
        mean = torch.as_tensor(self.mean, dtype=image.dtype).view(-1, 1, 1)
        std = torch.as_tensor(self.std, dtype=image.dtype)
        if (std == 0).any():
            raise ValueError("a standard deviation of 0")
        return image.clone().sub_(mean).div_(std.view(-1, 1, 1))


class RandomErasing:
    """A box of the image in one colour, by chance; in place."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Tensor) -> Tensor:
        if random.uniform(0, 1) > self.probability:
            return image
        height, width = image.shape[1:]
        for _ in range(ERASE_ATTEMPTS):
            area = random.uniform(*ERASE_AREA) * height * width
            aspect = random.uniform(ERASE_ASPECT, 1 / ERASE_ASPECT)
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if rows < height and columns < width:
                top, left = random.randint(0, height - rows), random.randint(0, width - columns)
                for channel, value in enumerate(ERASE_FILL):
                    image[channel, top : top + rows, left : left + columns] = value
                break
        return image


class ChannelExchange:
    """One channel, picked at random, in place of the two others, by chance; in place."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Tensor) -> Tensor:
        if random.uniform(0, 1) > self.probability:
            return image
        picked = random.randint(0, 2)
        for channel in range(3):
            if channel != picked:
                image[channel] = image[picked]
        return image


class Decode:
    """A file as a Pillow image of (H, W): what comes first where images are not held in memory."""

    def __init__(self, height: int, width: int) -> None:
        self.size = (width, height)

    def __call__(self, path: str | Path) -> Image.Image:
        with Image.open(path) as stored:
            return stored.convert("RGB").resize(self.size, Image.Resampling.LANCZOS)


class Compose:
    """One transform after another."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class PairDataset(Dataset[tuple[Tensor, Tensor, int, int]]):
    """Item i: one visible and one infrared image and their labels, by the two index arrays of the epoch's sampler."""

    def __init__(
        self,
        visible: Images | Paths,
        infrared: Images | Paths,
        labels_v: Labels,
        labels_i: Labels,
        transform_v: Compose,
        transform_i: Compose,
    ) -> None:
        self.visible, self.infrared = visible, infrared
        self.labels_v, self.labels_i = labels_v, labels_i
        self.transform_v, self.transform_i = transform_v, transform_i
        self.rows_v: list[int] = []
        self.rows_i: list[int] = []

    def __len__(self) -> int:
        return len(self.rows_v)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int, int]:
        row_v, row_i = self.rows_v[index], self.rows_i[index]
        visible, infrared = self.transform_v(self.visible[row_v]), self.transform_i(self.infrared[row_i])
        return visible, infrared, int(self.labels_v[row_v]), int(self.labels_i[row_i])


class IdentitySampler(Sampler[int]):
    """Draws an epoch at once: `steps` times P identities, and K rows of each identity and modality.

    Identities differ within a batch; rows are drawn with replacement. Iterated, it only counts.
    """

    def __init__(
        self,
        positions_v: list[NDArray[np.int64]],
        positions_i: list[NDArray[np.int64]],
        identities: int,
        images: int,
        steps: int,
        rng: np.random.Generator,
    ) -> None:
        self.rows_v: list[int] = []
        self.rows_i: list[int] = []
        for _ in range(steps):
            for person in rng.choice(len(positions_v), identities, replace=False):
                self.rows_v.extend(rng.choice(positions_v[person], images).tolist())
                self.rows_i.extend(rng.choice(positions_i[person], images).tolist())

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.rows_v)))

    def __len__(self) -> int:
        return len(self.rows_v)


class PublicLoader:
    """Batches as the public code makes them: (visible, infrared, labels).

    Both images are (P*K, 3, H, W) float32, normalised; labels (P*K,) int64 hold for both. Position p*K + k is the
    k-th image of the p-th identity.

    Args:
        images_v: (N_V, H, W, 3) uint8, None with `decode_paths`. images_i: (N_I, H, W, 3), likewise.
        labels_v: (N_V,) classes. labels_i: (N_I,), of the same identities.
        identities: P. images: K. height: H. width: W.
        workers: processes of the DataLoader; the public default is 4. 0: in this process.
        erase: random erasing of both modalities (CAJ). channel: channel exchange of visible images (CAJ).
        decode_paths: the files of all visible and of all infrared images, opened and resized at each access.
        seed: of the identities and rows drawn and of the workers. Without workers, the transforms draw from the
            process's own generators, as the public code does.
        steps: batches an epoch; None: as the public code, the larger modality's images over P*K, and one more.
        batches: stop after so many; None: never.
        pad: pixels on each side before the crop. flip: chance. erase_chance: chance. channel_chance: chance.
        mean, std: of images in 0..1.
    """

    def __init__(
        self,
        images_v: Images | None,
        images_i: Images | None,
        labels_v: Labels,
        labels_i: Labels,
        *,
        identities: int,
        images: int,
        height: int,
        width: int,
        workers: int,
        erase: bool,
        channel: bool,
        decode_paths: tuple[Paths, Paths] | None = None,
        seed: int = 0,
        steps: int | None = None,
        batches: int | None = None,
        pad: int = 10,
        flip: float = 0.5,
        erase_chance: float = 0.5,
        channel_chance: float = 0.5,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        people = np.unique(labels_v)
        if not np.array_equal(people, np.unique(labels_i)):
            raise ValueError("every identity needs visible and infrared images")
        if decode_paths is not None:
            sources: tuple[Images | Paths, Images | Paths] = decode_paths
            first: Callable[[Any], Image.Image] = Decode(height, width)
        elif images_v is not None and images_i is not None:
            sources, first = (images_v, images_i), ToPillow()
        else:
            raise ValueError("give the images of both modalities, or decode_paths")
        self.identities, self.images, self.workers = identities, images, workers
        self.seed, self.batches = seed, batches
        self.steps = steps or max(len(labels_v), len(labels_i)) // (identities * images) + 1
        self.positions_v = [np.flatnonzero(labels_v == person) for person in people]
        self.positions_i = [np.flatnonzero(labels_i == person) for person in people]
        chain: list[Callable[[Any], Any]] = [
            first,
            Pad(pad),
            RandomCrop(height, width),
            RandomFlip(flip),
            ToTensor(),
            Normalize(mean, std),
            *([RandomErasing(erase_chance)] if erase else []),
        ]
        exchange = [ChannelExchange(channel_chance)] if channel else []
        self.dataset = PairDataset(
            *sources, labels_v, labels_i, Compose([*chain, *exchange]), Compose([*chain])
        )

    def __iter__(self) -> Iterator[Batch]:
        given, epoch = 0, 0
        while True:
            for visible, infrared, labels, _ in self.epoch(epoch):
                if self.batches is not None and given >= self.batches:
                    return
                yield visible, infrared, labels
                given += 1
            epoch += 1

    def epoch(self, number: int) -> DataLoader[tuple[Tensor, Tensor, int, int]]:
        """The loader of one epoch, of (visible, infrared, labels of the one, labels of the other)."""
        rng = np.random.default_rng([self.seed, number])
        sampler = IdentitySampler(
            self.positions_v, self.positions_i, self.identities, self.images, self.steps, rng
        )
        self.dataset.rows_v, self.dataset.rows_i = sampler.rows_v, sampler.rows_i
        return DataLoader(
            self.dataset,
            batch_size=self.identities * self.images,
            sampler=sampler,
            num_workers=self.workers,
            drop_last=True,
            generator=torch.Generator().manual_seed(self.seed + number),
        )


class Meter:
    """The last value of a number and its running average."""

    def __init__(self) -> None:
        self.value = self.total = self.average = 0.0
        self.count = 0

    def update(self, value: float, weight: int) -> None:
        """Take in a value that stands for `weight` images."""
        self.value = value
        self.total += value * weight
        self.count += weight
        self.average = self.total / self.count


class PublicStep:
    """FMCNet and its losses, trained by a straightforward script.

    Args:
        config: `model`, `losses`, `data.identities` and the rates and weight decay of `training` are read; not its
            schedule, clipping and precision.
        classes: number of identities.
        device: where the model is.
        foreach: of Adam; see the module's description.

    Attributes:
        model: takes images that are normalised already. meters: of every term, by name.
    """

    model: FMCNet

    def __init__(
        self, config: Config, classes: int, device: torch.device | str, *, foreach: bool = False
    ) -> None:
        self.config, self.device = config, torch.device(device)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # for the whole process, so the other side has it, too
        self.model = build_model(config.model, classes)
        self.model.mean.zero_()
        self.model.std.fill_(1)
        self.model.to(self.device)
        training, compensation = config.training, self.model.compensation
        discriminators = compensation.discriminator_parameters() if compensation else []
        backbone = [
            parameter
            for name, child in self.model.decomposition.named_children()
            if name.startswith(("stem", "shared", "specific"))
            for parameter in child.parameters()
        ]
        taken = {id(parameter) for parameter in (*discriminators, *backbone)}
        rest = [parameter for parameter in self.model.parameters() if id(parameter) not in taken]
        groups = [{"params": backbone, "lr": 0.1 * training.lr}, {"params": rest, "lr": training.lr}]
        self.optimizer = torch.optim.Adam(
            groups, weight_decay=training.weight_decay, foreach=foreach, fused=False
        )
        self.discriminator_optimizer = (
            torch.optim.Adam(discriminators, lr=training.discriminator_lr, foreach=foreach, fused=False)
            if discriminators
            else None
        )
        self.meters: dict[str, Meter] = {}

    def step(self, visible: Tensor, infrared: Tensor, labels: Tensor) -> dict[str, float]:
        """One step; every term by its name in `fmcnet.losses.criterion.TERMS`, and "loss", the total.

        Args:
            visible: (P*K, 3, H, W) float32, normalised. infrared: (P*K, 3, H, W), likewise. labels: (P*K,).
        """
        self.model.train()
        visible, infrared = visible.to(self.device), infrared.to(self.device)
        labels = labels.to(self.device)
        output, compensation = self.model(visible, infrared), self.model.compensation
        criterion = FMCNetLoss(self.config.losses, self.config.data.identities, compensation)
        values = {}
        value = criterion.discriminator_loss(output)
        if value is not None and compensation is not None and self.discriminator_optimizer is not None:
            self.discriminator_optimizer.zero_grad()
            value.backward()
            self.discriminator_optimizer.step()
            compensation.renormalize()
            values["discriminator"] = value
        _, terms = criterion(output, labels)
        loss = sum(terms.values(), torch.zeros((), device=self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for name, value in {"loss": loss, **terms, **values}.items():
            self.meters.setdefault(name, Meter()).update(value.item(), 2 * len(visible))
        return {name: meter.value for name, meter in self.meters.items()}
