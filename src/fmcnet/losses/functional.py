"""One pure function per equation of the paper; `docs/concepts/method.md` maps equation, function and test.

Notation: P identities, K images of each in each modality, features (P*K, D) in identity-major order (the
k-th image of identity p stands in row p*K + k), centres (P, D). Euclidean norms. Half-precision input is
lifted to float32 before any distance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def centers(features: Tensor, identities: int) -> Tensor:
    """Eq. (3): identity centres C^p = (1/K) sum_k f^{k,p}.

    Args:
        features: (P*K, D), identity-major. identities: P.

    Returns:
        (P, D).

    Raises:
        ValueError: when the number of rows is not a multiple of P.
    """
    rows, dim = features.shape
    if identities < 1 or rows % identities:
        raise ValueError(f"{rows} features cannot be {identities} identities of equally many images")
    return features.view(identities, rows // identities, dim).mean(dim=1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """(P, D), (Q, D) to Euclidean distances (P, Q); the gradient at distance 0 is 0."""
    if a.dtype in (torch.float16, torch.bfloat16):
        a, b = a.float(), b.float()
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _nearest_other(distances: Tensor) -> Tensor:
    """(P, P) distances to the smallest of each row off the diagonal (P,); infinite for P = 1."""
    own = torch.eye(len(distances), dtype=torch.bool, device=distances.device)
    return distances.masked_fill(own, torch.inf).min(dim=1).values


def decomposition_loss(
    specific_v: Tensor, specific_i: Tensor, shared_v: Tensor, shared_i: Tensor, margin: float = 1.0
) -> Tensor:
    """Eq. (4), L_dc: within a modality specific and shared centres fall apart.

    sum_p sum_m [ max_d ||C_sp,m^p - C_sp,m^d|| - min_j ||C_sp,m^p - C_sh,m^j|| + rho1 ]_+

    Args:
        specific_v, specific_i, shared_v, shared_i: centres (P, D). margin: rho1.

    Returns:
        Scalar, at least 0. Symmetric under exchange of the modalities.
    """
    total = specific_v.new_zeros((), dtype=_accumulator(specific_v))
    for specific, shared in ((specific_v, shared_v), (specific_i, shared_i)):
        widest = _distances(specific, specific).max(dim=1).values  # (P,)
        nearest = _distances(specific, shared).min(dim=1).values  # (P,)
        total = total + F.relu(widest - nearest + margin).sum()
    return total


def specific_separation_loss(specific_v: Tensor, specific_i: Tensor, margin: float = 0.7) -> Tensor:
    """Eq. (5), L_sps: specific centres of different identities keep apart.

    sum_p sum_m [ rho2 - min_{j != p} ||C_sp,m^p - C_sp,m^j|| ]_+

    Args:
        specific_v, specific_i: centres (P, D). margin: rho2.

    Returns:
        Scalar, at least 0; 0 for P = 1. Symmetric under exchange of the modalities.
    """
    total = specific_v.new_zeros((), dtype=_accumulator(specific_v))
    for specific in (specific_v, specific_i):
        total = total + F.relu(margin - _nearest_other(_distances(specific, specific))).sum()
    return total


def cross_modality_center_loss(
    center_v: Tensor, center_i: Tensor, weight: float = 2.0, margin: float = 0.7
) -> Tensor:
    """Eq. (6), L_shs, on shared centres; eq. (17), L_MC, on the centres of F_fp.

    sum_p ( weight ||C_V^p - C_I^p|| + [ margin - min_{j != p, m} ||C_V^p - C_m^j|| ]_+
                                     + [ margin - min_{d != p, m} ||C_I^p - C_m^d|| ]_+ )

    Args:
        center_v, center_i: centres (P, D).
        weight: alpha of (6), beta of (17). margin: rho3 of (6), rho4 of (17).

    Returns:
        Scalar, at least 0. Symmetric under exchange of the modalities.
    """
    across = _distances(center_v, center_i)
    pull = weight * across.diagonal().sum()
    near_v = torch.minimum(_nearest_other(_distances(center_v, center_v)), _nearest_other(across))
    near_i = torch.minimum(_nearest_other(_distances(center_i, center_i)), _nearest_other(across.t()))
    return pull + F.relu(margin - near_v).sum() + F.relu(margin - near_i).sum()


def identity_loss(scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """One cross-entropy term of eq. (8), (14) and (18), the mean over the batch.

    Args:
        scores: (B, C). labels: (B,) in 0..C-1. label_smoothing: 0 is the paper; more is ours.
    """
    return F.cross_entropy(
        scores.float() if scores.dtype in _HALF else scores, labels, label_smoothing=label_smoothing
    )


def adversarial_value(real: Tensor, fake: Tensor) -> Tensor:
    """Eq. (12), L_GAN of one direction: (1/PK) sum [ log D(real) + log(1 - D(fake)) ].

    The discriminator maximises it, the generator minimises it. Computed from logits: finite for any of them.

    Args:
        real: logits of D on F_sp (PK,). fake: logits of D on generated features (PK,).

    Returns:
        Scalar, at most 0.
    """
    return F.logsigmoid(real).mean() + F.logsigmoid(-fake).mean()


def generator_loss(fake: Tensor, saturating: bool = True) -> Tensor:
    """What the generator minimises of eq. (12): (1/PK) sum log(1 - D(fake)), as the paper writes it.

    Args:
        fake: logits of D on generated features (PK,).
        saturating: False takes -log D(fake) instead (Goodfellow et al. 2014, section 3): the same fixed
            point, with gradients that do not vanish while the discriminator wins. Ours.
    """
    return F.logsigmoid(-fake).mean() if saturating else -F.logsigmoid(fake).mean()


def feature_consistency_loss(generated: Tensor, specific_centers: Tensor) -> Tensor:
    """Eq. (13), L_FC of one direction: (1/PK) sum_{p,k} || F'_sp^{k,p} - C_sp^p ||_1.

    Args:
        generated: generated specific features of the target modality (P*K, D), identity-major.
        specific_centers: C_sp of the target modality (P, D).
    """
    identities, dim = specific_centers.shape
    gap = generated.view(identities, -1, dim) - specific_centers.unsqueeze(1)
    return gap.abs().sum(dim=2).mean()


def weighted_regularized_triplet_loss(features: Tensor, labels: Tensor, normalize: bool = False) -> Tensor:
    """AGW's weighted regularised triplet loss; a baseline's, not FMCNet's.

    mean_i log(1 + exp( sum_{j in P_i} w_ij^+ d_ij - sum_{k in N_i} w_ik^- d_ik )),
    w_ij^+ = softmax over P_i of d_ij, w_ik^- = softmax over N_i of -d_ik, gradients through the weights as published.

    Source: Ye et al., "Deep Learning for Person Re-Identification: A Survey and Outlook", TPAMI 2021. Ours: the
    softmax is taken over the positives (without the anchor itself, at distance 0) or negatives alone. The released
    code subtracts the largest entry of a row that holds zeros for everything masked out, so with features of
    large scale every negative weight underflows to 0.

    Args:
        features: (B, D) of both modalities together, any scale. labels: (B,).
        normalize: bring features to unit length first (ours).

    Returns:
        Scalar, at least 0; the mean over anchors that have a positive and a negative, 0 where none has.
    """
    if features.dtype in _HALF:
        features = features.float()
    if normalize:
        features = F.normalize(features, dim=1)
    distances = _distances(features, features)
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    usable = positive.any(dim=1) & ~same.all(dim=1)
    # Anchors without one count nothing: masked, not taken out, which would wait for a GPU.
    positive, same = positive | ~usable[:, None], same & usable[:, None]
    # The softmax subtracts the masked row's own maximum.
    far = distances.masked_fill(~positive, -torch.inf).softmax(dim=1)
    near = (-distances).masked_fill(same, -torch.inf).softmax(dim=1)
    each = F.softplus((far * distances).sum(dim=1) - (near * distances).sum(dim=1))
    return (each * usable).sum() / usable.sum().clamp(min=1)


def hetero_center_loss(center_v: Tensor, center_i: Tensor) -> Tensor:
    """Hetero-centre loss: sum_p ||C_V^p - C_I^p||^2; a baseline's, not FMCNet's.

    Source: Zhu et al., "Hetero-Center Loss for Cross-Modality Person Re-Identification", Neurocomputing 2020.

    Args:
        center_v, center_i: centres (P, D).

    Returns:
        Scalar, at least 0. Symmetric under exchange of the modalities.
    """
    if center_v.dtype in _HALF:
        center_v, center_i = center_v.float(), center_i.float()
    return (center_v - center_i).square().sum()


def hetero_center_triplet_loss(center_v: Tensor, center_i: Tensor, margin: float = 0.3) -> Tensor:
    """Hetero-centre triplet loss; a baseline's, not FMCNet's.

    sum_p [ margin + ||C_V^p - C_I^p|| - min_{j != p, m} ||C_V^p - C_m^j|| ]_+ and its mirror image.

    Source: Liu et al., "Parameter Sharing Exploration and Hetero-Center Triplet Loss for Visible-Thermal Person
    Re-Identification", TMM 2020; margin 0.3 there.

    Args:
        center_v, center_i: centres (P, D). margin: how much farther other identities shall be.

    Returns:
        Scalar, at least 0; 0 for P = 1. Symmetric under exchange of the modalities.
    """
    across = _distances(center_v, center_i)
    own = across.diagonal()
    near_v = torch.minimum(_nearest_other(_distances(center_v, center_v)), _nearest_other(across))
    near_i = torch.minimum(_nearest_other(_distances(center_i, center_i)), _nearest_other(across.t()))
    return F.relu(margin + own - near_v).sum() + F.relu(margin + own - near_i).sum()


_HALF = (torch.float16, torch.bfloat16)


def _accumulator(like: Tensor) -> torch.dtype:
    return torch.float32 if like.dtype in _HALF else like.dtype
