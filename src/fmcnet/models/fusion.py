"""SFF, section 3.3 of the paper: fusion of shared, specific and generated features, eq. (15), (16)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcnet.models.layers import IdentityClassifier
from fmcnet.types import Modality


class Fusion(nn.Module):
    """Shared-specific feature fusion, eq. (15), (16).

    F_fu,V = w1 F_sp,V + w2 F'_sp,I (15) and F_fp,V = Cat(F_sh,V, F_fu,V) (16); mirrored for infrared images. w1
    weighs the image's own specific feature, w2 the generated one. The paper gives no initial values; ours are 0.5.

    Args:
        classify: P_fp.
        w1: initial value.
        w2: initial value.
        kind: "sum" is (15) as written: two free scalars. "softmax" (ours) takes the softmax of the two, which stay
            positive and sum to 1: (17) is cheapest at w1 = w2 = 0, and a neck hides that from (18). "slots" (ours)
            takes the softmax and concatenates the visible and the infrared part instead of adding them.
        length: of F_fu (ours), so that (17) cannot shorten it; None: as it is.
    """

    def __init__(
        self,
        classify: IdentityClassifier,
        w1: float = 0.5,
        w2: float = 0.5,
        kind: str = "sum",
        length: float | None = None,
    ) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.tensor(w1))
        self.w2 = nn.Parameter(torch.tensor(w2))
        self.classify = classify
        self.kind, self.length = kind, length

    def weights(self) -> tuple[Tensor, Tensor]:
        """The two scalars of eq. (15) as they are applied: of the own feature and of the generated one."""
        if self.kind == "sum":
            return self.w1, self.w2
        both = torch.stack([self.w1, self.w2]).softmax(dim=0)
        return both[0], both[1]

    def forward(self, shared: Tensor, specific: Tensor, generated: Tensor, modality: Modality) -> Tensor:
        """F_sh, F_sp, F'_sp of images of `modality`, each (B, D), to F_fp (B, 2D), with slots (B, 3D)."""
        own, other = self.weights()
        if self.kind == "slots":
            pair = (own * specific, other * generated)
            fused = torch.cat(pair if modality is Modality.VISIBLE else pair[::-1], dim=1)
        else:
            fused = own * specific + other * generated
        if self.length is not None:
            fused = self.length * F.normalize(fused, dim=1)
        return torch.cat([shared, fused], dim=1)
