"""Every shipped configuration learns: its modules are at work, not only its loss finite.

The real training step on a synthetic world: noisy colour prototypes, infrared as an inverted grey of them. Only the
network is small (a ResNet-10 of width 16, 32x16 pixels, from scratch); losses, rates and fusion
are as shipped.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from fmcnet.config import load_config, shipped
from fmcnet.data.loader import TrainingBatch
from fmcnet.distributed import distributed_context
from fmcnet.models.build import build_model
from fmcnet.training import health
from fmcnet.training.train_step import TrainStep

IDENTITIES, P, K, HEIGHT, WIDTH = 40, 8, 2, 32, 16
STEPS, LAST = (140, 160, 180), 20
"""Steps after which a configuration may have learned, and over how many of them what is measured is averaged."""
LONG = 20_000
"""Steps of a training on a real dataset, whose configuration does not say how many an epoch has."""

SMALL = (
    "model.arch=resnet10",
    "model.width=16",
    "model.pretrained=null",
    "model.tail_blocks=null",
    "model.dim=null",
    "model.frozen_blocks=0",
    "model.frozen_stripes=0",
    "model.feature_weight=1",
    f"data.height={HEIGHT}",
    f"data.width={WIDTH}",
)
CHANCE = 2 * math.log(IDENTITIES)
"""Of `id_shared`, the sum of two cross-entropies."""


class World:
    """Batches of P identities, K images of each in each modality."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.prototypes = torch.rand(IDENTITIES, 3, 8, 4, generator=self.generator)

    def batch(self) -> TrainingBatch:
        labels = torch.randperm(IDENTITIES, generator=self.generator)[:P].repeat_interleave(K)
        return TrainingBatch(self.images(labels, infrared=False), self.images(labels, infrared=True), labels)

    def images(self, labels: torch.Tensor, infrared: bool) -> torch.Tensor:
        x = self.prototypes[labels] + 0.12 * torch.randn(len(labels), 3, 8, 4, generator=self.generator)
        x = F.interpolate(x, (HEIGHT, WIDTH), mode="bilinear")
        if infrared:
            grey = torch.tensor([0.7, 0.1, 0.2]).view(1, 3, 1, 1)
            x = 1 - (x * grey).sum(1, keepdim=True).expand(-1, 3, -1, -1)
        x = x + 0.05 * torch.randn(x.shape, generator=self.generator)
        x = x + 0.1 * torch.randn(len(labels), 1, 1, 1, generator=self.generator)
        return (x.clamp(0, 1) * 255).to(torch.uint8)


def learn(name: str, *overrides: str) -> list[str]:
    """Train until the configuration has learned, at most the last of `STEPS`; what is wrong then."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = load_config(name, [*SMALL, *overrides])
    training, world = config.training, World()
    schedule = training.epochs * training.steps_per_epoch if training.steps_per_epoch else LONG
    with distributed_context("cpu") as ctx:
        train_step = TrainStep(
            config, build_model(config.model, IDENTITIES), ctx, P, max(schedule, STEPS[-1])
        )
        for step in range(STEPS[-1]):
            train_step.step([world.batch()], step)
            if step + 1 in STEPS and not (faults := what_is_wrong(train_step, world)):
                break
    return faults


def what_is_wrong(train_step: TrainStep, world: World) -> list[str]:
    """Which of the modules do nothing, by means over the last steps of what the training step measures."""
    records = train_step.read()[-LAST:]
    found = {key: sum(record[key] for record in records) / len(records) for key in records[-1]}
    right = {
        "the shared features do not learn identities": found["id_shared"] < CHANCE / 2,
        "the fused feature is far shorter or longer than the shared one": 0.2 < found[health.FUSED] < 5,
        "the fusion has switched itself off": min(found["w1"], found["w2"]) > 0.1,
        "the fused feature alone does not know the identity": fused_finds(train_step, world) > 4 / P,
        "generated features of different identities are alike": found[health.COSINE] < 0.7,
        "the discriminators are idle, or have won": 0.52 < found[health.ACCURACY] < 0.99,
    }
    return [fault for fault, holds in right.items() if not holds]


@torch.no_grad()
def fused_finds(train_step: TrainStep, world: World) -> float:
    """Share of images whose nearest F_fu of the other modality, F_fu alone, is of their identity; chance is 1 / P."""
    model, right = train_step.model.eval(), []
    before = world.generator.get_state()
    for _ in range(8):
        batch = world.batch()
        out = model(batch.visible, batch.infrared)
        fused = [F.normalize(half.fused[:, half.shared.shape[1] :], dim=1) for half in out]
        cosines = fused[0] @ fused[1].T
        right += [
            batch.labels[cosines.argmax(1)] == batch.labels,
            batch.labels[cosines.argmax(0)] == batch.labels,
        ]
    model.train()
    world.generator.set_state(before)
    return float(torch.cat(right).float().mean())


def _differing() -> dict[str, str]:
    """One shipped configuration of each kind (equal model, losses and training), and the names of its kind."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(shipped()):
        config = load_config(name, SMALL)
        kinds.setdefault(repr((config.model, config.losses, config.training)), []).append(name)
    return {names[0]: "=".join(names) for names in kinds.values()}


KINDS = _differing()


def test_all_shipped_configurations_are_of_a_kind_that_is_tried():
    assert sorted("=".join(KINDS.values()).split("=")) == sorted(shipped())


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS, ids=KINDS.values())
def test_every_shipped_configuration_learns(name):
    assert learn(name) == []


@pytest.mark.slow
def test_the_settings_of_0_1_0_for_sysu_are_called_dead(caplog):
    """Free fusion weights before a neck, and each tail centred by its own statistics."""
    world, monitor = World(), health.HealthMonitor()
    old = [
        "model.normalization=tail",
        "model.fusion=sum",
        "model.fusion_normalize=false",
        "model.generator_residual=false",
        "losses.reduction=sum",
        "losses.fc=0.01",
        "losses.gan=1",
        "losses.ic=1",
        "losses.saturating=true",
        "training.optimizer=sgd",
        "training.lr=0.1",
        "training.backbone_lr_factor=0.1",
    ]
    torch.manual_seed(0)
    config = load_config("sysu", [*SMALL, *old])
    with distributed_context("cpu") as ctx:
        train_step = TrainStep(config, build_model(config.model, IDENTITIES), ctx, P, LONG)
        for step in range(health.WINDOW + 20):
            train_step.step([world.batch()], step)
    for record in train_step.read():
        monitor.watch(record)
    told = [record.message for record in caplog.records]
    assert sum("the fusion has switched itself off" in text for text in told) == 1
    assert sum("the compensation has collapsed" in text for text in told) == 1
