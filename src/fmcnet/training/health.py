"""Checks that compensation and fusion work: a few numbers per step, and one warning for each part that fails.

A falling loss does not prove that the method works. No loss shows fusion weights that go to zero, or generators
that give the same feature for all identities.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fmcnet.models.fmcnet import FMCNet, FMCNetOutput
from fmcnet.types import Modality

logger = logging.getLogger(__name__)

FUSED, COSINE, ACCURACY = "fused/shared", "generated cosine", "discriminator accuracy"
NAMES = (FUSED, COSINE, ACCURACY, "w1", "w2")
"""Names of the values that `measure` gives."""

WINDOW = 100
"""Steps over which a value is averaged before it is compared with its limits."""

SMALLEST_WEIGHT, SMALLEST_RATIO, LARGEST_COSINE = 0.05, 0.1, 0.85
"""Limits beyond which a warning is logged. Healthy runs stay far from them: weights
of 0.3 to 0.7, a ratio of 0.3 to 2, a cosine below 0.5 (docs/findings.md)."""

MARGINS = {"sps": "eq. (5)", "dc": "eq. (4)"}
"""Terms of the loss that are 0 where every margin is met."""

IDLE, WON = 0.51, 0.99
"""Accuracies at which D guesses, or is always right: G learns nothing from it."""


@torch.no_grad()
def measure(model: FMCNet, output: FMCNetOutput, labels: Tensor) -> dict[str, Tensor]:
    """Measure the modules of the paper on one batch.

    Args:
        model: gives the discriminators and the fusion weights.
        output: of a batch of two aligned halves of B images.
        labels: (B,), of each half.

    Returns:
        Scalars by name, of the modules that the variant has. "generated cosine": mean cosine between generated
        features of different identities, without the modality's constant that they share. "discriminator accuracy":
        share of real and generated features that D classifies correctly. "fused/shared": mean length of F_fu over
        that of F_sh. "w1" and "w2": of eq. (15) as they are applied.
    """
    values: dict[str, Tensor] = {}
    if model.compensation is not None:
        cosines, accuracies = [], []
        different = labels[:, None] != labels[None, :]
        for target in (Modality.INFRARED, Modality.VISIBLE):
            fake = cast(Tensor, output.of(target.other).generated)
            real = cast(Tensor, output.of(target).specific)
            norm = model.decomposition.norm_specific
            if norm is not None and norm.offset:  # the constant has the same value in all D dimensions
                unit = F.normalize(fake - fake.mean(dim=1, keepdim=True), dim=1)
            else:
                unit = F.normalize(fake, dim=1)
            cosines.append(((unit @ unit.T) * different).sum() / different.sum().clamp(min=1))
            discriminator = model.compensation.discriminator(target)
            accuracies.append(
                ((discriminator(real) > 0).float().mean() + (discriminator(fake) <= 0).float().mean()) / 2
            )
        values |= {COSINE: torch.stack(cosines).mean(), ACCURACY: torch.stack(accuracies).mean()}
    if model.fusion is not None:
        ratios = []
        for half in output:
            fused = cast(Tensor, half.fused)[:, half.shared.shape[1] :]
            ratios.append(fused.norm(dim=1).mean() / half.shared.norm(dim=1).mean().clamp(min=1e-12))
        w1, w2 = model.fusion.weights()
        values |= {FUSED: torch.stack(ratios).mean(), "w1": w1, "w2": w2}
    return values


class HealthMonitor:
    """Warns once when the fusion, the compensation or its discriminators do nothing; ignores the `first` steps.

    Of a term of `MARGINS` that trained nothing it tells once.
    """

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self._seen: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self._warned: set[str] = set()

    def watch(self, record: Mapping[str, float]) -> None:
        """Add the values of one step; warn by the mean of the last `WINDOW` steps."""
        if int(record["step"]) <= self._first:
            return
        self._seen.append(record)
        if len(self._seen) < WINDOW:
            return
        for term, equation in MARGINS.items():
            if term not in self._warned and all(values.get(term) == 0 for values in self._seen):
                self._warned.add(term)
                logger.info(
                    "step %d: %s, %s, has been 0 for %d steps: its margins are met, so it trains nothing now",
                    int(record["step"]), term, equation, WINDOW,
                )  # fmt: skip
        mean = {k: sum(values.get(k, 0.0) for values in self._seen) / WINDOW for k in NAMES if k in record}
        for part, fault in _find_faults(mean):
            if part not in self._warned:
                self._warned.add(part)
                logger.warning("step %d: %s", int(record["step"]), fault)


def _find_faults(mean: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Each part that does nothing, and what to do."""
    if "w1" in mean:
        smallest = min(abs(mean["w1"]), abs(mean["w2"]))
        if smallest < SMALLEST_WEIGHT or mean[FUSED] < SMALLEST_RATIO:
            yield (
                "fusion",
                f"the fusion has switched itself off: w1 {mean['w1']:.2f}, w2 {mean['w2']:.2f}, F_fu "
                f"{mean[FUSED]:.2f} times as long as F_sh. Set model.fusion=softmax and model.fusion_normalize=true, "
                "or train without it (model.variant=fmc).",
            )
    if COSINE in mean and mean[COSINE] > LARGEST_COSINE:
        yield (
            "compensation",
            "the compensation has collapsed: generated features of different identities have a mean cosine of "
            f"{mean[COSINE]:.2f}. Where the backbone starts from random weights, wait for id_shared to fall; else "
            "set model.normalization=modality and model.generator_residual=true, or lower losses.gan and losses.fc.",
        )
    if ACCURACY in mean and not IDLE < mean[ACCURACY] < WON:
        state = "are idle" if mean[ACCURACY] <= IDLE else "have won"
        yield (
            "discriminators",
            f"the discriminators {state}: they tell {mean[ACCURACY]:.0%} of real and generated features right. Set "
            "model.discriminator_bound=6 with model.normalization=modality, or change training.discriminator_lr.",
        )
