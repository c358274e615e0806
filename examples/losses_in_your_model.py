"""Use only the losses of FMCNet, in a network of your own.

    python examples/losses_in_your_model.py

The losses are pure functions of features and centres. A batch holds P identities with K images of each in
both modalities, in the same order.
"""

from __future__ import annotations

import torch
from torch import nn

from fmcnet.losses import functional as losses

P, K, DIM, CLASSES = 4, 2, 32, 10


class TwoStreams(nn.Module):
    """One small stem for each modality, then a shared embedding and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.visible, self.infrared = (nn.Conv2d(3, 8, 3, stride=2, padding=1) for _ in range(2))
        self.shared = nn.Sequential(nn.ReLU(), nn.Conv2d(8, DIM, 3, stride=2), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(DIM, CLASSES)

    def forward(self, visible: torch.Tensor, infrared: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = torch.cat([self.visible(visible), self.infrared(infrared)])
        visible_features, infrared_features = self.shared(maps).flatten(1).chunk(2)  # (P*K, DIM) each
        return visible_features, infrared_features


def main() -> None:
    torch.manual_seed(0)
    model = TwoStreams()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    visible, infrared = torch.rand(P * K, 3, 32, 16), torch.rand(P * K, 3, 32, 16)
    labels = torch.arange(P).repeat_interleave(K)  # the same for both halves

    for step in range(20):
        features = model(visible, infrared)
        centers = [losses.centers(half, P) for half in features]  # (P, DIM) each, eq. (3)
        identity = sum(losses.identity_loss(model.classifier(half), labels) for half in features)  # (8)
        gap = losses.cross_modality_center_loss(*centers, weight=2.0, margin=0.7) / P  # eq. (6)
        loss = identity + gap
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0 or step == 19:
            print(f"step {step:2d}  identity {identity.item():.3f}  centres {gap.item():.3f}")


if __name__ == "__main__":
    main()
