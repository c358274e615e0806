"""Losses of your own in a training: what is checked before an image is read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fmcnet.config import Config
from fmcnet.errors import ConfigError
from fmcnet.losses.criterion import OTHER_TERMS, TERMS, OwnTerm
from fmcnet.training import health
from fmcnet.training.train_step import DISCRIMINATOR_GRADIENT, GRADIENT, SCALE

TAKEN = {*TERMS, *OTHER_TERMS, *health.NAMES, GRADIENT, DISCRIMINATOR_GRADIENT, SCALE} | {
    "loss",
    "rate",
    "lr",
    "step",
    "epoch",
    "validated_step",
}
"""Names that the log has for other numbers."""


def check_terms(terms: Mapping[str, OwnTerm] | None, config: Config) -> dict[str, OwnTerm]:
    """Check losses of your own against the settings.

    Args:
        terms: functions by name.
        config: whose `losses.terms` weighs them.

    Returns:
        The terms, in the order of their names: floating-point sums do not depend on the caller's order.

    Raises:
        ConfigError: for a name that is taken, what is no function, a loss with weights or buffers of its own, or a
            weight of a term that is not given.
    """
    if terms is not None and not isinstance(terms, Mapping):
        raise ConfigError(f"terms is of type {type(terms).__name__}: give a dict, as {{'mine': function}}")
    terms = {name: terms[name] for name in sorted(terms)} if terms else {}
    for name, term in terms.items():
        if name in TAKEN or not name.strip():
            raise ConfigError(f"terms: the name '{name}' is taken. Give this loss another name.")
        if not callable(term):
            raise ConfigError(f"terms: '{name}' is a {type(term).__name__}, not a function(output, labels)")
        if isinstance(term, nn.Module) and (term.state_dict() or list(term.parameters())):
            raise ConfigError(
                f"terms: '{name}' has weights or buffers of its own, which no optimiser trains and no checkpoint "
                "keeps. Give a function, or a loss without them."
            )
    lacking = [name for name in config.losses.terms if name not in terms]
    if lacking:
        raise ConfigError(
            f"losses.terms weighs {', '.join(lacking)}, which this training does not have: give the function by "
            "fmcnet.train(terms={...}), as the script did that began the run"
        )
    return terms
