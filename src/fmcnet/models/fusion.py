"""SFF, section 3.3 of the paper: fusion of shared, specific and generated features, eq. (15), (16)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcnet.models.decomposition import IdentityClassifier


class Fusion(nn.Module):
    """Shared-specific feature fusion, eq. (15), (16).

    F_fu,V = w1 F_sp,V + w2 F'_sp,I (15) and F_fp,V = Cat(F_sh,V, F_fu,V) (16); mirrored for infrared images. w1
    weighs the image's own specific feature, w2 the generated one. The paper gives no initial values; ours are 0.5.

    Args:
        classify: P_fp.
        softmax: False is (15) as written: two free scalars. True (ours) takes the softmax of the two, which stay
            positive and sum to 1: (17) is cheapest at w1 = w2 = 0, and a neck hides that from (18).
        length: of F_fu (ours), so that (17) cannot shorten it; None: as it is.
    """

    def __init__(
        self, classify: IdentityClassifier, softmax: bool = False, length: float | None = None
    ) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.tensor(0.5))
        self.w2 = nn.Parameter(torch.tensor(0.5))
        self.classify = classify
        self.softmax, self.length = softmax, length

    def weights(self) -> tuple[Tensor, Tensor]:
        """The two scalars of eq. (15) as they are applied: of the own feature and of the generated one."""
        if not self.softmax:
            return self.w1, self.w2
        weights = torch.stack([self.w1, self.w2]).softmax(dim=0)
        return weights[0], weights[1]

    def forward(self, shared: Tensor, specific: Tensor, generated: Tensor) -> Tensor:
        """F_sh, F_sp and the generated F'_sp of images, each (B, D), to F_fp (B, 2D)."""
        w1, w2 = self.weights()
        fused = w1 * specific + w2 * generated  # (15)
        if self.length is not None:
            fused = self.length * F.normalize(fused, dim=1)
        return torch.cat([shared, fused], dim=1)  # (16)
