"""Losses of the baselines, none of them FMCNet's; notation as in `functional`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fmcnet.losses import functional as losses


def weighted_regularized_triplet_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Weighted regularised triplet loss, of AGW.

    mean_i log(1 + exp( sum_{j in P_i} w_ij^+ d_ij - sum_{k in N_i} w_ik^- d_ik )),
    w_ij^+ = softmax over P_i of d_ij, w_ik^- = softmax over N_i of -d_ik, gradients through the weights as published.

    Source: Ye et al., "Deep Learning for Person Re-Identification: A Survey and Outlook", TPAMI 2021. Ours: the
    softmax is taken over the positives (without the anchor itself, at distance 0) or negatives alone. The released
    code subtracts the largest entry of a row that holds zeros for everything masked out, so with features of
    large scale every negative weight underflows to 0.

    Args:
        features: (B, D) of both modalities together, at any scale.
        labels: (B,).

    Returns:
        Scalar, at least 0: the mean over anchors that have a positive and a negative; 0 if none has.

    Raises:
        ValueError: when there is not one label for each feature.
    """
    losses.check_labels(labels)
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"{len(features)} features need labels of shape ({len(features)},), got {(*labels.shape,)}"
        )
    features = losses.lift(features)
    distances = losses.pairwise_distances(features, features)
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    usable = positive.any(dim=1) & ~same.all(dim=1)
    # Anchors without a positive or a negative are masked: to remove them would wait for the GPU.
    positive, same = positive | ~usable[:, None], same & usable[:, None]
    # The softmax subtracts the masked row's own maximum.
    w_positive = distances.masked_fill(~positive, -torch.inf).softmax(dim=1)
    w_negative = (-distances).masked_fill(same, -torch.inf).softmax(dim=1)
    anchor_losses = F.softplus((w_positive * distances).sum(dim=1) - (w_negative * distances).sum(dim=1))
    return (anchor_losses * usable).sum() / usable.sum().clamp(min=1)


def hetero_center_loss(center_v: Tensor, center_i: Tensor) -> Tensor:
    """Hetero-centre loss: sum_p ||C_V^p - C_I^p||^2.

    Source: Zhu et al., "Hetero-Center Loss for Cross-Modality Person Re-Identification", Neurocomputing 2020.

    Args:
        center_v: centres of visible images (P, D).
        center_i: centres of infrared images (P, D).

    Returns:
        Scalar, at least 0. Symmetric under exchange of the modalities.
    """
    losses.check_alike(center_v, center_i)
    return (losses.lift(center_v) - losses.lift(center_i)).square().sum()


def hetero_center_triplet_loss(
    center_v: Tensor, center_i: Tensor, margin: float = losses.PAPER.hc_margin
) -> Tensor:
    """Hetero-centre triplet loss.

    sum_p [ margin + ||C_V^p - C_I^p|| - min_{j != p, m} ||C_V^p - C_m^j|| ]_+ and its mirror image.

    Source: Liu et al., "Parameter Sharing Exploration and Hetero-Center Triplet Loss for Visible-Thermal Person
    Re-Identification", TMM 2020; margin 0.3 there.

    Args:
        center_v: centres of visible images (P, D).
        center_i: centres of infrared images (P, D).
        margin: by which other identities must be farther.

    Returns:
        Scalar, at least 0; 0 for P = 1. Symmetric under exchange of the modalities.
    """
    positive, negative_v, negative_i = losses.distances_across(center_v, center_i)
    return F.relu(margin + positive - negative_v).sum() + F.relu(margin + positive - negative_i).sum()
