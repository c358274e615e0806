"""SFF, section 3.3: fusion of specific and generated features, eq. (15), (16)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcnet.models.layers import IdentityClassifier
from fmcnet.types import Modality


class Fusion(nn.Module):
    """SFF, section 3.3: fuses specific and generated into one, and that with the shared, eq. (15), (16).

    F_fu,V = w1 F_sp,V + w2 F'_sp,I and, mirrored, F_fu,I = w1 F_sp,I + w2 F'_sp,V: w1 weighs the image's
    own specific feature, w2 the generated one. F_fp = Cat(F_sh, F_fu). The paper gives no initial value for
    the two scalars; ours is 0.5 each (the mean).

    Args:
        classify: P_fp. w1, w2: initial values.
        kind: "sum" is (15) as written: two free scalars. "softmax" (ours) takes the softmax of the two, so that they
            stay positive and sum to 1: (17) is cheapest at w1 = w2 = 0, and a neck hides it from (18). "slots" (ours)
            takes the softmax, too, and puts the visible part before the infrared one instead of adding them.
        length: F_fu is brought to this length (ours), so that (17) cannot shorten it; None: as it is.
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
