"""Every row of the paper's tables, and every baseline, as data: title, settings, the paper's figures, source.

A row has no code of its own: its settings override the study's configuration.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from fmcnet.errors import FmcnetError

DIRECTION_NAMES = {"i2v": "infrared to visible", "v2i": "visible to infrared"}
"""Both directions of search, in words."""


@dataclass(frozen=True)
class TableRow:
    """One row of a table."""

    key: str  # names the row, and the runs that only it has
    title: str  # as reports print it
    overrides: tuple[str, ...]  # settings, "section.key=value"
    # Rank-1 and mAP in percent on SYSU-MM01, all-search, single-shot; None where the paper has none.
    paper: tuple[float, float] | None = None
    source: str = ""  # the publication, for a baseline
    deviations: tuple[str, ...] = ()  # what differs from it here


@dataclass(frozen=True)
class Study:
    """One table or figure."""

    name: str  # as the command takes it
    title: str  # as reports print it
    rows: tuple[TableRow, ...]  # in the paper's order
    pairs: tuple[tuple[str, str], ...]  # (row, what it is compared with), by key
    maps: bool = False  # t-SNE maps and the numbers of Figures 4 and 5 are made of its rows

    def only(self, keys: tuple[str, ...]) -> Study:
        """The study with the rows of these keys, and the pairs between them; no keys: the whole study."""
        if not keys:
            return self
        rows = tuple(row for row in self.rows if row.key in keys)
        pairs = tuple(pair for pair in self.pairs if set(pair) <= set(keys))
        return replace(self, rows=rows, pairs=pairs)

    def row(self, key: str) -> TableRow:
        """The row of a key."""
        return next(row for row in self.rows if row.key == key)


def _neighbours(rows: tuple[TableRow, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((after.key, before.key) for before, after in itertools.pairwise(rows))


FULL = ("model.variant=full",)
BASE = ("model.variant=base",)
NO_MD = ("losses.shs=false", "losses.sps=false", "losses.dc=false")
CAJ = ("augment.channel=exchange", "augment.channel_probability=0.5")
PLUS = ("model.descriptor=discriminant",)
"""The descriptor of fmcnet-plus: a discriminant projection."""

RAW = ("model.neck=true", "model.normalization=none")
"""Features as AGW has them: as pooled, a BNNeck before the classifier."""

AGW = (*BASE, *RAW, "model.pooling=gem", "losses.wrt=12")
HC = (*BASE, "losses.hc=6")
"""Weights, and features centred by modality for the hetero-centre triplet, chosen by trials (docs/findings.md)."""

_TABLE2 = (
    TableRow("base", "Base", BASE, (57.09, 53.11)),
    TableRow("sfd", "+ SFD (shared features only)", ("model.variant=sfd",), (63.16, 58.83)),
    TableRow("fmc", "+ FMC (simple concatenation)", ("model.variant=fmc",), (65.50, 62.32)),
    TableRow("full", "+ SFF (full)", FULL, (66.34, 62.51)),
)
_TABLE3 = (
    TableRow("md-none", "L_ID", (*FULL, *NO_MD), (58.68, 54.33)),
    TableRow("md-shs", "+ L_shs", (*FULL, "losses.sps=false", "losses.dc=false"), (63.96, 58.64)),
    TableRow("md-shs-sps", "+ L_sps", (*FULL, "losses.dc=false"), (64.68, 59.34)),
    TableRow("md-all", "+ L_dc (full)", FULL, (66.34, 62.51)),
)
_TABLE4 = (
    TableRow("fmc-none", "without FMC", ("model.variant=sfd",), (63.16, 58.83)),
    TableRow("fmc-ic-fc", "L_IC + L_FC", (*FULL, "losses.gan=0"), (57.78, 55.56)),
    TableRow("fmc-gan", "L_GAN", (*FULL, "losses.ic=0", "losses.fc=0"), (62.56, 58.40)),
    TableRow("fmc-gan-ic", "L_GAN + L_IC", (*FULL, "losses.fc=0"), (65.61, 62.17)),
    TableRow("fmc-all", "L_GAN + L_IC + L_FC (full)", FULL, (66.34, 62.51)),
)

_SHARED_DEVIATIONS = "FMCNet's data, sampler, augmentation, stems, optimiser, schedule and evaluator"
_OF_CONFIGURATION = "pooling, neck, length and normalisation of the features as the configuration has them"
_FROM_BASE = "the paper's Base: two stems, one shared tail, identity loss"
_FROM_PLUS = "ours: FMCNet with a discriminant descriptor"
# Of each other method the source, then what differs from it here.
_FROM_AGW = (
    "Ye et al., Deep Learning for Person Re-Identification: A Survey and Outlook, TPAMI 2021 (cross-modality)",
    _SHARED_DEVIATIONS,
    "no non-local blocks",
    "softmax weights over positives without the anchor, and safe at any scale of the features",
    "weight 12 of the triplet, the source has 1",
)
_FROM_AGW_PLUS = (_FROM_AGW[0], "discriminant projection as fmcnet-plus has it", *_FROM_AGW[1:])
_FROM_HC = (
    "Liu et al., Parameter Sharing Exploration and Hetero-Center Triplet Loss, TMM 2020",
    _SHARED_DEVIATIONS,
    "global features only, no stripes",
    "the loss is a sum or a mean over identities as losses.reduction says, of weight 6",
    "features as the configuration normalizes them, not raw",
)
_FROM_CAJ = (
    "Ye et al., Channel Augmented Joint Learning for Visible-Infrared Recognition, ICCV 2021",
    "random channel exchange alone: no random grey, no channel erasing, "
    "no enhanced squared-difference triplet loss",
)


def _baseline(key: str, title: str, overrides: tuple[str, ...], source: str, *deviations: str) -> TableRow:
    return TableRow(key, title, overrides, source=source, deviations=deviations)


_BASELINES = (
    _baseline("base-tuned", "Base", BASE, _FROM_BASE, _SHARED_DEVIATIONS, _OF_CONFIGURATION),
    _baseline("agw", "AGW's recipe", AGW, *_FROM_AGW),
    _baseline("hc", "Hetero-centre triplet", HC, *_FROM_HC),
    _baseline("base-caj", "Base + CAJ", (*BASE, *CAJ), *_FROM_CAJ),
    _baseline("agw-caj", "AGW's recipe + CAJ", (*AGW, *CAJ), *_FROM_CAJ, "see AGW's recipe"),
    _baseline(
        "hc-caj", "Hetero-centre triplet + CAJ", (*HC, *CAJ), *_FROM_CAJ, "see the hetero-centre triplet"
    ),
    _baseline("fmcnet", "FMCNet (full)", FULL, "Zhang et al., CVPR 2022: the method implemented here"),
    _baseline("fmcnet-caj", "FMCNet + CAJ", (*FULL, *CAJ), *_FROM_CAJ),
    _baseline("agw-plus", "AGW's recipe, descriptor of fmcnet-plus", (*AGW, *PLUS), *_FROM_AGW_PLUS),
    _baseline("fmcnet-plus", "fmcnet-plus (ours)", (*FULL, *PLUS), _FROM_PLUS),
)

_BASELINE_PAIRS = (
    *(("fmcnet", key) for key in ("base-tuned", "agw", "hc")),
    *(("fmcnet-caj", key) for key in ("base-caj", "agw-caj", "hc-caj", "fmcnet")),
    *(("fmcnet-plus", key) for key in ("agw-plus", "agw", "hc", "fmcnet")),
)
_FIGURE4 = "Figure 4: shared and specific features without and with L_MD"

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study("table2", "Table 2: the modules", _TABLE2, _neighbours(_TABLE2)),
        Study("table3", "Table 3: the terms of the MD loss", _TABLE3, _neighbours(_TABLE3)),
        Study("table4", "Table 4: the losses of FMC", _TABLE4, _neighbours(_TABLE4)),
        Study("figure4", _FIGURE4, (_TABLE3[0], _TABLE3[-1]), (), maps=True),
        Study("figure5", "Figure 5: real and generated specific features", (_TABLE4[-1],), (), maps=True),
        Study("baselines", "Baselines, in the same engine", _BASELINES, _BASELINE_PAIRS),
    )
}
"""Every study by name, in the order of reports."""


def select_studies(name: str) -> tuple[Study, ...]:
    """The studies that a name stands for; "all" is every one.

    Raises:
        FmcnetError: for another name.
    """
    if name == "all":
        return tuple(STUDIES.values())
    if name not in STUDIES:
        raise FmcnetError(f"unknown study '{name}': choose {', '.join(STUDIES)} or all")
    return (STUDIES[name],)


def parse_rows(text: str | None) -> tuple[str, ...]:
    """Read "base,full" as keys of rows; None stands for all rows.

    Raises:
        FmcnetError: for a key that no study has, with those there are.
    """
    if text is None:
        return ()
    keys = tuple(part.strip() for part in text.split(",") if part.strip()) or (text,)
    known = list(dict.fromkeys(row.key for study in STUDIES.values() for row in study.rows))
    if unknown := [key for key in keys if key not in known]:
        raise FmcnetError(f"--rows {', '.join(unknown)}: no such row; there are {', '.join(known)}")
    return keys
