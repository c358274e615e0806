"""Statistics of FeatureNorm over plain images: those of all features, and nothing else changes."""

import pytest
import torch
from safetensors.torch import load_file

from fmcnet.config import load_config
from fmcnet.data.loader import TrainingBatch
from fmcnet.errors import DataError
from fmcnet.inference.encoder import load
from fmcnet.models.build import build_model
from fmcnet.models.fmcnet import FMCNet
from fmcnet.training.checkpointing import checkpoints
from fmcnet.training.selection import estimate_statistics
from fmcnet.training.trainer import train
from fmcnet.types import Modality


def test_they_are_the_mean_and_variance_of_all_features():
    torch.manual_seed(0)
    model = build_model(load_config("tiny").model, 6).eval()
    batches = [TrainingBatch(*torch.rand(2, 8, 3, 64, 32), torch.arange(8)) for _ in range(3)]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    estimate_statistics(model, lambda: batches)
    sfd = model.decomposition
    for code, half in enumerate(("visible", "infrared")):
        norm = sfd.norm_shared.statistics[code]
        images = torch.cat([getattr(batch, half) for batch in batches])
        stem = getattr(sfd, f"stem_{half}")
        with torch.no_grad():
            raw = sfd.shared(stem(model.preprocess(images)))
        torch.testing.assert_close(norm.running_mean, raw.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, raw.var(0), rtol=1e-3, atol=1e-5)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if "statistics" in key and "running" in key}


def test_a_model_in_training_mode_is_refused():
    model = build_model(load_config("tiny").model, 6)
    with pytest.raises(ValueError, match=r"call model\.eval\(\) before"):
        estimate_statistics(model, list)


def test_a_standardised_descriptor_has_mean_0_and_deviation_1_of_the_training_images():
    torch.manual_seed(0)
    settings = load_config("tiny", ["model.standardized=true"]).model
    model = build_model(settings, 6).eval()
    batches = [TrainingBatch(*torch.rand(2, 8, 3, 64, 32), torch.arange(8)) for _ in range(3)]
    estimate_statistics(model, lambda: batches)
    for half, modality in (("visible", Modality.VISIBLE), ("infrared", Modality.INFRARED)):
        with torch.no_grad():
            found = torch.cat([model.embed(getattr(batch, half), modality) for batch in batches])
        torch.testing.assert_close(found.mean(0), torch.zeros(found.shape[1]), atol=1e-4, rtol=0)
        deviation = found.std(0)
        varies = deviation > 0.5  # a value that all images have alike stays constant
        assert varies.float().mean() > 0.9
        torch.testing.assert_close(deviation[varies], torch.ones(int(varies.sum())), atol=1e-3, rtol=0)


def test_a_model_keeps_its_standardisation_when_an_image_cannot_be_read():
    model = build_model(load_config("tiny", ["model.standardized=true"]).model, 6).eval()
    standard, calls = model.standard, []

    def load():
        calls.append(1)
        if len(calls) > 1:
            raise DataError("broken")
        return [TrainingBatch(*torch.rand(2, 8, 3, 64, 32), torch.arange(8))]

    with pytest.raises(DataError, match="broken"):
        estimate_statistics(model, load)
    assert len(calls) == 2
    assert model.standard is standard


def test_training_takes_them(tiny_sysu, tmp_path):
    settings = ["model.standardized=true", "training.epochs=1", "training.steps_per_epoch=2"]
    train(load_config("tiny", settings), tiny_sysu, tmp_path / "run", device="cpu", progress=False)
    state = load_file(tmp_path / "run" / "model.safetensors")
    assert state["standard.mean"].abs().max() > 0
    assert not torch.equal(state["standard.std"], torch.ones_like(state["standard.std"]))


def test_selected_weights_have_them_too(tiny_sysu, tmp_path):
    """Where the best step is the last, both ways of selecting write the same model."""
    for select in ("last", "val"):
        settings = [f"training.select={select}", "training.epochs=1", "training.steps_per_epoch=2"]
        train(load_config("tiny", settings), tiny_sysu, tmp_path / select, device="cpu", progress=False)
    last, best = (load_file(tmp_path / select / "model.safetensors") for select in ("last", "val"))
    assert {key for key in last if not torch.equal(last[key], best[key])} == set()
    running = load_file(checkpoints(tmp_path / "last")[-1] / "model.safetensors")
    key = "decomposition.norm_shared.statistics.1.running_mean"
    assert not torch.equal(best[key], running[key])  # the running averages are not what is written


@pytest.mark.parametrize("setting", ["model.standardized=true", "model.normalization=none"])
def test_a_checkpoint_taken_as_a_model_says_that_it_lacks_them(tiny_sysu, tmp_path, caplog, setting):
    settings = [setting, "training.epochs=1", "training.steps_per_epoch=2", "training.validate_every=0"]
    train(load_config("tiny", settings), tiny_sysu, tmp_path / "run", device="cpu", progress=False)
    folder = checkpoints(tmp_path / "run")[-1]
    caplog.clear()
    FMCNet.from_pretrained(tmp_path / "run")
    assert not caplog.messages
    load(folder, "cpu")
    assert [f"{folder} is a checkpoint" in said for said in caplog.messages] == (
        [True] if "standardized" in setting else []
    )
