"""One typed tree of settings; YAML in and out; `key.sub=value` overrides; every fault reported at once.

The paper's margins and weights are the defaults; `configs/paper.yaml` holds its literal equations, the other shipped
files a recipe each. What the paper does not say is marked "ours".
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fmcnet.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    """What is read, at which size, and how batches are drawn."""

    layout: Literal["auto", "sysu", "regdb", "llcm", "csv"] = "auto"
    split: Annotated[int, Field(ge=1, le=10)] = 1  # RegDB: which of the ten splits
    height: Positive = 288
    width: Positive = 144
    train_splits: tuple[Literal["train", "val"], ...] = ("train",)
    val_share: Annotated[float, Field(ge=0, le=0.5)] = (
        0.1  # of train identities, where the dataset names no val
    )
    identities: Annotated[int, Field(ge=2)] = 8  # P
    images: Positive = 4  # K, of each modality
    share: Literal["process", "all"] = "process"  # P and K are of each process, or of all together
    hard: Annotated[float, Field(ge=0, le=0.9)] = 0.0  # share of P that are look-alikes of the others: ours
    cache: Annotated[str, Field(min_length=1)] = "auto"  # auto, beside (in the dataset's folder), or a folder


class AugmentConfig(_Section):
    """Augmentation of whole batches; all ours (the paper does not say)."""

    pad: Annotated[int, Field(ge=0)] = 10
    flip: Probability = 0.5
    erase: Probability = 0.5  # random erasing, chance per image
    channel: Literal["none", "exchange", "mix"] = "exchange"  # visible images only
    channel_probability: Probability = 0.5


class ModelConfig(_Section):
    """Backbone and modules."""

    variant: Literal["base", "sfd", "fmc", "full"] = "full"
    single_stream: bool = False  # one stem for both modalities (base only): a baseline, ours
    arch: str = "resnet50"  # a registered backbone: resnet18, resnet34, resnet50, efficientnet_lite0, ...
    width: Positive = 64  # of the first block; 64 is the published network
    tail_blocks: Positive | None = None  # the backbone's blocks in a tail; none: all behind the third, as the paper
    dim: Positive | None = None  # D, by a 1x1 convolution at the end of each tail; none: the last block's channels
    frozen_blocks: Annotated[int, Field(ge=0, le=3)] = 0  # first blocks of the stems that keep their weights (ours)
    last_stride: Literal[1, 2] = 1  # ours (most of the field)
    pretrained: str | None = None  # "imagenet", a path to a torchvision state dict, or none
    pooling: Literal["avg", "gem"] = "avg"  # gem: ours
    neck: bool = True  # BNNeck: ours
    normalization: Literal["none", "tail", "modality"] = "none"  # of F_sh and F_sp behind their tails (ours)
    shared_length: Annotated[float, Field(gt=0)] = 1.0  # of F_sh and F_fu, with normalization=modality (ours)
    specific_length: Annotated[float, Field(gt=0)] = 1.0  # of F_sp and F'_sp, likewise (ours)
    fusion: Literal["sum", "softmax", "slots"] = "sum"  # eq. (15): sum as written; softmax, slots: ours
    fusion_normalize: bool = False  # F_fu of the length of F_sh before eq. (16): ours
    generator_residual: bool = False  # F' = F_sh + G(F_sh): ours
    generator_hidden: Positive | None = None
    generator_norm: bool = False  # ours
    w1: float = 0.5
    w2: float = 0.5
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # before every classifier: ours
    specific_stages: Annotated[int, Field(ge=1, le=3)] = 3  # of ResNet's five blocks, one set a modality
    descriptor: Literal["plain", "normalized", "discriminant"] = "plain"  # how its parts come together (ours)
    parts: Annotated[int, Field(ge=0, le=12)] = 0  # horizontal stripes of the shared map (ours); 0: none
    generator_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # inside G, in training (ours)
    specific_detach: bool = False  # E_sp's input is a constant: specific losses do not shape the stems (ours)
    generator_detach: bool = False  # G's input is a constant: its losses do not shape E_sh (ours)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """`unit_features` of 0.1.0 is `normalization` now."""
        if isinstance(values, dict) and "unit_features" in values:
            values = dict(values)
            values.setdefault("normalization", "tail" if values.pop("unit_features") else "none")
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.frozen_blocks > self.specific_stages:
            raise ValueError(
                f"frozen_blocks={self.frozen_blocks} is more than specific_stages={self.specific_stages}: "
                "only blocks of the stems can be frozen"
            )
        return self


class LossConfig(_Section):
    """Margins and weights; the numbers of section 1 of the method, and the weights the paper leaves open."""

    rho1: NonNegative = 1.0
    rho2: NonNegative = 0.7
    rho3: NonNegative = 0.7
    rho4: NonNegative = 0.7
    alpha: NonNegative = 2.0
    beta: NonNegative = 2.0
    lambda1: NonNegative = 0.5
    lambda2: NonNegative = 0.5
    shs: bool = True  # rows of the paper's ablation of the MD loss
    sps: bool = True
    dc: bool = True
    gan: NonNegative = 1.0  # weights of the FMC terms: not in the paper
    fc: NonNegative = 1.0
    ic: NonNegative = 1.0
    md: NonNegative = 1.0  # weight of L_MD: 1 in the paper
    mc: NonNegative = 1.0  # weight of L_MC: 1 in the paper
    saturating: bool = True  # False: the non-saturating generator loss (ours)
    reduction: Literal["sum", "mean"] = "sum"  # over the P identities in (4), (5), (6), (17); mean: ours
    fc_reduction: Literal["sum", "mean"] = "sum"  # over the D dimensions in (13); mean: ours
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # more than 0: ours
    detach_targets: bool = False  # real centres of (13) are constants (ours); false: they move, too
    unit_centers: bool = False  # centres of unit length before (4), (5), (6), (17) (ours)
    center_scale: Annotated[float, Field(gt=0)] = (
        1.0  # centres times this before the same: scale of the margins (ours)
    )
    start_fmc: Annotated[float, Field(ge=0, lt=1)] = (
        0.0  # share of all steps before FMC terms and L_MC (ours)
    )
    ramp: Probability = 0.0  # share of all steps over which L_MD, FMC terms and L_MC rise from 0 (ours)
    wrt: NonNegative = 0.0  # weighted regularised triplet loss (AGW): a baseline's, not FMCNet's
    triplet_normalize: bool = False  # of features of unit length
    hc: NonNegative = 0.0  # hetero-centre loss: a baseline's, not FMCNet's
    hc_loss: Literal["triplet", "plain"] = "triplet"  # Liu et al. 2020; Zhu et al. 2020
    hc_margin: NonNegative = 0.3  # of the triplet


class TrainingConfig(_Section):
    """Optimiser, schedule, checkpoints. All ours."""

    seed: Annotated[int, Field(ge=0)] = 0
    epochs: Positive = 80
    steps_per_epoch: Positive | None = None  # none: as many as cover the images of the larger modality once
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3.5e-4
    backbone_lr_factor: Annotated[float, Field(gt=0)] = (
        1.0  # learning rate of stems and tails over that of heads
    )
    fusion_lr_factor: Annotated[float, Field(ge=0)] = 1.0  # learning rate of w1 and w2 over that of heads
    discriminator_lr: Annotated[float, Field(gt=0)] = 3.5e-4
    weight_decay: NonNegative = 5e-4
    schedule: Literal["onecycle", "multistep", "cosine", "constant"] = "multistep"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of all steps
    milestones: tuple[Probability, ...] = (0.5, 0.75)  # shares of all steps, rate / 10 at each
    clip: NonNegative = 0.0  # largest gradient norm; 0: off
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 or fp16 on GPUs, else fp32
    channels_last: Literal["auto", "yes", "no"] = "auto"  # memory format; auto: where it was measured quicker
    compile: bool = False  # torch.compile
    accumulate: Positive = 1  # whole P x K batches whose gradients are averaged before a step
    recompute: bool = (
        False  # activations of stems and tails anew in the backward pass: less memory, more time
    )
    sync_batchnorm: bool = False  # batch statistics over all processes
    sync_centers: bool = False  # centre losses over the identities of all processes
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of the averaged weights that are kept; 0: off
    log_every: Positive = 10  # steps between two readings of the losses
    checkpoint_every: Positive = 200  # steps
    checkpoint_minutes: NonNegative = 10.0  # and after so many minutes; 0: by steps only
    keep: Positive = 2  # checkpoints
    validate_every: Annotated[int, Field(ge=0)] = 0  # epochs; 0: never
    select: Literal["last", "val", "test"] = "last"  # test stamps the report

    @field_validator("channels_last", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        if isinstance(value, bool):  # as YAML 1.1 reads yes and no
            return "yes" if value else "no"
        return value


class EvaluationConfig(_Section):
    """How a trained model is judged."""

    mode: Literal["all", "indoor"] = "all"
    shots: Literal[1, 10] = 1
    draw: Literal["auto", "official", "seeded"] = "auto"
    trials: Annotated[int, Field(ge=1, le=10)] = 10
    direction: Literal["i2v", "v2i", "both"] = "i2v"
    reading: Literal["a", "b", "c"] = "a"  # LLCM
    cmc: Literal["image", "identity"] = "image"  # RegDB
    distance: Literal["cosine", "euclidean"] = "cosine"
    batch: Positive = 64


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
        if self.training.compile and self.training.recompute:
            raise ValueError("training.compile and training.recompute do not go together: take one of them")
        if self.training.compile and self.training.sync_batchnorm:
            raise ValueError(
                "training.compile and training.sync_batchnorm do not go together: switch one off"
            )
        if self.model.single_stream and self.model.variant != "base":
            raise ValueError(f"model.single_stream is for model.variant=base, not {self.model.variant}")
        return self

    def to_yaml(self) -> str:
        """The whole tree as YAML that `load_config` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(
    source: str | Path | dict[str, Any] | None = None, overrides: list[str] | tuple[str, ...] = ()
) -> Config:
    """Read a configuration and apply overrides.

    Args:
        source: a YAML file, the name of a shipped file (`shipped()`), a tree, or None for the defaults.
        overrides: "key.sub=value" each, the value read as YAML ("model.neck=false").

    Raises:
        ConfigError: listing every fault with its path, the value given and the reason.
    """
    where = "the defaults"
    tree: Any = {}
    if isinstance(source, dict):
        tree, where = source, "the given tree"
    elif source is not None:
        path = _find(source)
        where = str(path)
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{where} must hold sections (data, model, losses, ...), not a {type(tree).__name__}"
        )
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    faults = [fault for item in overrides if (fault := _apply(tree, item))]
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        faults += [_say(entry, tree) for entry in error.errors()]
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        said = " with the overrides" if overrides else ""
        raise ConfigError(f"{len(faults)} fault{'s' * (len(faults) > 1)} in {where}{said}:\n{listed}")
    return config


def shipped() -> dict[str, Path]:
    """The configuration files inside the package, by name."""
    folder = Path(__file__).parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    known = shipped()
    if str(source) in known:
        return known[str(source)]
    raise ConfigError(f"no configuration file {source}: give a YAML file or one of {', '.join(known)}")


def _apply(tree: dict[str, Any], item: str) -> str | None:
    key, equals, text = item.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) != 2 or not all(parts):
        return f"override '{item}': write section.key=value, as in model.variant=base"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return f"override '{item}': the value is not valid YAML"
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    section = tree.setdefault(parts[0], {})
    if not isinstance(section, dict):
        return f"override '{item}': {parts[0]} is not a section"
    section[parts[1]] = value
    return None


def _say(entry: Any, tree: dict[str, Any]) -> str:
    path = ".".join(str(part) for part in entry["loc"]) or "configuration"
    reason = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "extra_forbidden":
        section = entry["loc"][0] if len(entry["loc"]) > 1 else None
        fields = Config.model_fields
        if section in fields:
            known: list[str] = list(fields[str(section)].annotation.model_fields)  # type: ignore[union-attr]
        else:
            known = list(fields)
        return f"{path}: no such setting; known here: {', '.join(known)}"
    if entry["type"] == "value_error":
        return reason if path == "configuration" else f"{path}: {reason}"
    return f"{path} = {entry['input']!r}: {reason[0].lower()}{reason[1:]}"
