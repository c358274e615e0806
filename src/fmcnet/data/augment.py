"""Augmentation of whole batches, on the batch's own device, from a given generator. All ours.

uint8 in, float 0..1 out. Infrared images come in as three equal channels and keep them equal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fmcnet.config import AugmentConfig
from fmcnet.types import Modality

ERASE_AREA = (0.02, 0.3)  # share of the image that random erasing covers
ERASE_ASPECT = 0.3  # smallest height / width of the erased box, and 1 / it the largest


def augment(images: Tensor, modality: Modality, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Pad and random crop, flip, channel exchange or mixing (visible only), random erasing.

    Args:
        images: (B, 3, H, W) uint8.
        modality: channel augmentation is for visible images only.
        config: strengths and chances.
        generator: on the images' device; the result is a function of its state and the input alone.

    Returns:
        (B, 3, H, W) float32 in 0..1.
    """
    out = images.float() / 255.0
    out = _crop_and_flip(out, config.pad, config.flip, generator)
    if modality is Modality.VISIBLE and config.channel != "none":
        out = _channels(out, config.channel, config.channel_probability, generator)
    return _erase(out, config.erase, generator)


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device)


def _crop_and_flip(images: Tensor, pad: int, flip: float, generator: torch.Generator) -> Tensor:
    batch, channels, height, width = images.shape
    offsets = (_uniform((batch, 2), images, generator) * (2 * pad + 1)).long()  # (B, 2) in 0..2*pad
    flipped = _uniform((batch, 1), images, generator) < flip
    padded = F.pad(images, (pad, pad, pad, pad))
    rows = offsets[:, :1] + torch.arange(height, device=images.device)  # (B, H)
    columns = torch.arange(width, device=images.device).expand(batch, width)
    columns = torch.where(flipped, columns.flip(1), columns) + offsets[:, 1:]  # (B, W)
    flat = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]  # (B, H, W)
    index = flat.view(batch, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view(batch, channels, height, width)


def _channels(images: Tensor, kind: str, probability: float, generator: torch.Generator) -> Tensor:
    """One grey channel in place of three: a randomly picked one (exchange, as CAJ) or a random mixture."""
    batch = len(images)
    draw = _uniform((batch, 3), images, generator)
    if kind == "exchange":
        weights = F.one_hot(draw.argmax(dim=1), 3).to(images.dtype)
    else:
        weights = -torch.log(draw.clamp(min=1e-7))  # normalised exponentials: uniform on the simplex
        weights = weights / weights.sum(dim=1, keepdim=True)
    grey = (images * weights[:, :, None, None]).sum(dim=1, keepdim=True).expand_as(images)
    chosen = _uniform((batch, 1, 1, 1), images, generator) < probability
    return torch.where(chosen, grey, images)


def _erase(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Random erasing (Zhong et al., AAAI 2020) with the image's own mean as the fill."""
    batch, _, height, width = images.shape
    u = _uniform((batch, 5), images, generator)
    area = (ERASE_AREA[0] + u[:, 0] * (ERASE_AREA[1] - ERASE_AREA[0])) * height * width
    log_aspect = torch.log(torch.tensor(ERASE_ASPECT, device=images.device))
    aspect = torch.exp(log_aspect * (1 - 2 * u[:, 1]))
    box_h = (area * aspect).sqrt().clamp(max=height)[:, None]
    box_w = (area / aspect).sqrt().clamp(max=width)[:, None]
    top = u[:, 2:3] * (height - box_h)
    left = u[:, 3:4] * (width - box_w)
    y = torch.arange(height, device=images.device)[None]
    x = torch.arange(width, device=images.device)[None]
    rows = (y >= top) & (y < top + box_h)
    columns = (x >= left) & (x < left + box_w)
    inside = rows[:, None, :, None] & columns[:, None, None, :] & (u[:, 4] < probability)[:, None, None, None]
    return torch.where(inside, images.mean(dim=(1, 2, 3), keepdim=True), images)
