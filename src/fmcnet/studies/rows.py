"""Every row of the paper's tables, and every baseline, as data: a title, settings, the paper's figures, the source.

A row is a configuration and never a code path of its own: its overrides are put on the study's configuration.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from fmcnet.errors import FmcnetError
from fmcnet.studies.recipes import RECIPES

DIRECTIONS = {"i2v": "infrared to visible", "v2i": "visible to infrared"}
"""Both directions of search, in words."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        key: names the row, and the runs that only it has.
        title: as reports print it.
        overrides: settings, "section.key=value".
        paper: Rank-1 and mAP in percent on SYSU-MM01, all-search, single-shot; None where the paper has none.
        source: the publication, for a baseline. deviations: what differs from it here.
        recipe: name in `RECIPES` of settings found by search, which follow `overrides` where they apply.
        last: overrides after those.
    """

    key: str
    title: str
    overrides: tuple[str, ...]
    paper: tuple[float, float] | None = None
    source: str = ""
    deviations: tuple[str, ...] = ()
    recipe: str = ""
    last: tuple[str, ...] = ()

    def settled(self, recipes: bool) -> Row:
        """The row with its recipe (if `recipes`) and its last settings among its overrides."""
        found = RECIPES.get(self.recipe, ()) if recipes else ()
        return replace(self, overrides=(*self.overrides, *found, *self.last), recipe="", last=())


@dataclass(frozen=True)
class Study:
    """One table or figure.

    Attributes:
        name: as the command takes it. title: as reports print it.
        rows: in the paper's order.
        pairs: (row, what it is compared with), by key.
        maps: t-SNE maps and the numbers of Figures 4 and 5 are made of its rows.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    pairs: tuple[tuple[str, str], ...]
    maps: bool = False

    def row(self, key: str) -> Row:
        """The row of a key."""
        return next(row for row in self.rows if row.key == key)


def _neighbours(rows: tuple[Row, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((after.key, before.key) for before, after in itertools.pairwise(rows))


FULL = ("model.variant=full",)
BASE = ("model.variant=base",)
NO_MD = ("losses.shs=false", "losses.sps=false", "losses.dc=false")
DISCRIMINANT = ("model.descriptor=discriminant",)
CAJ = ("augment.channel=exchange", "augment.channel_probability=0.5")
HC = ("model.specific_stages=2", "model.neck=true", "model.unit_features=false", "losses.hc=2")
AGW = ("model.specific_stages=1", "model.pooling=gem", "model.neck=true", "model.unit_features=false")

_TABLE2 = (
    Row("base", "Base", BASE, (57.09, 53.11)),
    Row("sfd", "+ SFD (shared features only)", ("model.variant=sfd",), (63.16, 58.83)),
    Row("fmc", "+ FMC (simple concatenation)", ("model.variant=fmc",), (65.50, 62.32)),
    Row("full", "+ SFF (full)", FULL, (66.34, 62.51)),
)
_TABLE3 = (
    Row("md-none", "L_ID", (*FULL, *NO_MD), (58.68, 54.33)),
    Row("md-shs", "+ L_shs", (*FULL, "losses.sps=false", "losses.dc=false"), (63.96, 58.64)),
    Row("md-shs-sps", "+ L_sps", (*FULL, "losses.dc=false"), (64.68, 59.34)),
    Row("md-all", "+ L_dc (full)", FULL, (66.34, 62.51)),
)
_TABLE4 = (
    Row("fmc-none", "without FMC", ("model.variant=sfd",), (63.16, 58.83)),
    Row("fmc-ic-fc", "L_IC + L_FC", (*FULL, "losses.gan=0"), (57.78, 55.56)),
    Row("fmc-gan", "L_GAN", (*FULL, "losses.ic=0", "losses.fc=0"), (62.56, 58.40)),
    Row("fmc-gan-ic", "L_GAN + L_IC", (*FULL, "losses.fc=0"), (65.61, 62.17)),
    Row("fmc-all", "L_GAN + L_IC + L_FC (full)", FULL, (66.34, 62.51)),
)

_SHARED_DEVIATIONS = "FMCNet's data, sampler, augmentation, optimiser, schedule and evaluator"
_AGW_SOURCE = (
    "Ye et al., Deep Learning for Person Re-Identification: A Survey and Outlook, TPAMI 2021 (cross-modality)"
)
_CAJ_SOURCE = "Ye et al., Channel Augmented Joint Learning for Visible-Infrared Recognition, ICCV 2021"
_CAJ_DEVIATIONS = (
    "random channel exchange alone: no random grey, no channel erasing, no enhanced squared-difference triplet loss",
)


_BASELINES = (
    Row(
        "base-tuned",
        "Base",
        BASE,
        recipe="base",
        source="the paper's Base: two stems, one shared tail, identity loss",
        deviations=(_SHARED_DEVIATIONS, "stems of model.specific_stages blocks, three in the paper"),
    ),
    Row(
        "agw",
        "AGW's recipe",
        (*BASE, *AGW, "losses.wrt=1"),
        recipe="agw",
        source=_AGW_SOURCE,
        deviations=(
            _SHARED_DEVIATIONS,
            "no non-local blocks",
            "softmax weights over positives without the anchor, and safe at any scale of the features",
        ),
    ),
    Row(
        "hc",
        "Hetero-centre triplet",
        (*BASE, *HC),
        recipe="hc",
        source="Liu et al., Parameter Sharing Exploration and Hetero-Center Triplet Loss, TMM 2020",
        deviations=(
            _SHARED_DEVIATIONS,
            "global features only, no stripes",
            "the loss is a sum or a mean over identities as losses.reduction says",
        ),
    ),
    Row(
        "base-caj",
        "Base with channel augmentation (CAJ)",
        BASE,
        recipe="base",
        last=CAJ,
        source=_CAJ_SOURCE,
        deviations=_CAJ_DEVIATIONS,
    ),
    Row(
        "agw-caj",
        "AGW's recipe with channel augmentation (CAJ)",
        (*BASE, *AGW, "losses.wrt=1"),
        recipe="agw",
        last=CAJ,
        source=_CAJ_SOURCE,
        deviations=(*_CAJ_DEVIATIONS, "see AGW's recipe"),
    ),
    Row(
        "hc-caj",
        "Hetero-centre triplet with channel augmentation (CAJ)",
        (*BASE, *HC),
        recipe="hc",
        last=CAJ,
        source=_CAJ_SOURCE,
        deviations=(*_CAJ_DEVIATIONS, "see the hetero-centre triplet"),
    ),
    Row("fmcnet", "FMCNet (full)", FULL, source="Zhang et al., CVPR 2022: the method implemented here"),
    Row(
        "fmcnet-caj",
        "FMCNet (full) with channel augmentation (CAJ)",
        FULL,
        recipe="fmcnet",
        last=CAJ,
        source=_CAJ_SOURCE,
        deviations=_CAJ_DEVIATIONS,
    ),
    Row(
        "agw-caj-discriminant",
        "AGW's recipe with CAJ and the discriminant descriptor",
        (*BASE, *AGW, "losses.wrt=1"),
        recipe="agw",
        last=(*CAJ, *DISCRIMINANT),
        source=_CAJ_SOURCE,
        deviations=(*_CAJ_DEVIATIONS, "see AGW's recipe", "the descriptor as fmcnet-plus has it"),
    ),
    Row(
        "fmcnet-caj-discriminant",
        "FMCNet (full) with CAJ and the discriminant descriptor",
        FULL,
        recipe="fmcnet",
        last=(*CAJ, *DISCRIMINANT),
        source=_CAJ_SOURCE,
        deviations=(*_CAJ_DEVIATIONS, "the descriptor as fmcnet-plus has it"),
    ),
    Row(
        "fmcnet-plus",
        "fmcnet-plus (ours)",
        (
            *FULL,
            "model.pooling=gem",
            *DISCRIMINANT,
            "model.parts=3",
        ),
        recipe="fmcnet-plus",
        source="ours: FMCNet with the paper's restraints lifted (GeM, stripes, a discriminant descriptor, and what "
        "studies/recipes.py adds)",
    ),
)

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study("table2", "Table 2: the modules", _TABLE2, _neighbours(_TABLE2)),
        Study("table3", "Table 3: the terms of the MD loss", _TABLE3, _neighbours(_TABLE3)),
        Study("table4", "Table 4: the losses of FMC", _TABLE4, _neighbours(_TABLE4)),
        Study(
            "figure4",
            "Figure 4: shared and specific features without and with L_MD",
            (_TABLE3[0], _TABLE3[-1]),
            (),
            maps=True,
        ),
        Study("figure5", "Figure 5: real and generated specific features", (_TABLE4[-1],), (), maps=True),
        Study(
            "baselines",
            "Baselines, in the same engine",
            _BASELINES,
            (
                *(("fmcnet", key) for key in ("base-tuned", "agw", "hc", "agw-caj", "hc-caj")),
                *(("fmcnet-caj", key) for key in ("base-caj", "agw-caj", "hc-caj", "fmcnet")),
                *(("fmcnet-caj-discriminant", key) for key in ("agw-caj", "agw-caj-discriminant")),
                *(
                    ("fmcnet-plus", key)
                    for key in ("agw-caj", "agw-caj-discriminant", "fmcnet", "fmcnet-caj")
                ),
            ),
        ),
    )
}
"""Every study by name, in the order of reports; its rows are yet to be settled (`chosen`)."""


def catalogue(recipes: bool = False) -> dict[str, Study]:
    """`STUDIES` with every row settled.

    Args:
        recipes: with the settings that the search found on the generated benchmark (preset small).
    """
    return {
        name: replace(study, rows=tuple(row.settled(recipes) for row in study.rows))
        for name, study in STUDIES.items()
    }


def chosen(name: str, recipes: bool = False) -> tuple[Study, ...]:
    """The studies that a name stands for, rows settled; "all" is every one.

    Raises:
        FmcnetError: for another name.
    """
    studies = catalogue(recipes)
    if name == "all":
        return tuple(studies.values())
    if name not in studies:
        raise FmcnetError(f"unknown study '{name}': choose {', '.join(studies)} or all")
    return (studies[name],)
