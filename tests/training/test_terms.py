"""Losses of one's own: part of the total, of the log, of the gradient and of an exact resume."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fmcnet.config import load_config
from fmcnet.errors import CheckpointError, ConfigError, TrainingError
from fmcnet.losses.criterion import LOSSES
from fmcnet.training import trainer as loop
from fmcnet.training.loggers import read_log
from tests.training.runs import draws, weights
from tests.training.test_state import PowerCut, Stop

SETTINGS = (
    "training.epochs=1",
    "training.steps_per_epoch=4",
    "training.checkpoint_every=2",
    "training.log_every=1",
    "training.validate_every=0",
)


def gap(output, labels):
    return (output.visible.shared - output.infrared.shared).square().mean()


def train(data, out, *more, **options):
    return loop.train(load_config("tiny", [*SETTINGS, *more]), data, out, progress=False, **options)


def test_a_term_is_weighed_summed_and_logged(tiny_sysu, tmp_path):
    summary = train(tiny_sysu, tmp_path / "run", "losses.terms={gap: 0.5}", terms={"gap": gap})
    plain = train(tiny_sysu, tmp_path / "other", terms={"gap": gap})
    half, whole = read_log(tmp_path / "run"), read_log(tmp_path / "other")
    assert len(half) == 4
    assert half[0]["gap"] == pytest.approx(0.5 * whole[0]["gap"])
    for record in half:
        assert record["loss"] == pytest.approx(
            sum(record[name] for name in LOSSES & record.keys()) + record["gap"]
        )
    assert summary.last_terms["gap"] == half[-1]["gap"] > 0
    assert plain.last_terms["gap"] > 0


def test_a_term_without_a_gradient_is_told_once(tiny_sysu, tmp_path, caplog):
    train(tiny_sysu, tmp_path / "run", terms={"gap": gap, "held": lambda *given: gap(*given).detach()})
    told = [record.message for record in caplog.records if "has no gradient" in record.message]
    assert len(told) == 1
    assert "'held'" in told[0]
    caplog.clear()
    once = "training.steps_per_epoch=1"
    held, pairs = {"held": lambda *_: torch.ones(())}, {"pairs": lambda *_: torch.zeros(())}
    train(tiny_sysu, tmp_path / "logged", once, "losses.terms={held: 0}", terms=held)
    train(tiny_sysu, tmp_path / "none", once, terms=pairs)
    assert "has no gradient" not in caplog.text


def test_a_strong_term_moves_what_it_measures(tiny_sysu, tmp_path):
    base = ["variant=base", "normalization=none", "specific_offset=0", "fusion_normalize=false"]
    settings = [
        *(f"model.{item}" for item in base),
        "training.steps_per_epoch=10",
        "training.schedule=constant",
    ]
    settings += ["training.warmup=0", "training.backbone_lr_factor=1"]
    ends = {}
    for weight in (1e-6, 300):
        out = tmp_path / str(weight)
        train(tiny_sysu, out, *settings, f"losses.terms={{gap: {weight}}}", terms={"gap": gap})
        ends[weight] = [record["gap"] / weight for record in read_log(out)]
    assert ends[300][0] == pytest.approx(ends[1e-6][0], rel=1e-3)
    assert ends[300][-1] < ends[300][0] / 3
    assert ends[300][-1] < ends[1e-6][-1] / 3


def test_a_resume_with_the_term_is_exact_and_without_it_is_refused(tiny_sysu, tmp_path):
    terms = {"gap": gap, "draws": draws}
    train(tiny_sysu, tmp_path / "whole", terms=terms)
    with pytest.raises(PowerCut):
        train(tiny_sysu, tmp_path / "run", terms=terms, trackers=[Stop(3)])
    for other in (None, {"gap": gap}, {"gap": gap, "noise": draws}):
        with pytest.raises(
            CheckpointError, match=r"other loss terms of train\(terms=...\) \(draws, gap there"
        ):
            train(tiny_sysu, tmp_path / "run", terms=other, resume=True)
    with pytest.raises(CheckpointError, match=r"losses\.terms"):
        train(tiny_sysu, tmp_path / "run", "losses.terms={gap: 2}", terms=terms, resume=True)
    train(tiny_sysu, tmp_path / "run", terms=dict(reversed(terms.items())), resume=True)
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "run")


def test_a_run_without_terms_is_not_resumed_with_one(tiny_sysu, tmp_path):
    with pytest.raises(PowerCut):
        train(tiny_sysu, tmp_path / "run", trackers=[Stop(3)])
    with pytest.raises(CheckpointError, match=r"None there, gap now"):
        train(tiny_sysu, tmp_path / "run", terms={"gap": gap}, resume=True)
    train(tiny_sysu, tmp_path / "run", resume=True)


def test_a_term_that_is_not_finite_is_named_and_nothing_is_stored(tiny_sysu, tmp_path):
    def breaks(output, labels):
        return gap(output, labels) / 0

    with pytest.raises(TrainingError, match="step 1: mine became NaN or infinite"):
        train(tiny_sysu, tmp_path / "run", terms={"mine": breaks})
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (lambda output, labels: output.visible.shared, r"'mine' gives a tensor \(\d+, \d+\), not a scalar"),
        (lambda output, labels: 1.0, "'mine' gives float, not a scalar"),
    ],
)
def test_a_term_that_gives_no_scalar_is_one_line(term, said, tiny_sysu, tmp_path):
    with pytest.raises(TrainingError, match=said) as caught:
        train(tiny_sysu, tmp_path / "run", terms={"mine": term})
    assert "\n" not in str(caught.value)


class Proxies(nn.Module):
    def __init__(self):
        super().__init__()
        self.centers = nn.Parameter(torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("terms", "settings", "said"),
    [
        ({"gan": gap}, [], "the name 'gan' is taken"),
        ({"loss": gap}, [], "the name 'loss' is taken"),
        ({"discriminator": gap}, [], "the name 'discriminator' is taken"),
        ({"mine": 3}, [], "'mine' is a int, not a function"),
        ([gap], [], r"terms is of type list: give a dict, as \{'mine': function\}"),
        ({"mine": Proxies()}, [], "'mine' has weights or buffers of its own"),
        (None, ["losses.terms={mine: 2}"], r"losses\.terms weighs mine, which this training does not have"),
        ({"mine": gap}, ["losses.terms={mien: 2}"], r"losses\.terms weighs mien"),
    ],
)
def test_terms_that_cannot_be_are_refused_before_anything_is_written(
    terms, settings, said, tiny_sysu, tmp_path
):
    with pytest.raises(ConfigError, match=said):
        train(tiny_sysu, tmp_path / "run", *settings, terms=terms)
    assert not (tmp_path / "run").exists()
