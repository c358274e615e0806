"""Images that are in two places are found by their content."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fmcnet.config import load_config
from fmcnet.data.check import check
from fmcnet.data.readers import read_dataset
from fmcnet.data.readers.csv import write_csv
from fmcnet.data.table import Table, fingerprint, sample_images, seen_identities
from fmcnet.errors import DataError
from fmcnet.evaluation.evaluate_model import evaluate_model
from fmcnet.inference.fit_calibration import calibrate_model
from fmcnet.inference.fit_projection import project_model
from fmcnet.models.card import read_card
from fmcnet.training.trainer import train


def other_splits(table):
    """Train and test exchanged."""
    names = {"train": "test", "test": "train"}
    return replace(table, split=np.array([names.get(one, one) for one in table.split.tolist()]))


def test_a_model_card_holds_two_images_of_each_identity(tiny_run, tiny_sysu):
    table = read_dataset(tiny_sysu).select(split="train")
    card = read_card(tiny_run)
    assert card.samples == sample_images(table)
    assert len(card.samples) == 2 * card.classes
    assert seen_identities(card.samples, table).tolist() == sorted(card.pids)


@pytest.mark.parametrize("how", ["one row less", "those trained on alone", "renamed"])
def test_people_trained_on_are_refused_whatever_file_names_them(tiny_run, tiny_sysu, tmp_path, how):
    table = other_splits(read_dataset(tiny_sysu))
    if how == "one row less":
        table = table.take(np.arange(len(table) - 1))
    elif how == "those trained on alone":
        table = table.select(split="test")
    else:
        for path in table.path.tolist():
            (tmp_path / "x" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_sysu / path, tmp_path / "x" / path)
        table = replace(table, root=tmp_path / "x", pid=table.pid + 1000)
    data = read_dataset(write_csv(replace(table, name="csv"), tmp_path / "people.csv"))
    count = read_card(tiny_run).classes
    with pytest.raises(
        DataError, match=rf"{count} of the test identities have images that .* was trained on"
    ):
        evaluate_model(tiny_run, data, load_config("tiny").evaluation, progress=False)
    with pytest.raises(DataError, match=f"{count} identities of split 'test' have images"):
        calibrate_model(tiny_run, tmp_path / "people.csv", split="test", progress=False)


def test_strangers_and_models_without_samples_are_evaluated(tiny_run, tiny_sysu, tmp_path, caplog):
    """A black image of several people says nothing; one copy under a wrong name is told."""
    table = read_dataset(tiny_sysu)
    known = table.select(split="train")
    black = tmp_path / "black.png"
    Image.new("RGB", (8, 16)).save(black)
    shared = replace(known, path=np.where(np.arange(len(known)) % 2, str(black), known.path))
    samples = sample_images(shared)
    assert sample_images(known) != samples
    assert not seen_identities(samples, replace(known.take([0]), path=np.array([str(black)]))).size
    assert not seen_identities((), known).size
    rows = table.select(split="test")
    assert not seen_identities(read_card(tiny_run).samples, rows).size
    twice = replace(rows, path=np.where(rows.pid < np.median(rows.pid), known.path[0], rows.path))
    assert not seen_identities(read_card(tiny_run).samples, twice).size


def test_a_calibration_leaves_them_out(tiny_run, tiny_sysu, tmp_path, caplog):
    table = read_dataset(tiny_sysu)
    file = write_csv(replace(table.take(np.arange(len(table) - 1)), name="csv"), tmp_path / "people.csv")
    found, _ = calibrate_model(tiny_run, file, out=tmp_path / "c.json", progress=False)
    card = read_card(tiny_run)
    assert found.source["identities"] == len(np.unique(table.pid)) - card.classes
    assert f"left out: {card.classes} identities that have images" in caplog.text


def test_copies_in_the_dataset_of_the_run_itself_are_found(tiny_sysu, tmp_path, caplog):
    """Test rows that are training images under other names and identities; those of strangers are left alone."""
    table = read_dataset(tiny_sysu)
    records = [record._replace(path=str(table.root / record.path)) for record in table.records()]
    copies = []
    for row, record in enumerate(records):
        if record.split == "train":
            copy = tmp_path / f"{row}.jpg"
            shutil.copy(record.path, copy)
            copies.append(record._replace(path=str(copy), pid=record.pid + 1000, split="test"))
    both = Table.from_records("csv", tmp_path, [*records, *copies])
    file = write_csv(both, tmp_path / "leak.csv")
    data = read_dataset(file)
    settings = load_config("tiny", ["training.epochs=1", "training.steps_per_epoch=1"])
    train(settings, data, tmp_path / "run", device="cpu", progress=False)
    card = read_card(tmp_path / "run")
    count = card.classes
    assert card.data == fingerprint(data)
    with pytest.raises(
        DataError,
        match=rf"{count} of the test identities have images that .* was trained on.*: leave them out",
    ):
        evaluate_model(tmp_path / "run", data, settings.evaluation, progress=False)
    with pytest.raises(DataError, match=f"{count} identities of split 'test' have images"):
        calibrate_model(tmp_path / "run", file, split="test", progress=False)
    found, _ = calibrate_model(tmp_path / "run", file, out=tmp_path / "c.json", progress=False)
    assert found.source["identities"] == len(np.unique(table.pid)) - count
    assert f"left out: {count} identities that have images" in caplog.text


def test_a_few_copies_in_the_dataset_of_the_run_itself_are_told(
    tiny_run, tiny_sysu, tmp_path, caplog, monkeypatch
):
    """One test image is a training image, which does not change the dataset's paths and identities."""
    table = read_dataset(tiny_sysu)
    settings = load_config("tiny").evaluation
    evaluate_model(tiny_run, table, settings, progress=False)
    assert "have images" not in caplog.text
    known, rows = table.select(split="train"), table.select(split="test")
    shutil.copytree(tiny_sysu, tmp_path / "d")
    first = known.path[np.argsort(known.path)[0]]
    shutil.copy(tmp_path / "d" / first, tmp_path / "d" / rows.path[0])
    leaked = read_dataset(tmp_path / "d")
    assert fingerprint(leaked) == read_card(tiny_run).data
    monkeypatch.setattr("fmcnet.evaluation.evaluate_model.FEW_SEEN", 0.2)
    evaluate_model(tiny_run, leaked, settings, progress=False)
    assert f"1 of the test identities have images that {tiny_run}" in caplog.text


def test_images_that_are_there_twice_are_told(tiny_sysu, tmp_path):
    assert not [note for note in check(tiny_sysu).notes if "more than once" in note]
    shutil.copytree(tiny_sysu, tmp_path / "d")
    table = read_dataset(tiny_sysu).select(split="test")
    day, night = (str(table.select(modality=one).path[0]) for one in ("visible", "infrared"))
    copy = (tmp_path / "d" / day).with_name("9998.jpg")
    shutil.copy(tmp_path / "d" / day, copy)
    [note] = [note for note in check(tmp_path / "d").notes if "more than once" in note]
    assert note.startswith(f"images that are there more than once: 1 (the first: {day} and ")
    shutil.copy(tmp_path / "d" / night, (tmp_path / "d" / day).with_name("9999.jpg"))
    [note] = [note for note in check(tmp_path / "d").notes if "more than once" in note]
    assert note.startswith(
        "images that are there more than once: 2, 1 under another identity, modality or split"
    )


def test_what_a_training_started_from_is_remembered(tiny_run, tiny_sysu, tmp_path, caplog):
    """Fine-tuned on other identities of one table, a run does not score those that its start was trained on."""
    table = other_splits(read_dataset(tiny_sysu))
    start, count = read_card(tiny_run), read_card(tiny_run).classes
    settings = [f"model.pretrained={tiny_run}", "training.epochs=1", "training.steps_per_epoch=1"]
    train(load_config("tiny", settings), table, tmp_path / "tuned", device="cpu", progress=False)
    assert f"{count} of " in caplog.text
    assert f"have images that {tiny_run} was trained on" in caplog.text
    card = read_card(tmp_path / "tuned")
    assert card.start_samples == start.samples
    [checkpoint] = (tmp_path / "tuned" / "checkpoints").glob("step-*")
    assert read_card(checkpoint).start_samples == start.samples
    with pytest.raises(DataError, match=rf"{count} of the test identities have images that .* started from"):
        evaluate_model(tmp_path / "tuned", table, load_config("tiny").evaluation, progress=False)
    caplog.clear()
    file = write_csv(replace(table, name="csv"), tmp_path / "people.csv")
    calibrate_model(tmp_path / "tuned", file, out=tmp_path / "c.json", progress=False)
    assert "identities that have images of the model's training" in caplog.text

    again = [f"model.pretrained={tmp_path / 'tuned'}", *settings[1:]]
    train(load_config("tiny", again), table, tmp_path / "again", device="cpu", progress=False)
    assert set(read_card(tmp_path / "again").start_samples) == {*start.samples, *card.samples}


def test_people_of_the_names_that_were_trained_on_are_told_whatever_their_files(tiny_sysu, tmp_path, caplog):
    """Images of the same people, saved anew, have other contents."""
    table = read_dataset(tiny_sysu)
    places = np.array([str(path) for path in table.full_paths()])
    names = tuple(f"p{number}" for number in range(table.pid.max() + 1))
    named = replace(table, root=tmp_path, path=places, name="csv", pid_names=names)
    write_csv(named, tmp_path / "people.csv")
    settings = ["training.epochs=1", "training.steps_per_epoch=1", "training.validate_every=0"]
    train(load_config("tiny", settings), tmp_path / "people.csv", tmp_path / "run", progress=False)
    trained = read_dataset(tmp_path / "people.csv").select(split="train")
    for row, path in enumerate(trained.full_paths()):
        Image.open(path).save(tmp_path / f"{row}.png")
    again = replace(trained, path=np.array([f"{row}.png" for row in range(len(trained))]), root=tmp_path)
    again = replace(again, split=np.full(len(again), "test"))
    data = read_dataset(write_csv(again, tmp_path / "again.csv"))
    evaluate_model(tmp_path / "run", data, load_config("tiny").evaluation, progress=False)
    count = len(np.unique(trained.pid))
    assert (
        f"{count} of {count} identities have the name of one that {tmp_path / 'run'} was trained on"
        in caplog.text
    )
    caplog.clear()
    calibrate_model(tmp_path / "run", tmp_path / "again.csv", split="test", progress=False)
    assert f"{count} of {count} identities have the name of one that the model was trained on" in caplog.text
    caplog.clear()
    test = read_dataset(tmp_path / "people.csv")
    evaluate_model(tmp_path / "run", test, load_config("tiny").evaluation, progress=False)
    assert "have the name of one" not in caplog.text


def test_what_a_projection_was_learnt_from_is_left_out_of_its_calibration(
    tiny_run, tiny_sysu, tmp_path, caplog
):
    """People that the model itself never saw: in splits by which nobody trained, each in a file of its own."""
    table = read_dataset(tiny_sysu)
    strangers = table.take(~np.isin(table.pid, read_card(tiny_run).pids))
    half = strangers.pid < np.median(strangers.pid)
    split = np.where(half, "train", "test").astype(table.split.dtype)
    file = write_csv(replace(strangers, name="csv", split=split), tmp_path / "strangers.csv")
    folder = tmp_path / "projected"
    project_model(tiny_run, file, dim=2, out=folder, device="cpu", progress=False)
    learnt = len(np.unique(strangers.pid[half]))
    assert set(read_card(folder).start_samples) == set(
        sample_images(read_dataset(file).select(split="train"))
    )
    with pytest.raises(DataError, match=f"{learnt} identities of split 'train' have images"):
        calibrate_model(folder, file, split="train", progress=False)
    found, _ = calibrate_model(folder, file, progress=False)
    assert found.source["identities"] == len(np.unique(strangers.pid)) - learnt
    assert f"left out: {learnt} identities that have images" in caplog.text
    everyone = write_csv(
        replace(strangers, name="csv", split=np.where(half, "test", "train")), tmp_path / "all.csv"
    )
    with pytest.raises(DataError, match=f"{learnt} of the test identities have images"):
        evaluate_model(folder, read_dataset(everyone), load_config("tiny").evaluation, progress=False)
