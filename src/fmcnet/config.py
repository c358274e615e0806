"""All settings, typed; read from YAML with `section.key=value` overrides; all faults are reported at once.

Each setting is defined by its field here: type, range, default and description (`fmcnet config NAME` prints them).
The paper's margins and weights are the defaults. A shipped file holds only the differences from them:
`configs/paper.yaml` for the paper's literal equations, the others for a recipe each. Settings that the paper does
not give are marked "(ours)".
"""

from __future__ import annotations

import contextlib
import inspect
import textwrap
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fmcnet.errors import ConfigError
from fmcnet.names import nearest
from fmcnet.parsing import parse_yaml, read_yaml

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
COLUMNS, INDENT = 120, "  "
MOST_FAULTS = 50
"""Number of faults of a configuration that a message lists."""

REMOVED: dict[str, tuple[Any, str]] = {
    "data.hard": (0.0, "it filled a share of each batch with look-alikes"),
    "model.generator_hidden": (None, "it set the width of G's inner layers, which is D now"),
    "model.generator_norm": (False, "it put batch normalisation into G"),
    "model.generator_dropout": (0.0, "it put dropout into G"),
    "model.generator_detach": (False, "it made G's input a constant"),
    "model.parts": (0, "it classified stripes of E_sh's map and added them to the descriptor"),
    "model.specific_detach": (False, "it made the input of E_sp a constant"),
    "losses.fc_reduction": ("sum", "it took the mean of eq. (13) over D"),
    "losses.unit_centers": (False, "it gave centres unit length before the centre losses"),
    "losses.triplet_normalize": (False, "it gave features unit length before the triplet loss of losses.wrt"),
    "losses.start_fmc": (0.0, "it started the FMC terms and L_MC later"),
    "losses.ramp": (0.0, "it raised the FMC terms, L_MD and L_MC from 0 over a share of all steps"),
    "training.ema": (0.0, "it kept averaged weights"),
    "model.w1": (0.5, "it was where w1 of eq. (15) starts"),
    "model.w2": (0.5, "it was where w2 of eq. (15) starts"),
    "model.stripes": (0, "it made stripes of E_sh's maps the descriptor"),
    "model.dropout": (0.0, "it put dropout before every classifier's layer"),
}
"""Removed settings of 0.1.0: the value that switched each off, and the effect of other values."""

REMOVED_WEIGHTS = frozenset(
    {"model.generator_hidden", "model.generator_norm", "model.parts", "model.stripes"}
)
"""Removed settings that changed the weights; the others affected training only."""


def _has_numbers(annotation: Any) -> bool:
    """Whether int or float occurs in a type, as in `int | None` and `tuple[float, ...]`."""
    return annotation in (int, float) or any(_has_numbers(part) for part in get_args(annotation))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true for a number: pydantic would read it as 1."""
        if not _has_numbers(cls.model_fields[str(info.field_name)].annotation):
            return value
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, bool):
                raise ValueError(f"{str(item).lower()} (as YAML reads yes, no, on and off, too) is no number")
        return value


class _Dumper(yaml.SafeDumper):
    """Lists in one line: `[train, val]`."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


class DataConfig(_Section):
    """What is read, at which size, and how batches are drawn."""

    layout: str = Field(default="auto", min_length=1)
    """The dataset has this layout: auto (by its files), sysu, regdb, llcm, csv or a reader's of yours."""
    split: int = Field(default=1, ge=1, le=10)
    """RegDB has ten splits; this one is read, 1 to 10. Training refuses others than 1 for other data."""
    height: Positive = 288
    """The network takes images of this height in pixels (ours)"""
    width: Positive = 144
    """The network takes images of this width in pixels (ours)"""
    train_splits: tuple[Literal["train", "val"], ...] = ("train",)
    """Training takes the identities of these splits; on SYSU-MM01 everyone takes both."""
    val_share: float = Field(default=0.1, ge=0, le=0.5)
    """Validation gets this share (at most 0.5) of train identities where no val is named (ours)"""
    identities: int = Field(default=8, ge=2)
    """A batch holds P identities."""
    images: Positive = 4
    """A batch holds K images of each identity in each modality."""
    share: Literal["process", "all"] = "process"
    """P and K count for each process (process) or for all together (all) (ours)"""
    cache: str = Field(default="auto", min_length=1)
    """Decoded images go to auto ($FMCNET_CACHE, else ~/.cache/fmcnet), beside (the data) or a folder."""


class AugmentConfig(_Section):
    """Augmentation of whole batches; all ours (the paper does not say)."""

    pad: int = Field(default=10, ge=0)
    """Every side gets this many pixels before a random crop (ours)"""
    flip: Probability = 0.5
    """An image is mirrored with this probability (ours)"""
    erase: Probability = 0.5
    """Random erasing hits an image with this probability (ours)"""
    channel: Literal["none", "exchange", "mix"] = "none"
    """Visible images keep their channels (none), repeat one (exchange, CAJ) or mix them (mix) (ours)"""
    channel_probability: Probability = 0.5
    """The channel augmentation hits a visible image with this probability (ours)"""
    photometric: Probability = 0.0
    """Exposure, gamma, contrast, cast, sharpness and noise of an image change with this probability (ours)"""


class ModelConfig(_Section):
    """Backbone and modules."""

    variant: Literal["base", "sfd", "fmc", "full"] = "full"
    """The model is this row of Table 2: base, sfd, fmc (plain concatenation) or full."""
    single_stream: bool = False
    """Both modalities share one stem: a baseline, for variant=base only (ours)"""
    arch: str = "resnet50"
    """The backbone: resnet50 as the paper; resnet10, resnet18, resnet34, efficientnet_lite0 or 2 (ours)"""
    width: Positive = 64
    """The first block has this many channels; the published network has 64."""
    tail_blocks: Positive | None = None
    """A tail has this many blocks; null takes all behind the third, as the paper (ours)"""
    dim: Positive | None = None
    """A 1x1 convolution brings D to this length; null keeps the last block's channels (ours)"""
    frozen_blocks: int = Field(default=0, ge=0, le=3)
    """This many first blocks of the stems, 0 to 3, keep pretrained weights; random ones train (ours)"""
    last_stride: Literal[1, 2] = 1
    """conv5_x has this stride: ResNet has 2, most of the field takes 1 (ours)"""
    pretrained: str | None = None
    """Weights come from imagenet, a file such as torchvision's, a run's folder, a shipped model, or null (random)."""
    pooling: Literal["avg", "gem"] = "avg"
    """A tail pools its map by avg as the paper, or by gem, the generalised mean (ours)"""
    neck: bool = True
    """A BNNeck (batch normalisation) stands before every classifier; false is the paper (ours)"""
    normalization: Literal["none", "tail", "modality"] = "none"
    """tail and modality centre F_sh and F_sp and set their lengths; none is the paper (ours)"""
    shared_length: float = Field(default=1.0, gt=0)
    """F_sh has this length with normalization=modality, F_fu with fusion_normalize (ours)"""
    specific_length: float = Field(default=1.0, gt=0)
    """F_sp and F'_sp have this length with normalization=modality (ours)"""
    specific_offset: float = Field(default=0.0, ge=0, lt=1)
    """With normalization=modality F_sp and F'_sp have a modality's constant, this share of their length (ours)"""
    specific_weight: float = Field(default=1.0, ge=0, le=1)
    """The features behind F_sh in the descriptor, F_sp and F'_sp or their fusion, have this weight (ours)"""
    fusion: Literal["sum", "softmax"] = "sum"
    """sum is eq. (15); softmax makes w1 + w2 = 1 (ours)"""
    fusion_normalize: bool = False
    """F_fu gets the length shared_length before eq. (16) (ours)"""
    discriminator_bound: NonNegative = 0.0
    """With normalization=modality no logit of D, less its bias, exceeds this; 0 sets no bound (ours)"""
    generator_residual: bool = False
    """G of eq. (11) adds its input to its output: F' = F_sh + G(F_sh) (ours)"""
    specific_stages: int = Field(default=3, ge=1, le=3)
    """Each modality has this many first blocks for itself: 3 as the paper, or 1, 2 (ours)"""
    descriptor: Literal["plain", "normalized", "discriminant"] = "plain"
    """normalized gives each part unit length; discriminant then projects by a learnt map (ours)"""
    frozen_stripes: int = Field(default=0, ge=0, le=12)
    """The descriptor has this many stripes of each map of an untrained tail, too (ours)"""
    feature_weight: float = Field(default=1.0, gt=0)
    """The features weigh this beside frozen stripes (ours)"""
    standardized: bool = False
    """Each value of the descriptor is standardised by modality, as fmcnet adapt does (ours)"""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """`unit_features` of 0.1.0 is `normalization` now."""
        if isinstance(values, dict) and "unit_features" in values:
            values = dict(values)
            renamed = "tail" if values.pop("unit_features") else "none"
            if values.setdefault("normalization", renamed) != renamed:
                raise ValueError(
                    f"unit_features, the old name of normalization={renamed}, contradicts "
                    f"normalization={values['normalization']}: remove it"
                )
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.frozen_blocks > self.specific_stages:
            raise ValueError(
                f"frozen_blocks={self.frozen_blocks} is more than specific_stages={self.specific_stages}: "
                "only blocks of the stems can be frozen"
            )
        # Without `pretrained` the stems train all the same: for trials only.
        if self.frozen_stripes and not (self.frozen_blocks == 3 and self.standardized):
            raise ValueError(
                "frozen_stripes needs maps that no training changes and comparable values: set frozen_blocks=3 and "
                "standardized=true"
            )
        if self.feature_weight != 1 and not self.frozen_stripes:
            raise ValueError("feature_weight weighs features beside frozen stripes: set frozen_stripes, too")
        return self


class LossConfig(_Section):
    """Margins and weights; the numbers of section 1 of the method, and the weights the paper leaves open."""

    rho1: NonNegative = 1.0
    """Eq. (4) has this margin between specific and shared centres."""
    rho2: NonNegative = 0.7
    """Eq. (5) has this margin between specific centres of different identities."""
    rho3: NonNegative = 0.7
    """Eq. (6) has this margin between shared centres of different identities."""
    rho4: NonNegative = 0.7
    """Eq. (17) has this margin between fused centres of different identities."""
    alpha: NonNegative = 2.0
    """Eq. (6) weighs the distance between an identity's two centres by this."""
    beta: NonNegative = 2.0
    """Eq. (17) weighs the distance between an identity's two centres by this."""
    lambda1: NonNegative = 0.5
    """Eq. (7) weighs eq. (4) by this."""
    lambda2: NonNegative = 0.5
    """Eq. (7) weighs eq. (5) by this."""
    shs: bool = True
    """L_MD contains eq. (6); the paper's ablation switches it off."""
    sps: bool = True
    """L_MD contains eq. (5); the paper's ablation switches it off."""
    dc: bool = True
    """L_MD contains eq. (4); the paper's ablation switches it off."""
    gan: NonNegative = 1.0
    """The total weighs the generators' part of eq. (12) by this (ours)"""
    fc: NonNegative = 1.0
    """The total weighs eq. (13) by this (ours)"""
    ic: NonNegative = 1.0
    """The total weighs eq. (14) by this (ours)"""
    md: NonNegative = 1.0
    """The total weighs L_MD of eq. (7) by this: 1 as the paper, or other values (ours)"""
    mc: NonNegative = 1.0
    """The total weighs L_MC of eq. (17) by this: 1 as the paper, or other values (ours)"""
    saturating: bool = True
    """Generators minimise log(1 - D(G)) as eq. (12) is written; false takes -log D(G) (ours)"""
    reduction: Literal["sum", "mean"] = "sum"
    """Eq. (4), (5), (6), (17) take the sum over P as the paper, or the mean (ours)"""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of this strength is in every cross-entropy; 0 is the paper (ours)"""
    detach_targets: bool = False
    """Eq. (13) takes the real centres as constants; false, as the paper, moves them too (runs of 0.1.0)"""
    center_scale: float = Field(default=1.0, gt=0)
    """This factor scales the centres of eq. (4), (5), (6), (17); 0.5 doubles the margins (runs of 0.1.0)"""
    wrt: NonNegative = 0.0
    """The total weighs AGW's weighted regularised triplet loss by this (a baseline's)"""
    hc: NonNegative = 0.0
    """The total weighs the hetero-centre loss by this (a baseline's)"""
    hc_loss: Literal["triplet", "plain"] = "triplet"
    """The hetero-centre loss is triplet (Liu et al., 2020) or plain (Zhu et al., 2020)."""
    hc_margin: NonNegative = 0.3
    """The hetero-centre triplet has this margin (a baseline's)"""
    terms: dict[str, NonNegative] = {}
    """The total weighs the terms that you give to `train(terms=...)` by these, each by 1 if not named (ours)"""


class TrainingConfig(_Section):
    """Optimiser, schedule, checkpoints. All ours."""

    seed: int = Field(default=0, ge=0)
    """This seed starts all random numbers (ours)"""
    epochs: Positive = 80
    """Training lasts this many epochs (ours)"""
    steps_per_epoch: Positive | None = None
    """An epoch has this many steps; null covers the larger modality's images once (ours)"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The optimiser is adamw or sgd (Nesterov momentum 0.9) (ours)"""
    lr: float = Field(default=3.5e-4, gt=0)
    """Heads, generators and fusion have this learning rate (ours)"""
    backbone_lr_factor: float = Field(default=1.0, gt=0)
    """Stems and tails learn at lr times this (ours)"""
    fusion_lr_factor: float = Field(default=1.0, ge=0)
    """w1 and w2 of eq. (15) learn at lr times this (runs of 0.1.0)"""
    discriminator_lr: float = Field(default=3.5e-4, gt=0)
    """Discriminators have this learning rate (ours)"""
    weight_decay: NonNegative = 5e-4
    """The optimiser decays matrices and kernels by this (ours)"""
    schedule: Literal["onecycle", "multistep", "cosine", "constant"] = "multistep"
    """The learning rate is onecycle, multistep, cosine or constant after a linear warm-up (ours)"""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """The warm-up takes this share of all steps (ours)"""
    milestones: tuple[Probability, ...] = (0.5, 0.75)
    """multistep divides the learning rate by 10 at these shares of all steps (ours)"""
    clip: NonNegative = 0.0
    """Gradients are clipped to this norm; 0 is off (ours)"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """The network computes in this; auto is bf16 (fp16 on old GPUs) on GPUs, else fp32 (ours)"""
    channels_last: Literal["auto", "yes", "no"] = "auto"
    """The memory format is channels_last; auto takes it where it was measured quicker (ours)"""
    compile: bool = False
    """torch.compile compiles the network, which takes a minute and more at the start (ours)"""
    accumulate: Positive = 1
    """A step averages the gradients of this many whole P x K batches (ours)"""
    recompute: bool = False
    """The backward pass computes activations anew: less memory, a third more time (ours)"""
    sync_batchnorm: bool = False
    """Batch statistics span all processes (ours)"""
    sync_centers: bool = False
    """Centre losses span the identities of all processes (ours)"""
    log_every: Positive = 10
    """The log reads the losses every so many steps (ours)"""
    checkpoint_every: Positive = 200
    """A checkpoint is written every so many steps (ours)"""
    checkpoint_minutes: NonNegative = 10.0
    """A checkpoint is also written after so many minutes; 0 is by steps only (ours)"""
    keep: Positive = 2
    """The run folder keeps this many of the newest checkpoints (ours)"""
    validate_every: int = Field(default=0, ge=0)
    """Held-out identities are measured every so many epochs; 0 is never (ours)"""
    select: Literal["last", "val", "test"] = "last"
    """The kept weights are the last, the best on val, or on test (stamps every report) (ours)"""

    @field_validator("channels_last", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        if isinstance(value, bool):  # YAML 1.1 reads yes and no as booleans
            return "yes" if value else "no"
        return value


class EvaluationConfig(_Section):
    """How a trained model is evaluated."""

    mode: Literal["all", "indoor"] = "all"
    """SYSU-MM01 searches all cameras or indoor ones."""
    shots: Literal[1, 10] = 1
    """SYSU-MM01 draws this many gallery images per identity and camera."""
    draw: Literal["auto", "official", "seeded"] = "auto"
    """SYSU-MM01 draws as rand_perm_cam.mat (official) or seeded; auto is official where the file is."""
    trials: int = Field(default=10, ge=1, le=10)
    """SYSU-MM01 and LLCM repeat the gallery draw this many times."""
    direction: Literal["auto", "i2v", "v2i", "both"] = "auto"
    """i2v: infrared queries, visible gallery; v2i: reverse; auto: v2i on RegDB and LLCM, else i2v."""
    reading: Literal["a", "b", "c"] = "a"
    """LLCM's protocol has this reading (fmcnet docs protocols)."""
    cmc: Literal["image", "identity"] = "image"
    """RegDB's CMC counts images or identities (fmcnet docs protocols)."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """Descriptors are compared by this distance (ours)"""
    batch: Positive = 64
    """The network embeds this many images at once."""


class Config(_Section):
    """Everything that defines a run."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    losses: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        validates = self.training.validate_every > 0 and self.training.select != "test"
        if (validates or self.training.select == "val") and "val" in self.data.train_splits:
            raise ValueError(
                "validation needs val identities that are not trained on: "
                "take 'val' out of data.train_splits or set training.validate_every=0"
            )
        if self.training.select != "last" and not self.training.validate_every:
            raise ValueError(f"training.select={self.training.select} needs training.validate_every > 0")
        for name in ("recompute", "sync_batchnorm"):
            if self.training.compile and getattr(self.training, name):
                raise ValueError(
                    f"training.compile and training.{name} do not go together: switch one of them off"
                )
        if self.model.single_stream and self.model.variant != "base":
            raise ValueError(f"model.single_stream is for model.variant=base, not {self.model.variant}")
        return self

    def to_yaml(self, comments: bool = False) -> str:
        """The whole tree as YAML that `load_config` reads back to an equal one.

        Args:
            comments: add the purpose of each section and the description of each setting.
        """
        tree = self.model_dump(mode="json")
        if not comments:
            return yaml.safe_dump(tree, sort_keys=False)
        lines: list[str] = []
        for section, values in tree.items():
            section_class: type[_Section] = type(getattr(self, section))
            lines += [f"# {inspect.getdoc(section_class)}", f"{section}:"]
            for name, value in values.items():
                text = yaml.dump({name: value}, Dumper=_Dumper, width=COLUMNS - len(INDENT))
                lines += [f"{INDENT}# {section_class.model_fields[name].description}"]
                lines += textwrap.indent(text, INDENT).splitlines()
        return "\n".join([*lines, ""])


def load_config(
    source: str | Path | dict[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    trained: bool = False,
) -> Config:
    """Read a configuration and apply overrides.

    Args:
        source: a YAML file, the name of a shipped file (`shipped()`), a tree, or None for the defaults.
        overrides: "key.sub=value" each, the value read as YAML ("model.neck=false").
        trained: whether it is of a finished model. Removed settings that affected training only are then dropped,
            whatever their value.

    Returns:
        The settings; those not given have their defaults.

    Raises:
        ConfigError: listing every fault with its path, the value given and the reason.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"overrides is a text: give a list, as ['{overrides}']")
    tree, source_name = _read_tree(source)
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{source_name} must hold sections (data, model, losses, ...), not a {type(tree).__name__}"
        )
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    unusable = {item: fault for item in overrides if (fault := _apply_override(tree, item))}
    applied = [item for item in overrides if item not in unusable]
    faults = [(fault, [item]) for item, fault in unusable.items()]
    for key, (neutral, _) in REMOVED.items():
        section, name = key.split(".")
        values = tree.get(section)
        if not isinstance(values, dict) or name not in values:
            continue
        if values[name] == neutral or (trained and key not in REMOVED_WEIGHTS):
            del values[name]
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        for entry in error.errors():
            fault = _describe_fault(entry)
            faults.append((fault, [item for item in applied if _is_about(item, entry, fault)]))
    if faults:
        raise ConfigError(_fault_message(source_name, faults))
    return config


def _fault_message(source_name: str, faults: list[tuple[str, list[str]]]) -> str:
    """List faults, each given with the overrides that it is about: those of overrides first, then the source's."""
    named = list(dict.fromkeys(item for _, items in faults for item in items))
    ordered = sorted(faults, key=lambda fault: named.index(fault[1][-1]) if fault[1] else len(named))
    lines = [fault for fault, _ in ordered[:MOST_FAULTS]]
    if len(faults) > MOST_FAULTS:
        lines.append(f"and {len(faults) - MOST_FAULTS} more")
    places = [] if all(items for _, items in faults) else [source_name]
    if named:
        places.append(f"the override{'s' * (len(named) > 1)} {' '.join(named):.200}")
    head = f"{len(faults)} fault{'s' * (len(faults) > 1)} in {' and '.join(places)}"
    return "\n".join([f"{head}:", *(f"  {line:.500}" for line in lines)])


def check_count(value: object, name: str, counted: str) -> None:
    """Refuse what is no whole number from 1; raises `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ConfigError(f"{name}={value!r}: give a whole number from 1, that of {counted}")


def shipped() -> dict[str, Path]:
    """The configuration files inside the package, by name."""
    folder = Path(__file__).parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def purpose(name: str) -> str:
    """The purpose of a shipped file: its first comment line."""
    return shipped()[name].read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def _read_tree(source: str | Path | dict[str, Any] | None) -> tuple[Any, str]:
    """The tree of `source`, and its name for messages."""
    if source is None:
        return {}, "the defaults"
    if isinstance(source, dict):
        return source, "the given tree"
    path = Path(source)
    if not path.is_file():
        if str(source) not in shipped():
            raise ConfigError(
                f"no configuration file {source}: give a YAML file or one of {', '.join(shipped())}"
            )
        path = shipped()[str(source)]
    try:
        return read_yaml(path) or {}, str(path)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error


def _apply_override(tree: dict[str, Any], item: str) -> str | None:
    """Set one value in `tree`; returns the fault of the override, None if it has none."""
    key, equals, text = item.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) != 2 or not all(parts):
        hint = "; paths have options, as --data and --out" if "/" in item else ""
        return f"override '{item}': write section.key=value, as in model.variant=base{hint}"
    try:
        value = parse_yaml(text)
    except ValueError as error:
        return f"override '{item:.80}': the value is not valid YAML: {error}"
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        with contextlib.suppress(ValueError):
            value = float(value)
    section = tree.setdefault(parts[0], {})
    if not isinstance(section, dict):
        return f"override '{item}': {parts[0]} is not a section"
    names = {"unit_features": "normalization", "normalization": "unit_features"}
    if parts[0] == "model" and parts[1] in names:  # the last override wins, under either name
        section.pop(names[parts[1]], None)
    section[parts[1]] = value
    return None


def _is_about(item: str, entry: Any, fault: str) -> bool:
    """Whether an override caused a fault. A fault between settings has no path, but its text names them."""
    key = item.partition("=")[0].strip()
    section, _, name = key.partition(".")
    path = ".".join(str(part) for part in entry["loc"][:2])
    return path == key or (path in ("", section) and (entry["type"] == "extra_forbidden" or name in fault))


def _describe_fault(entry: Any) -> str:
    """One line for a pydantic error: the setting, its value, the reason."""
    path = ".".join(str(part) for part in entry["loc"]) or "configuration"
    reason = entry["msg"].removeprefix("Value error, ")
    if path in REMOVED:
        neutral, effect = REMOVED[path]
        default = yaml.safe_dump(neutral).splitlines()[0]
        return (
            f"{path} = {entry['input']!r}: this setting of 0.1.0 was removed ({effect}). "
            f"Delete it; fmcnet always works as with {path}={default}"
        )
    if entry["type"] == "extra_forbidden":
        fields = Config.model_fields
        if len(entry["loc"]) > 1:
            fields = fields[entry["loc"][0]].annotation.model_fields  # type: ignore[union-attr]
        suggestion = nearest(str(entry["loc"][-1]), fields)
        hint = f" (did you mean {suggestion}?)" if suggestion else ""
        return f"{path}: no such setting{hint}; known here: {', '.join(fields)}"
    if entry["type"] == "tuple_type":
        return f"{path} = {entry['input']!r}: write a list in brackets, as [first,second]"
    if entry["type"] == "value_error":
        return reason if path == "configuration" else f"{path}: {reason}"
    return f"{path} = {entry['input']!r}: {reason[0].lower()}{reason[1:]}"
