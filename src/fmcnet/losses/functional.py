"""One pure function per equation of the paper; `docs/concepts/method.md` maps equation, function and test.

Notation: P identities, K images of each in each modality, features (P*K, D) in identity-major order (the
k-th image of identity p stands in row p*K + k), centres (P, D). Euclidean norms. Half-precision input is
lifted to float32 before any distance. PyTorch has no second derivative of distances, so (4), (5), (6) and
(17) have none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fmcnet.config import LossConfig

PAPER = LossConfig()
"""The margins and weights of the paper, the defaults below."""
NO_LABEL = torch.iinfo(torch.int64).min
"""In place of PyTorch's -100, a label whose rows it leaves out silently."""


def centers(features: Tensor, identities: int) -> Tensor:
    """Eq. (3): identity centres C^p = (1/K) sum_k f^{k,p}.

    Args:
        features: (P*K, D), identity-major.
        identities: P.

    Returns:
        (P, D).

    Raises:
        ValueError: when the number of rows is not a multiple of P.
    """
    features = lift(features)
    rows, dim = features.shape
    if identities < 1 or rows < identities or rows % identities:
        raise ValueError(f"{rows} features cannot be {identities} identities of equally many images")
    return features.view(identities, rows // identities, dim).mean(dim=1)


def check_alike(a: Tensor, *others: Tensor) -> None:
    """Refuse no centres, and those of shapes that PyTorch would broadcast.

    Raises:
        ValueError: when the shapes differ, or nothing is in them.
    """
    if not a.numel() or any(b.shape != a.shape for b in others):
        shapes = " and ".join(str((*b.shape,)) for b in (a, *others))
        raise ValueError(f"centres of both modalities have one shape (P, D), got {shapes}")


def check_labels(labels: object) -> None:
    """Refuse labels that are no tensor of integers.

    Raises:
        ValueError: naming their type.
    """
    given = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
    if not isinstance(labels, Tensor) or labels.dtype == torch.bool or labels.is_floating_point():
        raise ValueError(f"labels are a tensor of integers 0 to C - 1, got {given}")


def lift(values: Tensor) -> Tensor:
    """Convert half precision to float32; other types stay."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def pairwise_distances(a: Tensor, b: Tensor) -> Tensor:
    """(P, D), (Q, D) to Euclidean distances (P, Q); the gradient at distance 0 is 0."""
    return torch.cdist(lift(a), lift(b), compute_mode="donot_use_mm_for_euclid_dist")


def nearest_other(distances: Tensor) -> Tensor:
    """The smallest distance (P,) of each row of (P, P), without the diagonal; infinite for P = 1."""
    diagonal = torch.eye(len(distances), dtype=torch.bool, device=distances.device)
    return distances.masked_fill(diagonal, torch.inf).min(dim=1).values


def distances_across(center_v: Tensor, center_i: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances of the centres of two modalities (P, D), as (6), (17) and the hetero-centre triplet take them.

    Returns:
        Of each identity (P,): ||C_V^p - C_I^p||; from C_V^p and from C_I^p to the nearest centre of another identity
        in either modality, infinite for P = 1.
    """
    check_alike(center_v, center_i)
    across = pairwise_distances(center_v, center_i)
    positive = across.diagonal()
    negative_v = torch.minimum(nearest_other(pairwise_distances(center_v, center_v)), nearest_other(across))
    negative_i = torch.minimum(
        nearest_other(pairwise_distances(center_i, center_i)), nearest_other(across.t())
    )
    return positive, negative_v, negative_i


def decomposition_loss(
    specific_v: Tensor, specific_i: Tensor, shared_v: Tensor, shared_i: Tensor, margin: float = PAPER.rho1
) -> Tensor:
    """Eq. (4), L_dc: within a modality specific and shared centres fall apart.

    sum_p sum_m [ max_d ||C_sp,m^p - C_sp,m^d|| - min_j ||C_sp,m^p - C_sh,m^j|| + rho1 ]_+

    Args:
        specific_v: centres C_sp,V (P, D).
        specific_i: centres C_sp,I (P, D).
        shared_v: centres C_sh,V (P, D).
        shared_i: centres C_sh,I (P, D).
        margin: rho1.

    Returns:
        Scalar, at least 0. Symmetric under exchange of the modalities.

    Raises:
        ValueError: when the centres differ in shape.
    """
    check_alike(specific_v, specific_i, shared_v, shared_i)
    total = lift(specific_v).new_zeros(())
    for specific, shared in ((specific_v, shared_v), (specific_i, shared_i)):
        widest = pairwise_distances(specific, specific).max(dim=1).values  # (P,)
        nearest = pairwise_distances(specific, shared).min(dim=1).values  # (P,)
        total = total + F.relu(widest - nearest + margin).sum()
    return total


def specific_separation_loss(specific_v: Tensor, specific_i: Tensor, margin: float = PAPER.rho2) -> Tensor:
    """Eq. (5), L_sps: specific centres of different identities keep apart.

    sum_p sum_m [ rho2 - min_{j != p} ||C_sp,m^p - C_sp,m^j|| ]_+

    Args:
        specific_v: centres C_sp,V (P, D).
        specific_i: centres C_sp,I (P, D).
        margin: rho2.

    Returns:
        Scalar, at least 0; 0 for P = 1. Symmetric under exchange of the modalities.
    """
    check_alike(specific_v, specific_i)
    total = lift(specific_v).new_zeros(())
    for specific in (specific_v, specific_i):
        total = total + F.relu(margin - nearest_other(pairwise_distances(specific, specific))).sum()
    return total


def cross_modality_center_loss(
    center_v: Tensor, center_i: Tensor, weight: float = PAPER.alpha, margin: float = PAPER.rho3
) -> Tensor:
    """Eq. (6), L_shs, on shared centres; eq. (17), L_MC, on the centres of F_fp.

    sum_p ( weight ||C_V^p - C_I^p|| + [ margin - min_{j != p, m} ||C_V^p - C_m^j|| ]_+
                                     + [ margin - min_{d != p, m} ||C_I^p - C_m^d|| ]_+ )

    Args:
        center_v: centres of visible images (P, D).
        center_i: centres of infrared images (P, D).
        weight: alpha of (6), beta of (17).
        margin: rho3 of (6), rho4 of (17).

    Returns:
        Scalar, at least 0. Symmetric under exchange of the modalities.
    """
    positive, negative_v, negative_i = distances_across(center_v, center_i)
    return weight * positive.sum() + F.relu(margin - negative_v).sum() + F.relu(margin - negative_i).sum()


def identity_loss(scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """One cross-entropy term of eq. (8), (14) and (18), the mean over the batch.

    Args:
        scores: (B, C).
        labels: (B,) in 0..C-1, integers.
        label_smoothing: 0 is the paper; more is ours.

    Raises:
        ValueError: for labels that are not a tensor of integers.
        IndexError: on the CPU, for a label outside 0..C-1.
    """
    check_labels(labels)
    return F.cross_entropy(
        lift(scores), labels.long(), ignore_index=NO_LABEL, label_smoothing=label_smoothing
    )


def adversarial_value(real: Tensor, fake: Tensor) -> Tensor:
    """Eq. (12), L_GAN of one direction: (1/PK) sum [ log D(real) + log(1 - D(fake)) ].

    The discriminator maximises it, the generator minimises it. Computed from logits: finite for any of them.

    Args:
        real: logits of D on F_sp (PK,).
        fake: logits of D on generated features (PK,).

    Returns:
        Scalar, at most 0.
    """
    return F.logsigmoid(lift(real)).mean() + F.logsigmoid(-lift(fake)).mean()


def generator_loss(fake: Tensor, saturating: bool = True) -> Tensor:
    """The part of eq. (12) that the generator minimises: (1/PK) sum log(1 - D(fake)), as the paper writes it.

    Args:
        fake: logits of D on generated features (PK,).
        saturating: False takes -log D(fake) instead (Goodfellow et al. 2014, section 3): the same fixed
            point, with gradients that do not vanish while the discriminator wins. Ours.
    """
    fake = lift(fake)
    return F.logsigmoid(-fake).mean() if saturating else -F.logsigmoid(fake).mean()


def feature_consistency_loss(generated: Tensor, specific_centers: Tensor) -> Tensor:
    """Eq. (13), L_FC of one direction: (1/PK) sum_{p,k} || F'_sp^{k,p} - C_sp^p ||_1.

    Args:
        generated: generated specific features of the target modality (P*K, D), identity-major.
        specific_centers: C_sp of the target modality (P, D).

    Raises:
        ValueError: when the features are not of P identities or not of D values.
    """
    generated, specific_centers = lift(generated), lift(specific_centers)
    shapes = (*generated.shape,), (*specific_centers.shape,)
    fits = [len(shape) for shape in shapes] == [2, 2] and shapes[0][1] == shapes[1][1] and shapes[1][0] > 0
    if not fits or len(generated) % len(specific_centers):
        raise ValueError(
            f"generated features are (P*K, D) and centres (P, D), got {shapes[0]} and {shapes[1]}"
        )
    difference: Tensor = generated.unflatten(0, (len(specific_centers), -1)) - specific_centers.unsqueeze(1)
    return difference.abs().sum(dim=2).mean()
