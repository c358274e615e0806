"""Augmentation of whole batches on the batch's own device: uint8 in, uint8 out. All ours.

What happens to an image is drawn first (`draw`), on the CPU, from a generator whose state is a function of seed and
step: the same on every device, and, drawn for all ranks at once, the same however many processes share the work. Then
it is applied (`apply`): image by image in slices on a CPU, as one gather elsewhere, with the same result (mixtures
and fills to one grey level, by rounding).
Infrared images come in as three equal channels and keep them equal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmcnet.config import AugmentConfig
from fmcnet.types import Modality

ERASE_AREA = (0.02, 0.3)  # share of the image that random erasing covers
ERASE_ASPECT = 0.3  # smallest height / width of the erased box, and 1 / it the largest


class Draws(NamedTuple):
    """What is to be done to each of B images.

    Attributes:
        shift: (B, 2) int64, top and left of the crop in the padded image, each 0..2 * pad.
        flip: (B,) bool.
        mix: (B, 3) float32, weights of the channels in the grey one that takes their place.
        grey: (B,) bool, whether it does.
        box: (B, 4) int64, top, left, bottom, right of what is erased; empty (top = bottom) where nothing is.
    """

    shift: Tensor
    flip: Tensor
    mix: Tensor
    grey: Tensor
    box: Tensor

    def part(self, first: int, count: int) -> Draws:
        """Of images `first` to `first + count`."""
        return Draws(*(column[first : first + count] for column in self))


def draw(
    count: int,
    height: int,
    width: int,
    modality: Modality,
    config: AugmentConfig,
    generator: torch.Generator,
) -> Draws:
    """What is to be done to `count` images of H x W pixels: a function of the generator's state.

    Args:
        count: B. height: H. width: W.
        modality: channel augmentation is for visible images only.
        config: strengths and chances. generator: on the CPU.
    """
    u = torch.rand((count, 12), generator=generator)
    shift = (u[:, 0:2] * (2 * config.pad + 1)).long()
    if config.channel == "mix":
        mix = -torch.log(u[:, 4:7].clamp(min=1e-7))  # normalised exponentials: uniform on the simplex
        mix = mix / mix.sum(dim=1, keepdim=True)
    else:  # one channel in place of three, as CAJ
        mix = torch.nn.functional.one_hot(u[:, 4:7].argmax(dim=1), 3).float()
    coloured = modality is Modality.VISIBLE and config.channel != "none"
    grey = (u[:, 3] < config.channel_probability) & coloured
    return Draws(shift, u[:, 2] < config.flip, mix, grey, _boxes(u[:, 7:12], height, width, config.erase))


def _boxes(u: Tensor, height: int, width: int, probability: float) -> Tensor:
    """Random erasing (Zhong et al., AAAI 2020): (B, 5) uniform numbers to (B, 4) boxes."""
    area = (ERASE_AREA[0] + u[:, 0] * (ERASE_AREA[1] - ERASE_AREA[0])) * height * width
    aspect = torch.exp(torch.log(torch.tensor(ERASE_ASPECT)) * (1 - 2 * u[:, 1]))
    tall = (area * aspect).sqrt().round().clamp(1, height)
    wide = (area / aspect).sqrt().round().clamp(1, width)
    top, left = (u[:, 2] * (height - tall + 1)).floor(), (u[:, 3] * (width - wide + 1)).floor()
    erased = (u[:, 4] < probability).float()
    return torch.stack([top, left, top + tall * erased, left + wide * erased], dim=1).long()


def apply(images: Tensor, draws: Draws, pad: int) -> Tensor:
    """Do it: pad with black and crop, flip, grey, erase with the image's own mean.

    Args:
        images: (B, 3, H, W) uint8; lying as (B, H, W, 3) in memory is quickest.
        draws: of the B images. pad: black pixels on every side before the crop.

    Returns:
        (B, 3, H, W) uint8, lying as (B, H, W, 3) in memory (channels_last).
    """
    pixels = images.permute(0, 2, 3, 1)
    done = _in_slices(pixels, draws, pad) if images.device.type == "cpu" else _at_once(pixels, draws, pad)
    return done.permute(0, 3, 1, 2)


def augment(images: Tensor, modality: Modality, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """`draw` and `apply` in one: (B, 3, H, W) uint8 to the same; `generator` is on the CPU."""
    draws = draw(len(images), images.shape[2], images.shape[3], modality, config, generator)
    return apply(images, draws, config.pad)


def _in_slices(images: Tensor, draws: Draws, pad: int) -> Tensor:
    """(B, H, W, 3) image by image: no index arithmetic, every pixel is written once.

    NumPy's slices cost a third of PyTorch's at this size, and a plane at a time a third of a pixel at a time.
    """
    height, width = images.shape[1:3]
    source, out = images.numpy(), np.zeros(images.shape, dtype=np.uint8)
    offsets, mixes = (draws.shift - pad).tolist(), draws.mix.numpy()
    flips, greys, boxes = draws.flip.tolist(), draws.grey.tolist(), draws.box.tolist()
    for i, (y, x) in enumerate(offsets):
        (top, bottom), (left, right) = _overlap(y, height), _overlap(x, width)
        piece, mine, at = source[i, top:bottom, left:right], out[i], left - x
        if greys[i]:
            mixed = np.rint(piece.reshape(-1, 3) @ mixes[i]).astype(np.uint8).reshape(piece.shape[:2])
            piece = np.broadcast_to(mixed[..., None], piece.shape)
        if flips[i]:  # the crop mirrored is the mirrored crop
            piece, at = piece[:, ::-1], width - (right - x)
        target = mine[top - y : bottom - y, at : at + right - left]
        if flips[i] or greys[i]:
            for channel in range(3):
                target[..., channel] = piece[..., channel]
        else:
            target[:] = piece
        top, left, bottom, right = boxes[i]
        if bottom > top:
            mine[top:bottom, left:right] = round(int(mine.sum(dtype=np.uint32)) / mine.size)
    return torch.from_numpy(out)


def _overlap(offset: int, length: int) -> tuple[int, int]:
    return max(0, offset), min(length, length + offset)


def _at_once(images: Tensor, draws: Draws, pad: int) -> Tensor:
    """(B, H, W, 3) all images in a handful of kernels."""
    batch, height, width, _ = images.shape
    device = images.device
    shift, flip, mix, grey, box = (column.to(device, non_blocking=True) for column in draws)
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    rows = shift[:, :1] - pad + y  # (B, H): where each row comes from
    columns = torch.where(flip[:, None], width - 1 - x, x) + shift[:, 1:] - pad  # (B, W)
    seen = _within(rows, height)[:, :, None] & _within(columns, width)[:, None, :]  # (B, H, W)
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    flat = source.view(batch, -1, 1).expand(-1, -1, 3)
    out = images.reshape(batch, -1, 3).gather(1, flat).view(images.shape) * seen[..., None]
    mixed = (out.float() * mix[:, None, None, :]).sum(dim=3, keepdim=True).round().to(torch.uint8)
    out = torch.where(grey[:, None, None, None], mixed, out)
    fill = out.float().mean(dim=(1, 2, 3), keepdim=True).round().to(torch.uint8)
    top, left, bottom, right = (edge[:, None] for edge in box.unbind(dim=1))
    inside = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]
    return torch.where(inside[..., None], fill, out)


def _within(index: Tensor, length: int) -> Tensor:
    return (index >= 0) & (index < length)
