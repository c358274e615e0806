"""FMCNet's loss, eq. (7), (10), (19): every weighted term by name, and their sum."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Set
from typing import cast

import torch
from torch import Tensor, nn

from fmcnet.config import Config, LossConfig, check_count
from fmcnet.errors import ConfigError, TrainingError
from fmcnet.losses import baselines
from fmcnet.losses import functional as losses
from fmcnet.models.compensation import Compensation, Discriminator
from fmcnet.models.fmcnet import FMCNetOutput, ModalityOutput
from fmcnet.types import Modality

logger = logging.getLogger(__name__)

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
    "wrt": "weighted regularised triplet, of the baseline AGW",
    "hc": "hetero-centre, plain or triplet, of a baseline",
}
"""Terms that are not the paper's; computed only if their setting is above 0."""

LOSSES = frozenset({*TERMS, *OTHER_TERMS} - {"discriminator"})
"""Names of the terms whose sum the network minimises: all but that of the discriminators."""


IDLE = 50
"""Batches without a step of the discriminators after which it is told."""

ExtraTerm = Callable[[FMCNetOutput, Tensor], Tensor]
"""A loss of your own: takes the output of a batch and its labels (P*K,), and gives a scalar."""


class FMCNetLoss(nn.Module):
    """The losses of both players of eq. (12): `forward` for the network, `discriminator_loss` for the discriminators.

    It has no parameters. In each step the discriminators come first:

        output = model(visible, infrared)
        criterion.discriminator_loss(output).backward()  # then the discriminators' optimiser steps
        model.compensation.renormalize()
        loss, terms = criterion(output, labels)
        loss.backward()  # then the other optimiser steps

    `DistributedDataParallel` averages gradients in the second backward pass alone. Before the discriminators'
    optimiser steps, average theirs: `fmcnet.distributed.average_gradients(discriminators, world)`.

    The forward pass may run under autocast: every loss lifts half precision to float32.

    A copy (`copy.deepcopy`, pickle) has discriminators of its own: make a new object of the model's instead.

    Args:
        config: margins and weights: `config.losses`, or all settings.
        identities: P, identities in a batch.
        compensation: that of the model, for its discriminators; None for Base and + SFD.
        gather: turns this process's centres (P, D) into those of all processes, so that (4), (5), (6) and (17)
            see every identity of the step; None: each process its own.
        terms: losses of your own by name, each weighed by `config.terms` (1 if not named there).

    Raises:
        ConfigError: when `config` holds no settings of the losses, another argument is of a wrong type, or
            `check_extra_terms` refuses the terms.
    """

    def __init__(
        self,
        config: LossConfig | Config,
        identities: int,
        compensation: Compensation | None = None,
        gather: Callable[[Tensor], Tensor] | None = None,
        terms: Mapping[str, ExtraTerm] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, (Config, LossConfig)):
            raise ConfigError(
                f"config is of type {type(config).__name__}: give config.losses of what load_config returns"
            )
        config = config.losses if isinstance(config, Config) else config
        check_count(identities, "identities", "the identities in a batch")
        if compensation is not None and not hasattr(compensation, "discriminator"):
            raise ConfigError(
                f"compensation is of type {type(compensation).__name__}: give model.compensation, or None"
            )
        self.config, self.identities, self.gather = config, identities, gather
        # The method, not the module: its weights are the model's, not the loss's.
        self._discriminator = None if compensation is None else compensation.discriminator
        self._extra = check_extra_terms(terms, config)
        self._labels_checked = False
        self._discriminators_train = False  # `discriminator_loss` was called
        self._steps = 0  # before that
        self._warned = set[str]()  # names of extra terms without a gradient

    def forward(self, output: FMCNetOutput, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute what encoders, classifiers, generators and fusion minimise.

        Args:
            output: of a batch of two aligned halves of P*K images.
            labels: (P*K,), the same for both halves, identity-major.

        Returns:
            The total, a scalar; its terms by the names of `TERMS` and `OTHER_TERMS`, as far as variant and settings
            have them, then your own.

        Raises:
            TrainingError: when a term of your own is not a scalar tensor.
            ValueError: for labels that are not of one half, not in 0..C-1, not identity-major or not of P identities,
                or without the `compensation` of a model that has one. On a GPU, for which the check would wait,
                labels are checked once.
        """
        v, i = output.visible, output.infrared
        uses_generated = self.config.gan or self.config.fc or self.config.ic
        if v.generated is not None and self._discriminator is None and uses_generated:
            raise ValueError(
                "the model generates features: give FMCNetLoss(..., compensation=model.compensation)"
            )
        losses.check_labels(labels)
        if not torch.compiler.is_compiling() and (labels.device.type == "cpu" or not self._labels_checked):
            self._check_labels(labels, v.shared_scores, centers=v.specific is not None or self.config.hc > 0)
            self._labels_checked = True
        terms = {"id_shared": self._identity_loss(v.shared_scores, i.shared_scores, labels)}  # (8)
        terms |= self._baseline_terms(v, i, labels)
        if v.specific is not None:
            terms["id_specific"] = self._identity_loss(v.specific_scores, i.specific_scores, labels)  # (8)
            terms |= self._decomposition_terms(v, i)  # (7)
        if self._discriminator is not None:
            terms |= self._compensation_terms(self._discriminator, output, labels)  # (12), (13), (14)
        if v.fused is not None:
            terms |= self._fusion_terms(v, i, labels)  # (19)
        trains = any(term.requires_grad for term in terms.values())
        terms |= self._extra_terms(output, labels, trains=trains)
        if trains and "gan" in terms and not self._discriminators_train and not torch.compiler.is_compiling():
            self._warn_of_idle_discriminators()
        return torch.stack([term.float() for term in terms.values()]).sum(), terms

    def discriminator_loss(self, output: FMCNetOutput) -> Tensor | None:
        """The negative of eq. (12), both directions, which the discriminators minimise; features are held fixed.

        Returns:
            A scalar; None without discriminators.
        """
        if self._discriminator is None:
            return None
        self._discriminators_train = True
        loss = losses.lift(output.visible.shared).new_zeros(())
        for target in (Modality.INFRARED, Modality.VISIBLE):
            real = cast(Tensor, output.of(target).specific).detach()
            fake = cast(Tensor, output.of(target.other).generated).detach()
            discriminator = self._discriminator(target)
            loss = loss - losses.adversarial_value(discriminator(real), discriminator(fake))  # (12)
        return loss

    def _warn_of_idle_discriminators(self) -> None:
        """Warn once, after `IDLE` batches without `discriminator_loss`."""
        self._steps += 1
        if self._steps == IDLE:
            logger.warning(
                "%d batches without discriminator_loss: the discriminators of eq. (12) learn nothing. Call it in "
                "each step and step their optimiser, as the docstring of FMCNetLoss does, or set losses.gan=0",
                IDLE,
            )

    def _decomposition_terms(self, v: ModalityOutput, i: ModalityOutput) -> dict[str, Tensor]:
        """L_MD, eq. (7), as its three weighted terms."""
        config = self.config
        terms = {}
        sp_v = self._centers(v.specific, config.center_scale)
        sp_i = self._centers(i.specific, config.center_scale)
        sh_v = self._centers(v.shared, config.center_scale)
        sh_i = self._centers(i.shared, config.center_scale)
        scale = config.md / self._divisor(sh_v)
        if config.shs:
            shs = losses.cross_modality_center_loss(sh_v, sh_i, config.alpha, config.rho3)  # (6)
            terms["shs"] = scale * shs
        if config.dc:
            dc = losses.decomposition_loss(sp_v, sp_i, sh_v, sh_i, config.rho1)  # (4)
            terms["dc"] = scale * config.lambda1 * dc
        if config.sps:
            sps = losses.specific_separation_loss(sp_v, sp_i, config.rho2)  # (5)
            terms["sps"] = scale * config.lambda2 * sps
        return terms

    def _compensation_terms(
        self, discriminator: Callable[[Modality], Discriminator], output: FMCNetOutput, labels: Tensor
    ) -> dict[str, Tensor]:
        """Eq. (12) for the generators, (13), (14), each summed over both directions."""
        config = self.config
        gan = fc = ic = losses.lift(output.visible.shared).new_zeros(())
        for target in (Modality.INFRARED, Modality.VISIBLE):
            source = output.of(target.other)
            generated = cast(Tensor, source.generated)
            fake = discriminator(target).as_constant(generated)
            gan = gan + losses.generator_loss(fake, config.saturating)  # (12)
            # The centres of (13) are of this process, unscaled: only (4), (5), (6), (17) compare identities.
            real = losses.centers(cast(Tensor, output.of(target).specific), self.identities)
            real = real.detach() if config.detach_targets else real
            fc = fc + losses.feature_consistency_loss(generated, real)  # (13)
            ic = ic + self._cross_entropy(source.generated_scores, labels)  # (14)
        weighted = {"gan": (config.gan, gan), "fc": (config.fc, fc), "ic": (config.ic, ic)}  # weights: ours
        return {name: weight * term for name, (weight, term) in weighted.items() if weight > 0}

    def _fusion_terms(self, v: ModalityOutput, i: ModalityOutput, labels: Tensor) -> dict[str, Tensor]:
        """L_SFF, eq. (19), as its two terms."""
        config = self.config
        fused_v = self._centers(v.fused, config.center_scale)
        fused_i = self._centers(i.fused, config.center_scale)
        mc = losses.cross_modality_center_loss(fused_v, fused_i, config.beta, config.rho4)  # (17)
        id_fused = self._identity_loss(v.fused_scores, i.fused_scores, labels)  # (18)
        return {"mc": config.mc / self._divisor(fused_v) * mc, "id_fused": id_fused}

    def _baseline_terms(self, v: ModalityOutput, i: ModalityOutput, labels: Tensor) -> dict[str, Tensor]:
        """The `OTHER_TERMS` that settings switch on, of the shared features of both halves."""
        config = self.config
        terms = {}
        if config.wrt > 0:
            features = torch.cat([v.shared, i.shared])
            labels_of_both = torch.cat([labels, labels])
            if self.gather is not None:
                features, labels_of_both = self.gather(features), self.gather(labels_of_both)
            terms["wrt"] = config.wrt * baselines.weighted_regularized_triplet_loss(features, labels_of_both)
        if config.hc > 0:
            c_v, c_i = self._centers(v.shared), self._centers(i.shared)
            if config.hc_loss == "triplet":
                loss = baselines.hetero_center_triplet_loss(c_v, c_i, config.hc_margin)
            else:
                loss = baselines.hetero_center_loss(c_v, c_i)
            terms["hc"] = config.hc * loss / self._divisor(c_v)
        return terms

    def _identity_loss(self, scores_v: Tensor | None, scores_i: Tensor | None, labels: Tensor) -> Tensor:
        """The cross-entropies of both halves, (8) or (18)."""
        return self._cross_entropy(scores_v, labels) + self._cross_entropy(scores_i, labels)

    def _cross_entropy(self, scores: Tensor | None, labels: Tensor) -> Tensor:
        """One term of (8), (14) or (18)."""
        return losses.identity_loss(cast(Tensor, scores), labels, self.config.label_smoothing)

    def _centers(self, features: Tensor | None, scale: float = 1.0) -> Tensor:
        """Eq. (3): centres of one half's features (P*K, D), of all processes; `scale` is ours."""
        centers = losses.centers(cast(Tensor, features), self.identities)
        if scale != 1:
            centers = scale * centers
        return centers if self.gather is None else self.gather(centers)

    def _divisor(self, centers: Tensor) -> float:
        """Divisor of a sum over identities: 1 as the paper, or their number for the mean (ours)."""
        return len(centers) if self.config.reduction == "mean" else 1

    def _check_labels(self, labels: Tensor, scores: Tensor, *, centers: bool) -> None:
        """Refuse labels that do not fit the scores and, where centres are needed, a wrong order or number."""
        rows, classes = scores.shape
        if labels.shape != (rows,):
            raise ValueError(
                f"labels are those of one half, ({rows},), the same for both; got {tuple(labels.shape)}"
            )
        for label in labels.aminmax():
            if not 0 <= label < classes:
                raise ValueError(f"labels are 0 to C - 1 = {classes - 1}, got {int(label)}")
        if centers and len(labels) % self.identities == 0:  # else `centers` raises
            groups = labels.view(self.identities, -1)
            if (groups != groups[:, :1]).any() or len(groups[:, 0].unique()) != self.identities:
                raise ValueError(
                    f"labels must be identity-major: {self.identities} identities, the images of each in a row, as "
                    "IdentityModalitySampler gives them"
                )

    def _extra_terms(self, output: FMCNetOutput, labels: Tensor, *, trains: bool) -> dict[str, Tensor]:
        """Your own terms, weighted; in a step that `trains`, warns once of each without a gradient."""
        weighted = {}
        for name, term in self._extra.items():
            value: object = term(output, labels)
            if not isinstance(value, Tensor) or value.numel() != 1:
                type_name = type(value).__name__
                description = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type_name
                raise TrainingError(
                    f"the loss term '{name}' gives {description}, not a scalar tensor: return its mean or its sum"
                )
            term_value = weighted[name] = self.config.terms.get(name, 1.0) * value.reshape(())
            # A term of 0 is excepted: the batch may lack a pair for it.
            if trains and not term_value.requires_grad and name not in self._warned and term_value.item():
                self._warned.add(name)
                logger.log(
                    logging.WARNING if os.environ.get("RANK", "0") == "0" else logging.DEBUG,  # once in a job
                    "the loss term '%s' has no gradient, so it trains nothing: compute it from the output's tensors, "
                    "without .item() and .detach()",
                    name,
                )
        return weighted


def check_extra_terms(
    terms: Mapping[str, ExtraTerm] | None, config: LossConfig, taken: Set[str] = frozenset()
) -> dict[str, ExtraTerm]:
    """Check losses of your own against the settings; returns them in the order of their names.

    So floating-point sums do not depend on the caller's order. `taken` are names that the log uses already.

    Raises:
        ConfigError: for a name that is taken, a term that is no function, a loss with weights or buffers of its own,
            or a weight of a term that is not given.
    """
    if terms is not None and not isinstance(terms, Mapping):
        raise ConfigError(f"terms is of type {type(terms).__name__}: give a dict, as {{'mine': function}}")
    terms = terms or {}
    if unusable := [name for name in terms if not isinstance(name, str) or not name.strip()]:
        raise ConfigError(f"terms: {unusable[0]!r} is no name of a loss: give a text, as 'mine'")
    terms = {name: terms[name] for name in sorted(terms)}
    for name, term in terms.items():
        if name in {*TERMS, *OTHER_TERMS, *taken}:
            raise ConfigError(f"terms: the name '{name}' is taken. Give this loss another name.")
        if not callable(term):
            raise ConfigError(f"terms: '{name}' is a {type(term).__name__}, not a function(output, labels)")
        if isinstance(term, nn.Module) and (term.state_dict() or list(term.parameters())):
            raise ConfigError(
                f"terms: '{name}' has weights or buffers of its own, which no optimiser trains and no checkpoint "
                "keeps. Give a function, or a loss without them."
            )
    missing = [name for name in config.terms if name not in terms]
    if missing:
        raise ConfigError(
            f"losses.terms weighs {', '.join(missing)}, which this training does not have: give the function by "
            "fmcnet.train(terms={...}), as the script did that began the run, or by FMCNetLoss(terms={...})"
        )
    return terms
