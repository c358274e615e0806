"""The composition of the paper's losses, eq. (7), (10), (19): every term by name, weighted as it is summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from fmcnet.config import LossConfig
from fmcnet.losses import functional as losses
from fmcnet.models.fmcnet import FMCNet, FMCNetOutput, ModalityOutput
from fmcnet.types import Modality

TERMS = {
    "id_shared": "eq. (8)",
    "id_specific": "eq. (8)",
    "shs": "eq. (6)",
    "dc": "lambda1 x eq. (4)",
    "sps": "lambda2 x eq. (5)",
    "gan": "eq. (12), generators",
    "fc": "eq. (13)",
    "ic": "eq. (14)",
    "mc": "eq. (17)",
    "id_fused": "eq. (18)",
    "discriminator": "eq. (12), discriminators",
}
"""Name of every logged term of the paper and the equation it is; weights are included."""

OTHER_TERMS = {
    "wrt": "weighted regularised triplet (AGW): a baseline's",
    "hc": "hetero-centre, plain or triplet: a baseline's",
    "id_parts": "cross-entropy of the stripes' classifiers, mean over stripes (PCB): ours",
}
"""Terms that are not the paper's, there only when their setting asks for them."""

LOSSES = frozenset({*TERMS, *OTHER_TERMS} - {"discriminator"})
"""Names of the terms whose sum encoders, classifiers, generators and fusion minimise."""


def objective(
    model: FMCNet,
    output: FMCNetOutput,
    labels: Tensor,
    identities: int,
    config: LossConfig,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """What encoders, classifiers, generators and fusion minimise; the total is the sum of the values.

    Args:
        model: gives the discriminators, which are read here but not trained.
        output: of a batch of two aligned halves of P*K images.
        labels: (P*K,), the same for both halves. identities: P.
        config: margins and weights.
        gather: turns this process's centres (P, D) into those of all processes, so that (4), (5), (6) and (17)
            see every identity of the step; None: each process its own.

    Returns:
        Scalars by the names of `TERMS` and `OTHER_TERMS`, only those that variant and settings have.
    """
    v, i = output.visible, output.infrared
    smoothing = config.label_smoothing

    def ce(scores: Tensor | None) -> Tensor:
        return losses.identity_loss(cast(Tensor, scores), labels, smoothing)

    terms = {"id_shared": ce(v.shared_scores) + ce(i.shared_scores)}
    terms |= _other_terms(v, i, labels, identities, config, gather)
    if v.specific is None or i.specific is None:
        return terms
    terms["id_specific"] = ce(v.specific_scores) + ce(i.specific_scores)
    terms |= _decomposition_terms(v, i, identities, config, gather)
    if model.compensation is not None:
        terms |= _compensation_terms(model, output, labels, identities, config)
    if v.fused is not None and i.fused is not None:
        fused_v, fused_i = (
            _centers(feature, identities, config.center_scale, gather) for feature in (v.fused, i.fused)
        )
        scale = config.mc / (len(fused_v) if config.reduction == "mean" else 1)
        terms["mc"] = scale * losses.cross_modality_center_loss(fused_v, fused_i, config.beta, config.rho4)
        terms["id_fused"] = ce(v.fused_scores) + ce(i.fused_scores)
    return terms


def discriminator_objective(model: FMCNet, output: FMCNetOutput) -> dict[str, Tensor]:
    """What the discriminators minimise: the negative of eq. (12), both directions; features are held fixed."""
    if model.compensation is None:
        return {}
    total = output.visible.shared.new_zeros(())
    for target in (Modality.INFRARED, Modality.VISIBLE):
        real = cast(Tensor, output.of(target).specific).detach()
        fake = cast(Tensor, output.of(target.other).generated).detach()
        judge = model.compensation.judge(target)
        total = total - losses.adversarial_value(judge(real), judge(fake))
    return {"discriminator": total}


def _centers(
    feature: Tensor, identities: int, scale: float, gather: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Eq. (3), scaled, with the centres of all processes."""
    own = losses.centers(feature, identities)
    own = own if scale == 1 else scale * own
    return own if gather is None else gather(own)


def _other_terms(
    v: ModalityOutput,
    i: ModalityOutput,
    labels: Tensor,
    identities: int,
    config: LossConfig,
    gather: Callable[[Tensor], Tensor] | None,
) -> dict[str, Tensor]:
    """`OTHER_TERMS`, on the shared features of both halves; none unless asked for."""
    terms: dict[str, Tensor] = {}
    if v.part_scores is not None and i.part_scores is not None:
        terms["id_parts"] = torch.stack(
            [
                losses.identity_loss(scores, labels, config.label_smoothing)
                for half in (v.part_scores, i.part_scores)
                for scores in half.unbind(1)
            ]
        ).mean()
    if config.wrt > 0:
        both, twice = torch.cat([v.shared, i.shared]), torch.cat([labels, labels])
        if gather is not None:
            both, twice = gather(both), gather(twice)
        loss = losses.weighted_regularized_triplet_loss(both, twice, config.triplet_normalize)
        terms["wrt"] = config.wrt * loss
    if config.hc > 0:
        c_v, c_i = (_centers(half.shared, identities, 1, gather) for half in (v, i))
        if config.hc_loss == "triplet":
            loss = losses.hetero_center_triplet_loss(c_v, c_i, config.hc_margin)
        else:
            loss = losses.hetero_center_loss(c_v, c_i)
        terms["hc"] = config.hc * loss / (len(c_v) if config.reduction == "mean" else 1)
    return terms


def _decomposition_terms(
    v: ModalityOutput,
    i: ModalityOutput,
    identities: int,
    config: LossConfig,
    gather: Callable[[Tensor], Tensor] | None,
) -> dict[str, Tensor]:
    """L_MD, eq. (7), as its three weighted terms."""
    sp_v, sp_i = (
        _centers(cast(Tensor, half.specific), identities, config.center_scale, gather) for half in (v, i)
    )
    sh_v, sh_i = (_centers(half.shared, identities, config.center_scale, gather) for half in (v, i))
    scale = config.md / (len(sh_v) if config.reduction == "mean" else 1)
    terms: dict[str, Tensor] = {}
    if config.shs:
        terms["shs"] = scale * losses.cross_modality_center_loss(sh_v, sh_i, config.alpha, config.rho3)
    if config.dc:
        terms["dc"] = scale * config.lambda1 * losses.decomposition_loss(sp_v, sp_i, sh_v, sh_i, config.rho1)
    if config.sps:
        terms["sps"] = scale * config.lambda2 * losses.specific_separation_loss(sp_v, sp_i, config.rho2)
    return terms


def _compensation_terms(
    model: FMCNet, output: FMCNetOutput, labels: Tensor, identities: int, config: LossConfig
) -> dict[str, Tensor]:
    """Eq. (12) for the generators, (13), (14), each summed over both directions."""
    assert model.compensation is not None
    zero = output.visible.shared.new_zeros(())
    gan, fc, ic = zero, zero, zero
    for target in (Modality.INFRARED, Modality.VISIBLE):
        source = output.of(target.other)
        generated, scores = cast(Tensor, source.generated), cast(Tensor, source.generated_scores)
        judge = model.compensation.judge(target)
        gan = gan + losses.generator_loss(judge.as_constant(generated), config.saturating)
        real = losses.centers(cast(Tensor, output.of(target).specific), identities)
        real = real.detach() if config.detach_targets else real
        fc = fc + losses.feature_consistency_loss(generated, real)
        ic = ic + losses.identity_loss(scores, labels, config.label_smoothing)
    terms = {"gan": config.gan * gan, "fc": config.fc * fc, "ic": config.ic * ic}
    weights = {"gan": config.gan, "fc": config.fc, "ic": config.ic}
    return {name: term for name, term in terms.items() if weights[name] > 0}


def total(terms: dict[str, Tensor]) -> Tensor:
    """The sum of all terms."""
    return torch.stack([term.float() for term in terms.values()]).sum()
