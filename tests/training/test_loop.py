"""Training: exact resume, kills, NaN, refusals, the log, who moves when."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fmcnet.config import LossConfig, load_config
from fmcnet.data.readers import read_dataset
from fmcnet.data.readers.csv import write_csv
from fmcnet.data.table import hold_out
from fmcnet.errors import CheckpointError, ConfigError, DataError, TrainingError
from fmcnet.experiments.study import StudyOptions, run_study
from fmcnet.losses.criterion import TERMS, FMCNetLoss
from fmcnet.models.build import build_model
from fmcnet.synthetic import generate
from fmcnet.training import trainer as loop
from fmcnet.training.checkpointing import checkpoints
from fmcnet.training.loggers import read_log
from fmcnet.training.train_step import TrainStep
from fmcnet.types import Modality


def weights(run):
    return load_file(run / "model.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_a_run_folder(tiny_run):
    assert {"config.yaml", "log.jsonl", "checkpoints", "model.safetensors", "model.json"} <= {
        p.name for p in tiny_run.iterdir()
    }
    records = [r for r in read_log(tiny_run) if "step" in r]
    assert [r["step"] for r in records] == list(range(1, 11))
    assert set(TERMS) < set(records[0])
    assert records[0]["loss"] == pytest.approx(
        sum(records[0][t] for t in TERMS if t != "discriminator"), rel=1e-5
    )
    assert [r["validated_step"] for r in read_log(tiny_run) if "validated_step" in r] == [5, 10]
    card = json.loads((tiny_run / "model.json").read_text())
    assert card["step"] == 10
    assert len(card["pids"]) == card["config"]["data"]["identities"] * 3
    assert card["pids"] == sorted(card["pids"])


def test_same_seed_same_bits_and_other_seed_other_bits(tiny_sysu, tmp_path):
    short = ["training.epochs=1", "training.steps_per_epoch=2"]
    for name, seed in (("once", 0), ("again", 0), ("other", 1)):
        config = load_config("tiny", [*short, f"training.seed={seed}"])
        loop.train(config, tiny_sysu, tmp_path / name, progress=False)
    once, again, other = (weights(tmp_path / name) for name in ("once", "again", "other"))
    assert_same(once, again)
    key = "decomposition.shared.layer4.0.conv2.weight"
    assert not torch.equal(once[key], other[key])


@pytest.fixture(scope="module")
def stopped(tiny_sysu, tmp_path_factory):
    """A folder of runs as a power cut leaves them after so many steps: 4, 5 and, its log closed, 9."""
    folder, step = tmp_path_factory.mktemp("stopped"), TrainStep.step

    def stopping(self, batches, number):
        if number in (4, 5):
            shutil.copytree(folder / "9", folder / str(number))
        if number == 9:
            raise RuntimeError("power cut")
        step(self, batches, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "step", stopping)
        with pytest.raises(RuntimeError, match="power cut"):
            loop.train(load_config("tiny"), tiny_sysu, folder / "9", progress=False)
    return folder


@pytest.mark.parametrize("stop_at", [4, 5, 9])
def test_resume_equals_uninterrupted_bit_for_bit(tiny_run, tiny_sysu, stopped, tmp_path, stop_at):
    """Stopped between, at and after checkpoints (every 3 steps), within and at the end of an epoch (5 steps)."""
    run = shutil.copytree(stopped / str(stop_at), tmp_path / "run")
    assert not (run / "model.safetensors").exists()
    summary = loop.train(load_config("tiny"), tiny_sysu, run, resume=True, progress=False)
    assert summary.resumed_from == stop_at // 3 * 3
    assert_same(weights(tiny_run), weights(run))
    assert read_log(run) == read_log(tiny_run)


def test_resuming_a_finished_run_changes_nothing(tiny_sysu, tmp_path):
    config = load_config("tiny", ["training.epochs=1", "training.steps_per_epoch=2"])
    loop.train(config, tiny_sysu, tmp_path / "run", progress=False)
    before, log = weights(tmp_path / "run"), read_log(tmp_path / "run")
    assert loop.train(config, tiny_sysu, tmp_path / "run", resume=True, progress=False).resumed_from == 2
    assert_same(before, weights(tmp_path / "run"))
    assert read_log(tmp_path / "run") == log


@pytest.mark.parametrize("term", list(TERMS))
def test_nan_in_a_term_names_the_term_and_the_last_checkpoint(tiny_sysu, tmp_path, monkeypatch, term):
    calls = []
    turn = "discriminator_loss" if term == "discriminator" else "forward"
    real = getattr(FMCNetLoss, turn)

    def poisoned(*arguments):
        calls.append(1)
        found = real(*arguments)
        if len(calls) != 2:
            return found
        if term == "discriminator":
            return found * float("nan")
        loss, terms = found
        poison = terms[term] * float("nan")
        return loss + poison, {**terms, term: poison}

    monkeypatch.setattr(FMCNetLoss, turn, poisoned)
    every_step = load_config("tiny", ["training.checkpoint_every=1"])
    with pytest.raises(TrainingError, match=f"step 2: {term} became NaN.*step-000001"):
        loop.train(every_step, tiny_sysu, tmp_path / "run", progress=False)
    assert len(checkpoints(tmp_path / "run")) == 1


def test_refusals(tiny_run, tiny_sysu, tmp_path):
    with pytest.raises(CheckpointError, match="already holds a run"):
        loop.train(load_config("tiny"), tiny_sysu, tiny_run)
    with pytest.raises(CheckpointError, match=r"training\.lr: .* there, 0\.5 now"):
        loop.train(load_config("tiny", ["training.lr=0.5"]), tiny_sysu, tiny_run, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    with pytest.raises(DataError, match="not an fmcnet run"):
        loop.train(load_config("tiny"), tiny_sysu, tmp_path / "mine")
    (tmp_path / "mine" / "config.yaml").write_text("lr: 0.1")  # another program's
    with pytest.raises(DataError, match="not an fmcnet run"):
        loop.train(load_config("tiny"), tiny_sysu, tmp_path / "mine")
    (tmp_path / "mine" / "config.yaml").write_text(load_config("tiny").to_yaml())
    with pytest.raises(
        CheckpointError, match=r"already holds a run.*another --out$"
    ):  # it may not be deleted
        loop.train(load_config("tiny"), tiny_sysu, tmp_path / "mine")
    (tmp_path / "mine" / "thesis.txt").unlink()
    with pytest.raises(CheckpointError, match="its folder can be deleted"):
        loop.train(load_config("tiny"), tiny_sysu, tmp_path / "mine")
    with pytest.raises(DataError, match="lower the number of identities"):
        loop.train(load_config("tiny", ["data.identities=99"]), tiny_sysu, tmp_path / "many")
    with pytest.raises(DataError, match="does not exist"):
        loop.train(load_config("tiny"), tmp_path / "nowhere", tmp_path / "many")
    with pytest.raises(ConfigError, match=r"data\.split is for RegDB; the data are sysu"):
        loop.train(load_config("tiny", ["data.split=5"]), tiny_sysu, tmp_path / "many")
    with pytest.raises(ConfigError, match=r"data\.split is for RegDB"):  # before a world is generated
        run_study(StudyOptions("table2", tmp_path / "many", preset="tiny", overrides=("data.split=5",)))
    assert not (tmp_path / "many").exists()  # a mistake leaves nothing that stands in the way of the next try


def test_a_selection_without_a_validation_is_told(tiny_sysu, tmp_path, caplog):
    more = ["training.epochs=2", "training.validate_every=3", "training.steps_per_epoch=1"]
    summary = loop.train(
        load_config("tiny", ["training.select=val", *more]), tiny_sysu, tmp_path / "run", progress=False
    )
    assert (
        "no epoch is validated, because training.validate_every=3 is more than training.epochs=2"
        in caplog.text
    )
    assert summary.steps == 2


def test_selection_on_validation_identities_takes_the_best_step(tiny_sysu, tmp_path):
    settings = ["training.select=val", "training.epochs=4", "training.steps_per_epoch=2"]
    config = load_config("tiny", settings)
    summary = loop.train(config, tiny_sysu, tmp_path / "run", progress=False)
    measured = {r["validated_step"]: r["mAP"] for r in read_log(tmp_path / "run") if "validated_step" in r}
    best = max(measured, key=lambda step: (measured[step], -step))
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert (card["step"], card["selected"], summary.selected) == (best, "val", "val")


def computed(saturating=True, **changes):
    torch.manual_seed(0)
    from fmcnet.config import ModelConfig

    model = build_model(ModelConfig(arch="resnet18", width=8, variant="full"), 4)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 8, 3, 32, 16, generator=generator)
    labels = torch.arange(4).repeat_interleave(2)
    return model, model(images[0], images[1]), labels, LossConfig(saturating=saturating, **changes)


def gradients(loss, module):
    return [
        0.0 if g is None else float(g.abs().sum())
        for g in torch.autograd.grad(
            loss, [p for p in module.parameters() if p.requires_grad], retain_graph=True, allow_unused=True
        )
    ]


def test_the_two_players_own_disjoint_parameters():
    model, output, labels, config = computed()
    criterion = FMCNetLoss(config, 4, model.compensation)
    judged = criterion.discriminator_loss(output)
    assert sum(gradients(judged, model.compensation.judge_infrared)) > 0
    assert sum(gradients(judged, model.compensation.to_infrared)) == 0
    assert sum(gradients(judged, model.decomposition)) == 0
    loss, terms = criterion(output, labels)
    assert sum(gradients(loss, model.compensation.judge_infrared)) == 0
    assert sum(gradients(terms["gan"], model.compensation.to_infrared)) > 0
    assert sum(gradients(terms["gan"], model.compensation.to_visible)) > 0


@pytest.mark.parametrize("saturating", [True, False])
def test_alternating_steps_play_min_max(saturating):
    """Steps of the discriminator raise the value (12); steps of the generator lower it."""
    model, output, _, _ = computed(saturating)
    fmc = model.compensation
    shared, real = output.visible.shared.detach(), output.infrared.specific.detach()
    from fmcnet.losses.functional import adversarial_value, generator_loss

    def value():
        return float(
            adversarial_value(fmc.judge_infrared(real), fmc.judge_infrared(fmc.to_infrared(shared))).detach()
        )

    judge = torch.optim.SGD(fmc.judge_infrared.parameters(), lr=0.01)
    start = value()
    for _ in range(20):
        judge.zero_grad()
        (
            -adversarial_value(fmc.judge_infrared(real), fmc.judge_infrared(fmc.to_infrared(shared).detach()))
        ).backward()
        judge.step()
    raised = value()
    assert raised > start
    player = torch.optim.SGD(fmc.to_infrared.parameters(), lr=0.01)
    for _ in range(20):
        player.zero_grad()
        generator_loss(fmc.judge_infrared(fmc.to_infrared(shared)), saturating).backward()
        player.step()
    assert value() < raised


@pytest.mark.parametrize(
    ("changes", "gone"), [({"gan": 0}, "gan"), ({"fc": 0}, "fc"), ({"ic": 0}, "ic"), ({"dc": False}, "dc")]
)
def test_rows_of_the_papers_ablations_are_settings(changes, gone):
    model, output, labels, config = computed(**changes)
    assert set(FMCNetLoss(config, 4, model.compensation)(output, labels)[1]) == set(TERMS) - {
        "discriminator",
        gone,
    }


def test_detached_targets_move_only_the_generated_side():
    for detach in (False, True):
        model, output, labels, config = computed(detach_targets=detach)
        fc = FMCNetLoss(config, 4, model.compensation)(output, labels)[1]["fc"]
        assert (sum(gradients(fc, model.decomposition.specific_infrared)) == 0) is detach
        assert sum(gradients(fc, model.compensation.to_infrared)) > 0


def test_one_step_updates_the_discriminators_first_and_the_others_with_the_updated_discriminators(
    tiny_sysu, tmp_path, monkeypatch
):
    """Who moves when: recorded inside the real step."""
    seen = []

    def record(name, who):
        update = getattr(TrainStep, name)

        def recording(self):
            parts = {
                "discriminators": self.model.compensation.discriminator(Modality.INFRARED),
                "generator": self.model.compensation.to_infrared,
            }
            before = {k: [p.clone() for p in m.parameters()] for k, m in parts.items()}
            norm = update(self)
            moved = {
                k: any(not torch.equal(a, b) for a, b in zip(before[k], m.parameters(), strict=True))
                for k, m in parts.items()
            }
            seen.append((who, moved))
            return norm

        monkeypatch.setattr(TrainStep, name, recording)

    record("_update", "others")
    record("_update_discriminators", "discriminators")
    settings = ["training.epochs=1", "training.steps_per_epoch=2", "training.validate_every=0"]
    loop.train(load_config("tiny", settings), tiny_sysu, tmp_path / "run", progress=False)
    turns = [
        ("discriminators", {"discriminators": True, "generator": False}),
        ("others", {"discriminators": False, "generator": True}),
    ]
    assert seen == turns * 2


@pytest.mark.parametrize("who", ["gradient", "discriminator gradient"])
def test_after_a_gradient_that_is_not_finite_nothing_is_stored(tiny_sysu, tmp_path, monkeypatch, who):
    name = "_update" if who == "gradient" else "_update_discriminators"
    update, calls = getattr(TrainStep, name), []

    def poisoned(self):
        optimizer = self.optimizer if who == "gradient" else self.discriminator_optimizer
        calls.append(1)
        if len(calls) == 5:
            optimizer.param_groups[0]["params"][0].grad.fill_(float("nan"))
        return update(self)

    monkeypatch.setattr(TrainStep, name, poisoned)
    with pytest.raises(TrainingError, match=f"step 5: {who} became NaN.*step-000003"):
        loop.train(load_config("tiny", ["training.clip=0"]), tiny_sysu, tmp_path / "run", progress=False)
    [stored] = checkpoints(tmp_path / "run")
    assert all(
        torch.isfinite(value.float()).all() for value in load_file(stored / "model.safetensors").values()
    )
    assert [r["step"] for r in read_log(tmp_path / "run") if "step" in r] == [1, 2, 3]


ONE_STEP = ["training.validate_every=0", "training.epochs=1", "training.steps_per_epoch=1"]


def test_a_checkpoint_is_not_resumed_on_other_data(tiny_sysu, tmp_path):
    loop.train(load_config("tiny", ONE_STEP), tiny_sysu, tmp_path / "run", progress=False)
    shutil.copytree(tiny_sysu, tmp_path / "other")
    ids = (tiny_sysu / "exp" / "train_id.txt").read_text().strip().split(",")
    folders = (tmp_path / "other" / "cam1" / f"{int(i):04d}" for i in ids)
    victim = sorted(next(f for f in folders if f.is_dir()).glob("*.jpg"))[-1]
    victim.rename(victim.with_name("9999.jpg"))
    with pytest.raises(CheckpointError, match="other images or identities"):
        loop.train(
            load_config("tiny", ONE_STEP), tmp_path / "other", tmp_path / "run", resume=True, progress=False
        )


def test_a_resume_on_another_dataset_is_not_called_a_damaged_checkpoint(tiny_sysu, tmp_path, caplog):
    settings = [*ONE_STEP, "data.identities=3"]
    loop.train(load_config("tiny", settings), tiny_sysu, tmp_path / "run", progress=False)
    few = {"train_ids": 4, "test_ids": 4, "train_images": 2}  # other numbers of identities and images
    generate("regdb", "tiny", 1, tmp_path / "other", **few)
    with pytest.raises(
        CheckpointError, match="cannot be resumed exactly: it was made with other images or"
    ) as got:
        loop.train(
            load_config("tiny", settings), tmp_path / "other", tmp_path / "run", resume=True, progress=False
        )
    assert "damaged" not in str(got.value) + caplog.text


def test_a_checkpoint_is_not_resumed_on_images_that_look_different(tiny_sysu, tmp_path):
    shutil.copytree(tiny_sysu, tmp_path / "data")
    loop.train(load_config("tiny", ONE_STEP), tmp_path / "data", tmp_path / "run", progress=False)
    ids = (tiny_sysu / "exp" / "train_id.txt").read_text().strip().split(",")
    folders = [tmp_path / "data" / "cam1" / f"{int(i):04d}" for i in ids]
    first, second = sorted(next(f for f in folders if f.is_dir()).glob("*.jpg"))[:2]
    shutil.copy(first, second)
    with pytest.raises(CheckpointError, match="images that looked different"):
        loop.train(
            load_config("tiny", ONE_STEP), tmp_path / "data", tmp_path / "run", resume=True, progress=False
        )


def test_a_checkpoint_is_not_resumed_on_changed_rows(tiny_sysu, tmp_path):
    table = read_dataset(tiny_sysu)
    places = [str(path) for path in table.full_paths()]
    table = replace(table, root=tmp_path, path=np.array(places), name="csv")
    people = write_csv(table, tmp_path / "people.csv")
    config = load_config("tiny", ["training.epochs=1", "training.steps_per_epoch=1"])
    loop.train(config, people, tmp_path / "run", progress=False)
    loop.train(config, people, tmp_path / "run", resume=True, progress=False)
    for split, change, said in (
        ("train", "modality", "images of another modality"),
        ("val", "modality", "other images to validate on"),
        ("val", "image", "other images to validate on"),
    ):
        first, second = np.flatnonzero(
            (table.split == split) & (table.pid == table.pid[table.split == split][0])
        )[:2]
        if change == "modality":
            modality = table.modality.copy()
            modality[first] = 1 - modality[first]
            changed = replace(table, modality=modality)
        else:
            Image.open(places[second]).rotate(90).save(tmp_path / "new.jpg")
            path = np.array([*places[:first], str(tmp_path / "new.jpg"), *places[first + 1 :]])
            changed = replace(table, path=path)
        write_csv(changed, people)
        with pytest.raises(CheckpointError, match=said):
            loop.train(config, people, tmp_path / "run", resume=True, progress=False)


def test_a_folder_in_which_something_trains_is_refused(tiny_sysu, tmp_path):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(CheckpointError, match="another process is training"),
    ):
        loop.train(load_config("tiny"), tiny_sysu, tmp_path / "run", progress=False)


def test_checkpoints_sort_by_number(tmp_path):
    for step in ("step-999999", "step-1000000", "step-000003"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000003", "step-999999", "step-1000000"]


def test_progress_without_a_terminal_survives_a_start_without_steps(caplog, monkeypatch):
    import logging

    from fmcnet import progress

    monkeypatch.setattr(progress, "EVERY", -1.0)
    caplog.set_level(logging.INFO)
    with progress.Progress("waiting", 10) as bar:
        bar.advance("nothing yet", 0)
        bar.advance("", 5)
    assert "waiting 0/10, starting" in caplog.text
    assert "waiting 5/10" in caplog.text


def test_where_a_dataset_names_no_validation_identities_a_share_is_held_out(tiny_sysu):
    from dataclasses import replace

    import numpy as np

    from fmcnet.data.readers import read_dataset

    table = read_dataset(tiny_sysu)
    config = load_config("tiny", ["data.val_share=0.25"])
    assert hold_out(table, config) is table  # SYSU-MM01 has val_id
    bare = replace(table, split=np.where(table.split == "val", "train", table.split))
    held = hold_out(bare, config)
    train, val = (set(held.select(split=s).pid.tolist()) for s in ("train", "val"))
    assert len(val) == round(0.25 * len(train | val))
    assert not train & val
    assert train | val == set(bare.select(split="train").pid.tolist())
    assert np.array_equal(held.split == "test", bare.split == "test")
    assert np.array_equal(hold_out(bare, config).split, held.split)
    assert hold_out(bare, load_config("tiny", ["training.validate_every=0"])) is bare
    few = hold_out(bare, load_config("tiny", ["data.val_share=0.01"]))
    assert len({*few.select(split="val").pid.tolist()}) == 2  # of one every order is right


@pytest.mark.parametrize("number", [1, "none"])
def test_validation_needs_two_identities_seen_in_both_modalities(tiny_sysu, tmp_path, number):

    import numpy as np

    from fmcnet.data.readers import read_dataset

    table = read_dataset(tiny_sysu)
    first, second, *others = np.unique(table.pid[table.split == "val"])
    keep = ~np.isin(table.pid, others)
    if number == "none":
        keep &= ~((table.pid == first) & (table.modality == 1))
    keep &= ~((table.pid == second) & (table.modality == 0))
    few = table.take(np.flatnonzero(keep))
    assert {*few.select(split="val").modality.tolist()} == {0, 1}
    with pytest.raises(
        DataError, match=f"two 'val' identities, each seen in both modalities, .* has {number}:"
    ):
        loop.train(load_config("tiny"), few, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "log.jsonl").exists() or not (tmp_path / "run" / "log.jsonl").read_text()


@pytest.mark.parametrize(
    "settings",
    [
        ["training.optimizer=sgd", "training.schedule=multistep", "training.lr=0.01", "model.variant=sfd"],
        ["training.precision=bf16", "training.schedule=cosine", "model.variant=full"],
        ["training.schedule=constant", "training.warmup=0", "model.variant=fmc", "model.pooling=gem"],
        ["model.variant=base", "model.single_stream=true"],
        ["model.neck=false", "model.unit_features=false", "losses.saturating=true", "losses.reduction=sum"],
    ],
    ids=lambda s: s[0],
)
def test_every_kind_of_training_ends_with_a_model_that_embeds(tiny_sysu, tmp_path, settings):
    from fmcnet.data.readers import read_dataset
    from fmcnet.inference.encoder import load

    more = ["training.epochs=1", "training.steps_per_epoch=3", "training.validate_every=0"]
    loop.train(load_config("tiny", [*settings, *more]), tiny_sysu, tmp_path / "run", progress=False)
    embeddings = load(tmp_path / "run", "cpu").embed_table(
        read_dataset(tiny_sysu).select(split="test"), progress=False
    )
    assert len(embeddings) > 0  # Embeddings refuses what is not finite


def test_learning_rates_rise_and_fall():
    from fmcnet.training.optimizers import lr_factor

    for schedule in ("onecycle", "cosine", "multistep", "constant"):
        config = load_config("tiny", [f"training.schedule={schedule}", "training.warmup=0.2"]).training
        values = [lr_factor(step, 100, config) for step in range(100)]
        assert all(0 < v <= 1 for v in values)
        assert values[:20] == sorted(values[:20])
        assert max(values) == pytest.approx(1, abs=1e-3)
        assert values[20:] == sorted(values[20:], reverse=True)
    settings = ["training.schedule=multistep", "training.warmup=0", "training.milestones=[0.5, 0.75]"]
    config = load_config("tiny", settings).training
    assert [lr_factor(step, 100, config) for step in (0, 49, 50, 74, 75, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
