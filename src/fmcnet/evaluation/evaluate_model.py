"""A trained run on a dataset: embed once, evaluate by the dataset's own protocols, compare with chance."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.config import EvaluationConfig
from fmcnet.data.table import FEW_SEEN, Table, fingerprint, names_note, seen_identities
from fmcnet.errors import DataError, ProtocolError
from fmcnet.evaluation import protocols
from fmcnet.evaluation.draws import find_permutation
from fmcnet.evaluation.evaluate import Evaluation, copies_note, evaluate
from fmcnet.evaluation.protocols import Protocol
from fmcnet.evaluation.reranking import Extra, KReciprocal, QueryExpansion
from fmcnet.inference.encoder import Encoder, load
from fmcnet.models.shipped import is_shipped
from fmcnet.types import Embeddings

logger = logging.getLogger(__name__)

EMBEDDINGS = "embeddings"
FLIP = "flip at test time"
PROTOCOL_SETTINGS = {
    "sysu": ("mode", "shots", "draw", "trials"),
    "regdb": ("cmc",),
    "llcm": ("reading", "trials"),
}
"""Settings that only some benchmarks have; the others hold for all."""


@dataclass(frozen=True)
class DirectionResult:
    """One direction of one run."""

    direction: str  # "i2v" or "v2i" (RegDB: i is thermal); "custom" for your own protocol
    protocol: Protocol
    result: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `fmcnet.experiments.compare` reads it again."""
        return {
            "direction": self.direction,
            "settings": self.protocol.settings,
            **self.result.to_dict(),
        }


@dataclass(frozen=True)
class EvaluatedRun:
    """A run's embeddings of a test set and their evaluations."""

    encoder: Encoder
    table: Table  # the test set
    embeddings: Embeddings  # of the table's images
    evaluations: tuple[DirectionResult, ...]  # by protocol
    # The runs of all RegDB splits, if `evaluations` pools them; all else is then the last run's.
    parts: tuple[EvaluatedRun, ...] = ()


def protocols_for(table: Table, config: EvaluationConfig) -> dict[str, Protocol]:
    """The protocols of the table's benchmark, by direction.

    With `config.draw` "auto" SYSU-MM01 takes the official draw where `rand_perm_cam.mat` lies in the dataset
    and the seeded one where it does not; the protocol's sentence says which. A CSV's images are searched all against
    all in the other modality, and nothing is skipped.
    """
    default = "v2i" if protocols.DEFAULT_DIRECTIONS.get(table.name, "i2v").startswith("v") else "i2v"
    directions = {"both": ("i2v", "v2i"), "auto": (default,)}.get(config.direction, (config.direction,))
    return {direction: _benchmark_protocol(table, config, direction) for direction in directions}


def _benchmark_protocol(table: Table, config: EvaluationConfig, direction: str) -> Protocol:
    if table.name == "sysu":
        permutation = None
        if config.draw != "seeded":
            try:
                permutation = find_permutation(table.root)
            except ProtocolError:
                if config.draw == "official":
                    raise
        draw = "official" if permutation else "seeded"
        return protocols.sysu(config.mode, config.shots, draw, permutation, config.trials, direction)
    if table.name == "regdb":
        return protocols.regdb("t2v" if direction == "i2v" else "v2t", config.cmc)
    if table.name == "llcm":
        return protocols.llcm(config.reading, direction, config.trials)
    return protocols.across(table.name, direction)


def check_settings(table: Table, names: Iterable[str]) -> None:
    """Refuse settings of another benchmark's protocol.

    Args:
        table: the dataset.
        names: of the fields of `EvaluationConfig` that the user set.

    Raises:
        ProtocolError: naming those that would do nothing on this table.
    """
    own = PROTOCOL_SETTINGS.get(table.name, ())
    others = {name for settings in PROTOCOL_SETTINGS.values() for name in settings if name not in own}
    unused = [name for name in names if name in others]
    if unused:
        raise ProtocolError(
            f"{table.origin} ({table.name}) has no {' and no '.join(unused)} in its protocol: leave it out"
        )


def standard_settings(table: Table, config: EvaluationConfig) -> tuple[EvaluationConfig, ...]:
    """The benchmark's standard protocols: `config`, and for SYSU-MM01's all-search also its indoor-search."""
    if table.name != "sysu" or (config.mode, config.shots) != ("all", 1):
        return (config,)
    return config, config.model_copy(update={"mode": "indoor"})


def role_masks(table: Table) -> dict[str, Any]:
    """Masks (N,) of the rows that may be queries and gallery images: those of that role, and those of none.

    The keys are the keyword arguments of the functions of evaluation.
    """
    return {f"{role}_mask": (table.role == role) | (table.role == "") for role in ("query", "gallery")}


def evaluate_model(
    run: str | Path,
    table: Table,
    config: EvaluationConfig | Sequence[EvaluationConfig] | None = None,
    *,
    split: str = "test",
    device: str = "auto",
    flip: bool = False,
    rerank: bool = False,
    expand: bool = False,
    progress: bool | None = None,
    given: Mapping[str, Protocol] | None = None,
) -> EvaluatedRun:
    """Evaluate a run on a dataset's test identities.

    Args:
        run: a run folder; embeddings are kept in its `embeddings/`, so a second evaluation takes seconds.
        table: the whole dataset.
        config: protocol settings, or several that differ in the protocol; None: those of the run.
        split: which identities: "train", "val" or "test".
        device: where to embed: "auto", "cpu", "cuda", ...
        flip: average each embedding with its mirror image's; named in every report.
        rerank: k-reciprocal re-ranking; named in every report, with the plain figures.
        expand: average query expansion; reported in the same way.
        progress: show a bar; None: on a terminal only.
        given: protocols by direction; None: those of the dataset (`protocols_for`).

    Returns:
        The embeddings of the split and an evaluation for each protocol, in their order.

    Raises:
        DataError: when the split is empty, or identities of it, or images of more than a few, were trained on.
    """
    encoder = load(run, device)
    configs = config if isinstance(config, Sequence) else (config or encoder.card.config.evaluation,)
    settings = configs[0]
    rows = table.of_split(split)
    _check_unseen(encoder, run, table, rows, split)
    store = None if encoder.folder is None or is_shipped(encoder.folder) else encoder.folder / EMBEDDINGS
    options: dict[str, Any] = {"batch_size": settings.batch, "store": store, "progress": progress}
    plain = encoder.embed_table(rows, **options)
    embeddings = encoder.embed_table(rows, flip=True, **options) if flip else plain
    extras: list[Extra] = [QueryExpansion()] if expand else []
    extras += [KReciprocal()] if rerank else []
    rules = list((given or {}).items())
    if not given:
        rules = [rule for each in configs for rule in protocols_for(rows, each).items()]
    across = all(protocol.query.modality is not protocol.gallery.modality for _, protocol in rules)
    if not across and (note := copies_note(plain.features)):  # across modalities no image is its own match
        logger.warning("%s: %s", table.origin, note)
    rule_options = {"distance": settings.distance, **role_masks(rows)}
    results = []
    for direction, protocol in rules:
        result = evaluate(embeddings, protocol, extras=extras, **rule_options)
        if flip:
            plain_result = evaluate(plain, protocol, **rule_options)
            result = replace(result, extras=(FLIP, *result.extras), plain=plain_result)
        results.append(DirectionResult(direction, protocol, result))
    return EvaluatedRun(encoder, rows, embeddings, tuple(results))


def _check_unseen(encoder: Encoder, run: str | Path, table: Table, rows: Table, split: str) -> None:
    """Refuse identities that the run was trained on; a few known by their images only give a warning."""
    if encoder.card.data == fingerprint(table):
        trained = np.intersect1d(rows.pid, np.array(encoder.card.pids, dtype=np.int64))
        if len(trained):
            raise DataError(
                f"{len(trained)} of the {split} identities are among those that {run} was trained on, the first is "
                f"{table.pid_name(int(trained[0]))}: the splits of {table.origin} have changed since"
            )
    if len(seen := seen_identities(encoder.card.seen_samples, rows)):
        message = (
            f"{len(seen)} of the {split} identities have images that {run}, the model that it started from or its "
            f"projection was trained on, the first is {table.pid_name(int(seen[0]))}: leave them out of the {split} "
            "split"
        )
        if len(seen) > FEW_SEEN * len(np.unique(rows.pid)):
            raise DataError(message)
        logger.warning("%s", message)  # a few may be copies under a wrong name
    elif rows.name == encoder.card.dataset and (note := names_note(encoder.card.identities, rows, str(run))):
        logger.warning("%s", note)
