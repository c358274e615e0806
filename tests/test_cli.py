"""The commands as a user types them: what they print, write and answer to mistakes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fmcnet.data.cache import ImageCache
from fmcnet.data.readers import read_dataset
from fmcnet.data.readers.csv import write_csv
from fmcnet.models.shipped import WEIGHTS_FOLDER
from fmcnet.retrieval import Gallery
from fmcnet.synthetic import generate
from tests.cli import run_command
from tests.data import trees

run = run_command


def said(result):
    return " ".join(result.output.split())


def as_json(*arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code).stdout)


@pytest.mark.parametrize(
    "command",
    [
        [], ["demo"], ["train"], ["config"], ["evaluate"], ["embed"], ["score"], ["info"], ["data"],
        ["data", "generate"], ["data", "check"], ["data", "summary"], ["data", "cache"], ["report"],
        ["report", "compare"], ["study"], ["index"], ["search"], ["gallery"], ["gallery", "remove"], ["serve"],
        ["keys"],
    ],
)  # fmt: skip
def test_every_command_explains_itself(command):
    assert "Usage: fmcnet" in run(*command, "--help").output


@pytest.mark.parametrize(
    ("encoding", "command"),
    [("cp1252", "info"), ("latin-1", "list"), ("ascii:surrogateescape", "info"), ("utf-8", "list")],
)
def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path, encoding, command):
    with Gallery(tmp_path / "g", model="0123456789abcdef") as gallery:
        gallery.add(np.ones((1, 4), np.float32), modality="visible", camera="ворота", ids=["a"])
    shown = "ворота" if encoding == "utf-8" else r"\u0432\u043e\u0440\u043e\u0442\u0430"
    words = [sys.executable, "-m", "fmcnet", "gallery", command, str(tmp_path / "g")]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "160", "PYTHONUTF8": "0"}
    done = subprocess.run(words, capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    assert shown in done.stdout.decode(encoding.partition(":")[0])


def test_ids_that_the_output_cannot_hold_are_refused_not_escaped(tmp_path):
    with Gallery(tmp_path / "g", model="0123456789abcdef") as gallery:
        gallery.add(np.ones((1, 4), np.float32), modality="visible", ids=["жук"])
    words = [sys.executable, "-m", "fmcnet", "gallery", "list", str(tmp_path / "g"), "--ids"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run(words, capture_output=True, env=environment, timeout=300)
    assert (done.returncode, done.stdout) == (2, b"")
    assert (
        b"the ids do not fit cp1252, the encoding of the output: set PYTHONUTF8=1, or take --json"
        in done.stderr
    )


def test_docs_lists_and_prints_the_pages():
    pages = as_json("docs")
    assert {"getting-started", "train", "search", "gallery", "protocols", "method", "datasets"} <= set(pages)
    assert {"own_loss", "new_backbone", "new_dataset", "what_the_parts_do"} <= set(pages)  # as README says
    for name, about in pages.items():
        text = Path(about["path"]).read_text(encoding="utf-8")
        if about["path"].endswith(".ipynb"):
            assert run("docs", name).stdout == f"a notebook, for Jupyter: {about['path']}\n"
            continue
        assert run("docs", name).stdout == text.replace("\u00a0", "\\u00a0")
        assert text.startswith(("# " if about["path"].endswith(".md") else '"""') + about["title"])
    assert "own_loss: A loss of your own in a training" in run("docs").stdout
    assert run("docs", "train", "--path").stdout.strip() == pages["train"]["path"]
    assert "there is no page 'nope': choose of getting-started" in said(run("docs", "nope", code=2))
    assert "no page 'own-loss', did you mean 'own_loss'? choose" in said(run("docs", "own-loss", code=2))


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("fmcnet gal", "gallery"),
        ("fmcnet docs own", "own_loss"),
        ("fmcnet config ti", "tiny"),
        ("fmcnet train --config reg", "regdb"),
    ],
)
def test_the_shell_completes_commands_pages_and_configurations(words, completed, monkeypatch):
    from fmcnet.cli.app import app

    settings = {"_FMCNET_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    result = CliRunner().invoke(app, [], prog_name="fmcnet", env=settings)
    assert result.stdout.split() == [completed]


def test_help_names_only_pages_that_an_installation_has():
    import typer

    from fmcnet.cli.app import app

    pages = set(as_json("docs"))
    commands = [typer.main.get_command(app)]
    texts = []
    while commands:
        one = commands.pop()
        commands += getattr(one, "commands", {}).values()
        texts += [one.help or "", *(getattr(option, "help", None) or "" for option in one.params)]
    text = " ".join(" ".join(texts).split())
    assert "docs/" not in text
    named = set(re.findall(r"fmcnet docs ([a-z]+)", text))
    assert len(named) > 3
    assert named <= pages


@pytest.mark.parametrize(
    "command", [("demo",), ("study", "table2"), ("index", "people"), ("gallery", "info", "g")]
)
def test_what_does_not_share_its_work_is_no_job_of_torchrun(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, message in (
        ("0", f"fmcnet: {command[0]} does not run under torchrun: start it alone, or unset WORLD_SIZE\n"),
        ("1", ""),
    ):
        monkeypatch.setenv("RANK", rank)
        assert run(*command, code=2).output == message
    assert not any(tmp_path.iterdir())
    assert "training:" in run("config", "tiny").output


def test_version():
    assert run("--version").output.startswith("fmcnet 0.")


def test_generate_check_and_summary(tmp_path):
    made = as_json(
        "data", "generate", "--preset", "tiny", "--seed", 3, "--out", tmp_path / "d", "--workers", 1
    )
    assert made["written"] == made["images"] > 0
    again = as_json(
        "data", "generate", "--preset", "tiny", "--seed", 3, "--out", tmp_path / "d", "--workers", 1
    )
    assert (again["written"], again["digest"]) == (0, made["digest"])
    refused = run("data", "generate", "--preset", "tiny", "--seed", 4, "--out", tmp_path / "d", code=2)
    assert str(tmp_path / "d").split("/")[-1] in said(refused)
    assert as_json("data", "check", tmp_path / "d")["ok"] is True
    assert "SYSU-MM01" in run("data", "check", tmp_path / "d").output
    assert "infrared" in run("data", "summary", tmp_path / "d").output
    assert as_json("data", "summary", tmp_path / "d")


def test_check_of_a_broken_tree_ends_with_1(tiny_sysu, tmp_path):
    shutil.copytree(tiny_sysu, tmp_path / "d")
    (tmp_path / "d" / "exp" / "test_id.txt").unlink()
    (tmp_path / "d" / "exp" / "test_id.mat").unlink()
    assert "test_id.txt" in run("data", "check", tmp_path / "d", code=1).output


def test_caches_are_listed_and_pruned(tiny_sysu, tmp_path):
    ImageCache(read_dataset(tiny_sysu), 12, 6, folder=tmp_path / "c")
    (found,) = as_json("data", "cache", "--folder", tmp_path / "c")["caches"]
    assert found["root"] == str(tiny_sysu)
    assert "12 x 6" in said(run("data", "cache", "--folder", tmp_path / "c"))
    assert as_json("data", "cache", "--folder", tmp_path / "c", "--prune", "30d")["removed"] == []
    assert "removed 1" in said(run("data", "cache", "--folder", tmp_path / "c", "--prune", "0h"))
    assert list((tmp_path / "c").iterdir()) == []
    assert "write a whole number and a unit" in said(run("data", "cache", "--prune", "soon", code=2))


def test_info(tiny_run):
    facts = as_json("info", tiny_run)
    assert facts["variant"] == "full"
    assert facts["input"].startswith("64 x 32")
    assert facts["config"]["losses"]["rho1"] == 1.0
    assert "parameters" in run("info", tiny_run).output


def test_info_tells_models_apart_bit_by_bit(tiny_run, tmp_path):
    first = as_json("info", tiny_run)
    assert (first["step"], first["finished"]) == (10, True)
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    weights = load_file(copy / "model.safetensors")

    def digest(changed, **options):
        save_file(changed, copy / "model.safetensors", **options)
        return as_json("info", copy)["weights_sha256"]

    file_digest = hashlib.sha256((copy / "model.safetensors").read_bytes()).hexdigest()
    assert first["weights_file_sha256"] == file_digest
    assert "(of names and tensors)" in " ".join(re.sub("[│┃]", " ", run("info", copy).output).split())
    digests = {digest(weights, metadata={"saved": "again"})}
    assert digests == {first["weights_sha256"]}
    assert (copy / "model.safetensors").read_bytes() != (tiny_run / "model.safetensors").read_bytes()
    norm = "decomposition.stem_visible.bn1"
    names = [f"{norm}.{part}" for part in ("weight", "running_var", "num_batches_tracked")]
    for name in [*names, "decomposition.shared.layer4.0.conv2.weight", "mean"]:
        changed = {key: value.clone() for key, value in weights.items()}
        changed[name].view(-1).view(torch.uint8)[-8] ^= (
            1  # the lowest bit of an integer, of the last float but one
        )
        digests.add(digest(changed))
    assert len(digests) == 6
    swapped = {
        **weights,
        f"{norm}.running_mean": weights[f"{norm}.bias"],
        f"{norm}.bias": weights[f"{norm}.running_mean"],
    }
    assert digest(swapped) not in digests


def test_info_of_a_run_that_is_not_finished_is_of_its_newest_checkpoint(tiny_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    for name in ("model.json", "model.safetensors"):
        (copy / name).unlink()
    facts = as_json("info", copy)
    assert (facts["step"], facts["finished"]) == (10, False)
    assert facts["weights"] == str(copy / "checkpoints" / "step-000010" / "model.safetensors")
    # The finished model's statistics are of plain images, taken after the last step.
    assert facts["weights_sha256"] != as_json("info", tiny_run)["weights_sha256"]
    shutil.rmtree(copy / "checkpoints" / "step-000010")
    before = as_json("info", copy)
    assert (before["step"], before["finished"]) == (9, False)
    assert before["weights_sha256"] != facts["weights_sha256"]
    shutil.rmtree(copy / "checkpoints")
    assert "holds no model.json" in said(run("info", copy, code=2))


@pytest.mark.usefixtures("no_plots")
def test_paths_are_printed_whole_to_be_copied(tiny_run, tiny_sysu, tmp_path, monkeypatch):
    """On 80 columns, and where output goes into a pipe."""
    monkeypatch.setenv("COLUMNS", "80")
    place = tmp_path / ("a-rather-long-name-" * 6)
    shutil.copytree(tiny_sysu, place / "data")  # whole: the command has nothing to render
    made = run("data", "generate", "--preset", "tiny", "--workers", 1, "--out", place / "data")
    assert f"out: {place / 'data'}" in made.stdout.splitlines()
    trained = ["train", "--config", "tiny", "--data", place / "data", "--out", place / "run"]
    short = ("training.epochs=1", "training.steps_per_epoch=1", "training.validate_every=0")
    lines = run(*trained, *short).stdout.splitlines()
    assert f"weights: {place / 'run' / 'model.safetensors'}" in lines
    assert f"log: {place / 'run' / 'log.jsonl'}" in lines
    lines = run("info", place / "run").stdout.splitlines()
    assert lines[0] == str(place / "run")
    assert f"weights: {place / 'run' / 'model.safetensors'}" in lines
    crop = sorted((place / "data" / "cam3").rglob("*.jpg"))[0]
    index = ["index", place / "gallery", crop, "--model", place / "run", "--modality", "infrared"]
    assert run(*index).stdout.splitlines()[0] == f"indexed into {place / 'gallery'}"
    found = run("search", place / "gallery", crop, "--modality", "infrared").stdout.splitlines()
    assert f"1: {crop}" in found
    assert f"gallery: {place / 'gallery'}" in run("gallery", "info", place / "gallery").stdout.splitlines()


@pytest.mark.usefixtures("no_plots")
def test_shipped_models_are_taken_by_name_wherever_a_run_is(tiny_sysu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, data = "fmcnet-generated", tiny_sysu
    before = {path: path.stat().st_mtime_ns for path in sorted(WEIGHTS_FOLDER.rglob("*"))}
    told = run("evaluate", name, "--data", data)
    assert "no report: fmcnet-generated came with the package" in told.output
    judged = as_json("evaluate", name, "--data", data, "--out", "judged")
    assert judged["report"] == str(Path("judged") / "report.md")
    compared = as_json("report", "compare", "judged", "--out", "compared")
    assert compared["rows"][-1]["figures"]["sysu_all"] == pytest.approx(
        [100 * judged["evaluations"][0]["mean"][key] for key in ("rank1", "mAP")]
    )
    assert "--out fmcnet-generated-report" in said(run("report", "compare", name, code=2))
    assert as_json("info", name)["run"] == name
    crop = sorted((data / "cam3").rglob("*.jpg"))[0]
    assert as_json("embed", name, crop, "--modality", "ir", "--out", "e.npz")["images"] == 1
    assert "say --out FILE" in said(run("calibrate", name, "--data", data, code=2))
    made = as_json("calibrate", name, "--data", data, "--out", "c.json", "--fmr", "1e-9")
    assert made["out"] == "c.json"
    without = [note for note in made["notes"] if "a false-match rate of 1e-09" in note]
    assert [note.partition(":")[0] for note in without] == list(made["curves"])
    assert "notes" not in json.loads(Path("c.json").read_text())
    assert "say --out FOLDER" in said(run("export", name, code=2))
    assert {path: path.stat().st_mtime_ns for path in sorted(WEIGHTS_FOLDER.rglob("*"))} == before


def test_a_calibration_elsewhere_serves_where_it_is_named(tiny_run, tiny_sysu, tmp_path, monkeypatch):
    model = tmp_path / "run"
    shutil.copytree(tiny_run, model, ignore=shutil.ignore_patterns("calibration.json", "checkpoints"))
    crop, other = sorted((tiny_sysu / "cam3").rglob("*.jpg"))[:2]
    file, gallery = tmp_path / "c.json", tmp_path / "g"
    assert "--calibration" in run("calibrate", model, "--data", tiny_sysu, "--out", file).output
    as_json("index", gallery, crop, "--model", model, "--modality", "infrared")
    asked = ("search", gallery, other, "--modality", "infrared")
    assert as_json(*asked)["hits"][0]["probability"] is None
    assert 0 < as_json(*asked, "--calibration", file)["hits"][0]["probability"] < 1
    assert "there is no calibration at" in said(run(*asked, "--calibration", tmp_path / "no.json", code=2))
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "model": "0" * 16}))
    assert "made for another model" in said(run(*asked, "--calibration", file, code=2))
    serve = ("serve", gallery, "--model", model, "--port", 0, "--calibration", file)
    assert "made for another model" in said(run(*serve, code=2))
    file.write_text(json.dumps(content))
    from fmcnet.server import run as serving

    served = []
    monkeypatch.setattr(
        serving, "_run", lambda _, keys, service, door: served.append(service) or service.gallery.close()
    )
    run(*serve)
    assert served[0].encoder.calibration.model == content["model"]


def test_embed(tiny_run, tiny_sysu, tmp_path):
    first = sorted((tiny_sysu / "cam3").rglob("*.jpg"))[0]
    answer = as_json(
        "embed", tiny_run, tiny_sysu / "cam6", first, "--modality", "infrared", "--out", tmp_path / "e.npz"
    )
    stored = np.load(tmp_path / "e.npz")
    assert stored["features"].shape == (answer["images"], answer["dim"])
    assert np.allclose(np.linalg.norm(stored["features"], axis=1), 1, atol=1e-5)
    assert stored["name"][-1] == str(first)
    alone = as_json("embed", tiny_run, first, "--modality", "infrared", "--out", tmp_path / "one.npz")
    assert alone["images"] == 1
    assert np.allclose(np.load(tmp_path / "one.npz")["features"][0], stored["features"][-1], atol=1e-5)


def test_what_embed_writes_score_reads(tiny_run, tiny_sysu, tmp_path):
    file, few = tmp_path / "e.npz", tmp_path / "few.npz"
    made = as_json("embed", tiny_run, "--data", tiny_sysu, "--out", file)
    assert made["images"] == len(read_dataset(tiny_sysu).select(split="test"))
    judged = as_json("evaluate", tiny_run, "--data", tiny_sysu, "--no-report", "mode=all", "draw=seeded")
    scored = as_json("score", file, "--draw", "seeded")
    assert scored["mean"] == pytest.approx(judged["evaluations"][0]["mean"])
    as_json("embed", tiny_run, tiny_sysu / "cam6", "--modality", "ir", "--out", few, "--on-error", "skip")
    assert (np.load(few)["pid"] == -1).all()
    assert "have no identity" in said(run("score", few, "--protocol", "regdb", code=2))
    for split, seen in (("train", True), ("all", True), ("test", False)):
        told = said(run("embed", tiny_run, "--data", tiny_sysu, "--out", few, "--split", split))
        assert ("few.npz holds 12 identities that" in told) is seen
        told = said(run("score", few, "--draw", "seeded"))
        assert ("the model was trained on 12 of its identities" in told) is seen
    refused = run("embed", tiny_run, tiny_sysu / "cam6", "--data", tiny_sysu, "--out", few, code=2)
    assert "images would do nothing" in said(refused)
    assert "give images and their --modality" in said(run("embed", tiny_run, "--out", few, code=2))


def test_embeddings_of_a_csv_are_scored_as_evaluate_does(tiny_run, tmp_path):
    table, file = trees.csv_folder(tmp_path), tmp_path / "e.npz"
    as_json("embed", tiny_run, "--data", table, "--out", file)
    for direction in ("i2v", "v2i"):
        judged = as_json("evaluate", tiny_run, "--data", table, "--no-report", f"direction={direction}")
        scored = as_json("score", file, "--direction", direction)
        assert scored["mean"] == pytest.approx(judged["evaluations"][0]["mean"])
        assert scored["protocol"] == judged["evaluations"][0]["protocol"]
    assert as_json("score", file)["protocol"].startswith("csv, i2v: infrared images searched in visible")
    refused = said(run("score", file, "--mode", "indoor", code=2))
    assert "the csv protocol has no mode (it has a direction only)" in refused
    assert "direction 'v2t'" in said(run("score", file, "--direction", "v2t", code=2))


def test_embed_tells_what_the_table_holds_and_the_file_does_not(tiny_run, tmp_path):
    table = trees.csv_folder(tmp_path)
    header, *rows = table.read_text().splitlines()
    command = ("embed", tiny_run, "--data", table, "--out", tmp_path / "e.npz")
    told = said(run(*command))
    assert "no split column: all images are for test" in told
    assert "role" not in told
    table.write_text("\n".join([f"{header},split,role", *(f"{row},test,query" for row in rows)]))
    assert "does not keep the column role: score takes every image as query and gallery" in said(
        run(*command)
    )


def test_an_encoder_says_what_it_is(tiny_run):
    from fmcnet.inference.encoder import load

    text = repr(load(tiny_run, "cpu"))
    assert str(tiny_run) in text
    assert "full resnet10, 64 x 32, trained on sysu, torch on cpu, digest " in text


def test_embed_lists_every_unreadable_image_and_writes_nothing(tiny_run, tiny_sysu, tmp_path):
    folder = tmp_path / "crops"
    shutil.copytree(sorted((tiny_sysu / "cam3").iterdir())[0], folder)
    good = sorted(folder.iterdir())[0]
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:200])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    result = run("embed", tiny_run, folder, "--modality", "infrared", "--out", tmp_path / "e.npz", code=2)
    assert "3 of" in said(result)
    assert all(name in said(result).replace(" ", "") for name in ("cut.jpg", "empty.jpg", "text.jpg"))
    assert not (tmp_path / "e.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "/nowhere", "--out", "{tmp}/r"], "/nowhere does not exist"),
        (["train", "--data", "{data}", "--out", "{run}", "--config", "tiny"], "already holds a run"),
        (["train", "--data", "{data}", "--out", "{tmp}/r", "--config", "nope"], "no configuration file nope"),
        (["train", "--data", "{data}", "--out", "{tmp}/r", "model.arch=vgg"], "model.arch = 'vgg'"),
        (["train", "--data", "{data}", "--out", "{tmp}/r", "--device", "cuda:9"], "device 'cuda:9' cannot be used"),
        (["train", "--data", "{data}", "--out", "{tmp}/r", "--splits", "1-3"], "--splits is for RegDB"),
        (["train", "--data", "{data}", "--out", "{tmp}/r", "--splits", "0-3"], "splits are 1 to 10"),
        (["evaluate", "{tmp}", "--data", "{data}"], "holds no finished run"),
        (["evaluate", "{run}", "--data", "/nowhere"], "/nowhere does not exist"),
        (["evaluate", "{run}", "--data", "{data}", "shots=3"], "evaluation.shots = 3"),
        (["evaluate", "{run}", "--data", "{data}", "data.split=2"], "an evaluation takes settings of the section"),
        (["info", "{data}"], "holds no model.json"),
        (["embed", "{run}", "/no.jpg", "--modality", "infrared", "--out", "{tmp}/e.npz"], "no such image"),
        (["embed", "{run}", "{data}/cam3", "--modality", "warm", "--out", "{tmp}/e.npz"], "say visible or"),
        (["embed", "{run}", "{data}/exp", "--modality", "visible", "--out", "{tmp}/e.npz"], "holds no images"),
        (["data", "generate", "--layout", "market", "--out", "{tmp}/d"], "market"),
        (["data", "generate", "--preset", "huge", "--out", "{tmp}/d"], "huge"),
        (["data", "generate", "--preset", "tiny", "--out", "{run}"], "run"),
        (["demo", "--preset", "full", "--out", "{tmp}/d"], "unknown preset 'full'"),
        (["score", "{tmp}/none.npz"], "none.npz"),
        (["report", "compare", "{tmp}"], "has no readable report"),
        (["evaluate", "{run}", "--data", "{data}", "--protocol", "sysu"], "evaluate takes a YAML file"),
        (["trian"], "No such command"),
        (["train", "--data", "{data}", "--ouut", "x"], "No such option"),
    ],
)  # fmt: skip
def test_a_mistake_gives_one_message_and_exit_code_2(arguments, message, tiny_run, tiny_sysu, tmp_path):
    filled = [a.format(tmp=tmp_path, data=tiny_sysu, run=tiny_run) for a in arguments]
    assert message.replace(" ", "") in run(*filled, code=2).output.replace("\n", "").replace(" ", "").replace(
        "│", ""
    )


def test_weights_of_another_model_and_damaged_files(tiny_run, tmp_path):
    run_folder = tmp_path / "run"
    shutil.copytree(tiny_run, run_folder)
    card = json.loads((run_folder / "model.json").read_text())
    card["config"]["model"]["variant"] = "base"
    (run_folder / "model.json").write_text(json.dumps(card))
    embed = ["embed", run_folder, tiny_run, "--modality", "visible", "--out", tmp_path / "e.npz"]
    assert "weights of another model" in said(run(*embed, code=2))
    for key, section in (("depth", card["config"]["model"]), ("made_of", card)):
        section[key] = 3
        (run_folder / "model.json").write_text(json.dumps(card))
        told = said(run("info", run_folder, code=2))
        assert "another version wrote it, or it was edited since" in told
        assert key in told
        del section[key]
    (run_folder / "model.json").write_text("{")
    assert "damaged" in said(run("info", run_folder, code=2))
    shutil.copy(tiny_run / "model.json", run_folder)
    (run_folder / "model.safetensors").write_bytes(b"\0" * 100)
    assert "damaged or not a safetensors file" in said(run(*embed, code=2))


@pytest.mark.parametrize("kind", ["cut", "empty", "text"])
def test_training_on_a_tree_with_a_broken_image_names_it(tiny_sysu, tmp_path, kind):
    shutil.copytree(tiny_sysu, tmp_path / "d")
    ids = (tiny_sysu / "exp" / "train_id.txt").read_text().strip().split(",")
    victim = next(p for i in ids for p in sorted((tmp_path / "d" / "cam1" / f"{int(i):04d}").glob("*.jpg")))
    content = {"cut": victim.read_bytes()[:300], "empty": b"", "text": b"hello"}[kind]
    victim.write_bytes(content)
    result = run("train", "--config", "tiny", "--data", tmp_path / "d", "--out", tmp_path / "r", code=2)
    assert victim.name in said(result)
    assert victim.parent.name in said(result)


@pytest.mark.parametrize("layout", ["sysu", "regdb", "llcm", "csv"])
def test_train_and_evaluate_on_every_layout(layout, tmp_path, tiny_sysu, request):
    if layout in ("regdb", "llcm"):  # of the others the plots are looked at
        request.getfixturevalue("no_plots")
    if layout == "csv":
        data = tmp_path / "data"
        table = read_dataset(tiny_sysu)
        rows = table.select(split=("train", "test"))
        data.mkdir()
        data = write_csv(rows, data / "mine.csv")
        lines = [line.split(",") for line in data.read_text().splitlines()]
        keep = [lines[0].index(name) for name in ("path", "pid", "modality", "split")]
        cut = [",".join(line[k] for k in keep) for line in lines]
        for number, line in enumerate(lines):
            if number:
                cut[number] = f"{tiny_sysu / line[0]}," + ",".join(line[k] for k in keep[1:])
        data.write_text("\n".join(cut) + "\n")
    else:
        data = request.getfixturevalue(f"tiny_{layout}")
    out = tmp_path / "run"
    settings = ["training.validate_every=0", "training.epochs=1", "data.identities=3"]
    trained = as_json("train", "--config", "tiny", "--data", data, "--out", out, *settings)
    assert trained["dataset"] == layout
    answer = as_json("evaluate", out, "--data", data, "--both")
    assert [e["direction"] for e in answer["evaluations"]] == ["i2v", "v2i"]
    for one in answer["evaluations"]:
        assert 0 <= one["mean"]["rank1"] <= one["mean"]["rank20"] <= 1
        assert 0 < one["chance_rank1"] < 1
    report = (out / "report" / "report.md").read_text()
    assert answer["evaluations"][0]["protocol"] in report
    assert "| false-match rate | true-match rate |" in report
    assert sorted(p.name for p in (out / "report" / "figures").iterdir()) == [
        "cmc.png", "curves.png", "features.png", "ranked.png", "similarity.png",
    ]  # fmt: skip
    for plot in (out / "report" / "figures").iterdir() if layout in ("sysu", "csv") else ():
        assert np.asarray(Image.open(plot).convert("L")).std() > 5


def test_a_configuration_of_another_benchmark_is_told(tiny_sysu, tmp_path):
    command = ("train", "--data", tiny_sysu, "--out", tmp_path / "run", "--config")
    bad = "model.arch=vgg"  # ends before it trains
    told = said(run(*command, "regdb", bad, code=2))
    assert (
        f"--config regdb is for another benchmark: {tiny_sysu} has the layout of sysu. Take --config sysu"
        in told
    )
    for config in ("sysu", "tiny"):
        assert "another benchmark" not in said(run(*command, config, bad, code=2))
    own = tmp_path / "people.csv"
    own.write_text("path,pid,modality\n")
    own_data = ("train", "--data", own, "--out", tmp_path / "run", "--config", "sysu", bad)
    assert "another benchmark" not in said(run(*own_data, code=2))  # what the guide tells to do


def test_a_message_in_a_file_is_one_line_and_a_training_ends_with_its_loss(tiny_sysu, tmp_path):
    settings = ["training.epochs=1", "training.steps_per_epoch=1", "data.identities=3", "model.width=4"]
    words = ("train", "--config", "tiny", "--data", tiny_sysu, *settings)
    plain = run(*words, "--out", tmp_path / "a", "--resume")
    lines = plain.stderr.splitlines()
    assert f"INFO     there is no run in {tmp_path / 'a'}: starting one with the configuration tiny" in lines
    [epoch] = [line for line in lines if line.startswith("INFO     training 1/1, 100 %, 0:00:00 left, loss ")]
    assert epoch.endswith("epoch 1/1")
    assert "last loss" in plain.stdout
    assert "id_shared" not in plain.output
    assert "id_shared" in run("-v", *words, "--out", tmp_path / "b").stdout


def test_resume_takes_the_settings_of_the_run(tiny_sysu, tmp_path):
    """No override is needed again; one that differs is refused, and a configuration that differs is told."""
    where = ("train", "--data", tiny_sysu, "--out", tmp_path / "run")
    asked = (
        "training.epochs=1",
        "training.validate_every=0",
        "training.steps_per_epoch=2",
        "data.identities=3",
    )
    as_json(*where, "--config", "tiny", *asked, "training.seed=7", "training.checkpoint_every=1")
    assert as_json(*where, "--resume")["resumed_from"] == 2
    assert as_json(*where, "--resume", "training.seed=7", "training.keep=3")["resumed_from"] == 2
    printed = (*asked, "training.seed=7", "training.checkpoint_every=1")
    assert "own settings" not in said(run(*where, "--resume", "--config", "tiny", *printed))
    told = said(run(*where, "--resume", "--config", "tiny"))
    assert "the run goes on with its own settings, not those of tiny:" in told
    assert "training.epochs 1 (not " in told
    refused = said(run(*where, "--resume", "training.seed=8", code=2))
    assert "other settings (training.seed: 7 there, 8 now)" in refused
    assert "already holds a run" in said(run(*where, code=2))


@pytest.mark.usefixtures("no_plots")
def test_regdb_splits_are_trained_resumed_and_pooled(tmp_path, tiny_regdb):
    data, out = tiny_regdb, tmp_path / "runs"
    settings = [
        "training.validate_every=0",
        "training.epochs=1",
        "training.steps_per_epoch=2",
        "data.identities=3",
    ]
    train = ["train", "--config", "tiny", "--data", data, "--out", out, *settings]
    first = as_json(*train, "--splits", "1-2")
    assert [one["resumed_from"] for one in first] == [0, 0]
    more = as_json(*train, "--splits", "1-3", "--resume")
    assert [one["resumed_from"] for one in more] == [2, 2, 0]
    answer = as_json("evaluate", out, "--data", data, "--both")
    assert len(answer["runs"]) == 3
    singles = [as_json("evaluate", run_, "--data", data, "--no-report", "--both") for run_ in answer["runs"]]
    for number, one in enumerate(answer["evaluations"]):
        assert len(one["trials"]) == 3
        alone = [s["evaluations"][number]["mean"]["mAP"] for s in singles]
        assert one["mean"]["mAP"] == pytest.approx(np.mean(alone))
    printed = run("evaluate", out, "--data", data).stdout
    assert "mean of 3 splits: split-01, split-02, split-03" in printed
    assert "NOT FINISHED" not in printed
    compared = as_json("report", "compare", out, "--out", tmp_path / "cmp")
    ours = compared["rows"][-1]
    assert any("3 of RegDB's ten splits" in flag for flag in ours["flags"])
    assert any("GENERATED" in flag for flag in ours["flags"])
    assert set(ours["figures"]) == {"regdb_t2v", "regdb_v2t"}

    report, page = (out / "report" / name for name in ("report.json", "report.md"))
    as_json("evaluate", out, "--data", data, "cmc=identity")
    [facts] = json.loads(report.read_text())["runs"].values()
    assert (len(facts["evaluations"]), facts["regdb_splits"]) == (3, [1, 2, 3])
    for words in ("splits 1, 2, 3, ", "(full) of split-03: ", "| FMCNet (full) of split-03 |"):
        assert words in page.read_text()
    assert page.read_text().count("split-03") == page.read_text().count("of split-03")
    shutil.rmtree(out / "split-01")
    as_json(*train, "--splits", "1", "training.seed=5")
    told = run("evaluate", out, "--data", data).stderr
    assert "or of an earlier version, were left out: RegDB visible to thermal; RegDB" in told
    [facts] = json.loads(report.read_text())["runs"].values()
    assert len(facts["evaluations"]) == 1
    single = out / "split-02"
    run("evaluate", single, "--data", data)
    assert ", split 2, " in (single / "report" / "report.md").read_text()

    shutil.copytree(single, out / "split-04")
    assert "split-04 is of split 2. A mean takes each split once" in said(
        run("evaluate", out, "--data", data, code=2)
    )
    shutil.rmtree(out / "split-04")
    card = json.loads((single / "model.json").read_text())
    changed = {**card, "config": {**card["config"], "losses": {**card["config"]["losses"], "rho1": 9.0}}}
    (single / "model.json").write_text(json.dumps(changed))
    told = said(run("evaluate", out, "--data", data, code=2))
    assert "settings differ from those of split-01 (split-02: losses.rho1 9.0 (not 1.0))" in told
    (single / "model.json").write_text(json.dumps({**card, "selected": "test"}))
    assert "SELECTED ON THE TEST SET" in run("evaluate", out, "--data", data).stdout
    [facts] = json.loads(report.read_text())["runs"].values()
    assert facts["selected_on"] == "test"

    for direction in ("v2t", "t2v"):
        (one,) = as_json("evaluate", single, "--data", data, f"direction={direction}")["evaluations"]
        assert one["direction"] == {"v2t": "v2i", "t2v": "i2v"}[direction]

    (out / "split-02" / "model.json").unlink()
    (out / "split-03" / "model.json").unlink()
    printed = run("evaluate", out, "--data", data).stdout
    assert "mean of 1 split: split-01" in printed
    left_out = "NOT FINISHED and left out of the mean: split-02, split-03. Train on with --resume."
    assert left_out in printed
    assert as_json("evaluate", out, "--data", data)["stamp"] == left_out
    page = (out / "report" / "report.md").read_text()
    assert "splits: 1" in page
    assert left_out in page


def test_what_a_split_lacks_is_told_before_the_first_step(tmp_path, tiny_regdb):
    data, out = shutil.copytree(tiny_regdb, tmp_path / "regdb"), tmp_path / "runs"
    train = ["train", "--config", "tiny", "--data", data, "--out", out, "--splits", "1-3"]
    (out / "split-03").mkdir(parents=True)
    (out / "split-03" / "notes.txt").write_text("mine")
    assert "split-03 exists and is not an fmcnet run" in said(run(*train, code=2))
    shutil.rmtree(out)
    (data / "idx" / "train_thermal_3.txt").unlink()
    assert "lacks idx/train_thermal_3.txt" in said(run(*train, code=2))
    assert not out.exists()


def test_evaluating_on_identities_that_were_trained_on_is_refused(tiny_run, tiny_sysu, tmp_path):
    shutil.copytree(tiny_sysu, tmp_path / "d")
    for suffix in ("txt", "mat"):
        a, b = tmp_path / "d" / "exp" / f"train_id.{suffix}", tmp_path / "d" / "exp" / f"test_id.{suffix}"
        train, test = a.read_bytes(), b.read_bytes()
        a.write_bytes(test)
        b.write_bytes(train)
    assert "trained on" in said(run("evaluate", tiny_run, "--data", tmp_path / "d", code=2))


def test_another_dataset_with_the_same_numbers_may_be_evaluated(tiny_run, tmp_path):
    generate("sysu", "tiny", 5, tmp_path / "d", workers=1)
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("embeddings", "report"))
    for suffix in ("txt", "mat"):
        a, b = tmp_path / "d" / "exp" / f"train_id.{suffix}", tmp_path / "d" / "exp" / f"test_id.{suffix}"
        train, test = a.read_bytes(), b.read_bytes()
        a.write_bytes(test)
        b.write_bytes(train)
    # the same files as another seed's would be: seed 5's people are others, only the numbers agree
    victim = sorted((tmp_path / "d" / "cam1").rglob("*.jpg"))[-1]
    victim.rename(victim.with_name("9999.jpg"))
    assert as_json("evaluate", tmp_path / "run", "--data", tmp_path / "d", "--no-report", "draw=seeded")[
        "evaluations"
    ]


def test_without_plotting_packages_the_report_has_figures_in_numbers(
    tiny_run, tiny_sysu, tmp_path, monkeypatch
):
    from fmcnet.experiments import plots

    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    shutil.copytree(tiny_run, tmp_path / "run")
    assert "rank1" in run("evaluate", tmp_path / "run", "--data", tiny_sysu, "--out", tmp_path / "rep").output
    assert "| rank1 |" in (tmp_path / "rep" / "report.md").read_text()
    assert not (tmp_path / "rep" / "figures").exists()


@pytest.mark.usefixtures("no_plots")
def test_a_report_names_a_distance_that_is_not_cosine(tiny_run, tiny_sysu, tmp_path):
    for distance, rows in (("cosine", 0), ("euclidean", 2)):
        command = ("evaluate", tiny_run, "--data", tiny_sysu, "--out", tmp_path / distance)
        run(*command, f"distance={distance}")
        page = (tmp_path / distance / "report.md").read_text()
        assert page.count("| FMCNet (full), euclidean |") == rows


@pytest.mark.usefixtures("no_plots")
def test_extras_are_named_beside_the_plain_figure(tiny_run, tiny_sysu, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    answer = as_json("evaluate", tmp_path / "run", "--data", tiny_sysu, "--flip", "--rerank", "--expand")
    one = answer["evaluations"][0]
    assert [e.split(" (")[0] for e in one["extras"]] == [
        "flip at test time",
        "query expansion",
        "k-reciprocal re-ranking",
    ]
    plain = as_json("evaluate", tmp_path / "run", "--data", tiny_sysu, "--no-report")["evaluations"][0]
    assert one["plain"]["mean"] == plain["mean"]
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "flip at test time" in report
    assert "k-reciprocal re-ranking" in report


@pytest.mark.usefixtures("no_plots")
def test_one_report_holds_every_protocol_that_was_run(tiny_run, tiny_sysu, tmp_path, monkeypatch):
    """Beside the standard ones, which come without an option; and two folders of one run are one row."""
    from fmcnet.experiments import plots

    monkeypatch.setattr(plots, "find_spec", lambda name: None)  # no plots: quicker
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("report"))
    command = ("evaluate", folder, "--data", tiny_sysu)
    both = as_json(*command)["evaluations"]
    assert [e["protocol"].split(":")[0] for e in both] == [
        "SYSU-MM01 all-search, single-shot",
        "SYSU-MM01 indoor-search, single-shot",
    ]
    (many,) = as_json(*command, "mode=indoor", "shots=10")["evaluations"]
    assert "indoor-search, multi-shot" in many["protocol"]
    for mode, out in (("all", "a"), ("indoor", "b")):
        (alone,) = as_json(*command, f"mode={mode}", "--out", tmp_path / out)["evaluations"]
        assert alone["mean"] == both[mode == "indoor"]["mean"]
    report = json.loads((folder / "report" / "report.json").read_text())
    (kept,) = (one["evaluations"] for one in report["runs"].values())
    assert {e["protocol"] for e in kept} == {e["protocol"] for e in (*both, many)}
    page = (folder / "report" / "report.md").read_text()
    assert all(page.count(e["protocol"]) == 1 for e in kept)
    as_json(*command, "--rerank", "mode=all")  # the plain figure stays the one that compares
    (whole,) = as_json("report", "compare", folder, "--out", tmp_path / "c1")["rows"][-1:]
    (joined,) = (
        row
        for row in as_json("report", "compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c2")[
            "rows"
        ]
        if row["where"] == "this run"
    )
    assert joined["figures"] == whole["figures"]
    assert joined["figures"]["sysu_indoor"] == pytest.approx(
        [100 * both[1]["mean"][k] for k in ("rank1", "mAP")]
    )
    assert joined["name"] == f"{tmp_path / 'a'}, {tmp_path / 'b'}"
    reranked = [flag for flag in whole["flags"] if "re-ranking" in flag]
    assert reranked
    assert all(flag.startswith("another figure of this column, left out: ") for flag in reranked)
    left = "not a published setting, left out: SYSU-MM01 indoor-search, multi-shot, infrared to visible"
    assert left in whole["flags"]
    assert "note: GENERATED data: these figures compare with no published one" in run(*command).stderr


@pytest.mark.usefixtures("no_plots")
def test_an_evaluation_on_a_part_of_the_test_set_says_so(tiny_run, tiny_sysu, tmp_path):
    data = tmp_path / "d"
    shutil.copytree(tiny_sysu, data, ignore=shutil.ignore_patterns("generated.json"))
    found = as_json("evaluate", tiny_run, "--data", data, "--out", tmp_path / "r", "mode=all", "draw=seeded")
    [note] = found["notes"]
    assert note.startswith(
        "not SYSU-MM01's test set, so comparable with no published figure: 8 identities (published: 96), "
    )
    assert note.endswith(" infrared (published: 3,803)")
    (tmp_path / "own.yaml").write_text("cmc: identity\n")  # compares with nothing published anyway
    own = as_json("evaluate", tiny_run, "--data", data, "--no-report", "--protocol", tmp_path / "own.yaml")
    assert own["notes"] == []
    assert any(
        note in flag
        for flag in as_json("report", "compare", tmp_path / "r", "--out", tmp_path)["rows"][-1]["flags"]
    )


def test_a_csv_without_splits_is_all_for_test_where_the_model_has_not_seen_it(tiny_run, tiny_sysu, tmp_path):
    from fmcnet.inference.embed import all_as_test
    from fmcnet.models.card import read_card

    def written(name, *splits):
        rows = read_dataset(tiny_sysu).select(split=splits)
        file = write_csv(rows, tmp_path / name)
        table = [line.split(",") for line in file.read_text().splitlines()]
        kept = [table[0].index(column) for column in ("path", "pid", "modality")]
        file.write_text("\n".join(",".join(line[column] for column in kept) for line in table) + "\n")
        return file, rows

    def evaluated(file):
        found = as_json("evaluate", tiny_run, "--data", file, "--no-report")
        return found["evaluations"][0]["probes"], found["notes"]

    new, rows = written("new.csv", "test")
    [probes], notes = evaluated(new)
    assert probes == len(rows.select(modality="infrared"))
    assert notes == ["no split column: all images are for test, as the model was not trained on this file"]
    card = read_card(tiny_run)
    for start in ((), card.samples):  # of a shipped model, and of its projection
        [note] = all_as_test(read_dataset(new), new, replace(card, samples=(), start_samples=start)).notes
        assert "the model does not record what it was trained on" in note
    more, rows = written("more.csv", "train", "test")
    kept = all_as_test(read_dataset(more), more, read_card(tiny_run))  # as of a table that grew since
    assert {"train", "test"} == {*kept.split.tolist()}
    refused = said(run("evaluate", tiny_run, "--data", more, "--no-report", code=2))
    assert "of the test identities have images that" in refused


def test_a_setting_of_another_benchmarks_protocol_is_refused(tiny_run, tiny_sysu):
    command = ("evaluate", tiny_run, "--data", tiny_sysu, "--no-report")
    assert "(sysu) has no reading in its protocol" in said(run(*command, "reading=b", code=2))
    assert "has no cmc in its protocol" in said(run(*command, "evaluation.cmc=identity", code=2))


@pytest.mark.usefixtures("no_plots")
def test_selection_on_test_stamps_everything(tiny_sysu, tmp_path):
    out = tmp_path / "run"
    run(
        "train",
        "--config",
        "tiny",
        "--data",
        tiny_sysu,
        "--out",
        out,
        "training.select=test",
        "training.epochs=1",
    )
    assert "SELECTED ON THE TEST SET" in run("evaluate", out, "--data", tiny_sysu).output
    assert "SELECTED ON THE TEST SET" in (out / "report" / "report.md").read_text()
    compared = as_json("report", "compare", out, "--out", tmp_path / "cmp")
    assert "selected on the test set" in compared["rows"][-1]["flags"]


def test_an_evaluation_goes_on_where_embeddings_cannot_be_kept(tiny_run, tiny_sysu, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("embeddings", "report"))
    (folder / "embeddings").touch()  # a file: no folder can be made there, as in one that is read-only
    found = run("evaluate", str(folder), "--data", str(tiny_sysu), "--no-report", "draw=seeded")
    assert "mAP" in found.output
    assert "the embeddings are not kept" in said(found)
    (folder / "report").touch()
    found = run("evaluate", str(folder), "--data", str(tiny_sysu), "draw=seeded")
    assert "mAP" in found.output
    assert re.search(r"no report in .*report \(.*\): --out FOLDER writes one elsewhere", said(found))
    assert "report" in said(
        run("evaluate", str(folder), "--data", str(tiny_sysu), "--out", str(folder / "report"), code=2)
    )


def test_the_embedding_cache_is_used_and_never_stale(tiny_run, tiny_sysu, tmp_path, monkeypatch):
    from fmcnet.inference.encoder import Encoder

    data, folder = tmp_path / "d", tmp_path / "run"
    shutil.copytree(tiny_sysu, data)
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("embeddings", "report"))
    first = as_json("evaluate", folder, "--data", data, "--no-report")
    real, calls = Encoder._embed, []
    monkeypatch.setattr(Encoder, "_embed", lambda self, *a: calls.append(1) or real(self, *a))
    assert as_json("evaluate", folder, "--data", data, "--no-report")["evaluations"] == first["evaluations"]
    assert not calls
    changed = sorted((data / "cam6").rglob("*.jpg"))[-1]
    Image.new("L", (32, 64), 128).save(changed)
    as_json("evaluate", folder, "--data", data, "--no-report")
    assert calls, "a changed image must be embedded again"
    for other in ("weights", "table", "damage"):
        calls.clear()
        kept = sorted((folder / "embeddings").iterdir(), key=lambda p: p.stat().st_mtime)[-1]
        if other == "weights":
            state = load_file(folder / "model.safetensors")
            save_file(
                {k: v * 1.001 if v.is_floating_point() else v for k, v in state.items()},
                folder / "model.safetensors",
            )
        elif other == "table":
            ids = data / "exp" / "test_id.txt"
            ids.write_text(",".join(ids.read_text().strip().split(",")[:-1]) + "\n")
        else:
            kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])
        as_json("evaluate", folder, "--data", data, "--no-report")
        assert calls, other


def test_score_prints_the_documented_json(tiny_run, tiny_sysu, tmp_path):
    from fmcnet.inference.encoder import load

    table = read_dataset(tiny_sysu).select(split="test")
    file = load(tiny_run).embed_table(table, progress=False).save(tmp_path / "e.npz")
    permutation = tiny_sysu / "exp" / "rand_perm_cam.mat"
    content = as_json("score", file, "--protocol", "sysu", "--draw", "official", "--permutation", permutation)
    assert len(content["trials"]) == 10
    assert (
        set(content["trials"][0])
        == {"rank1", "rank5", "rank10", "rank20", "mAP", "mINP"}
        == set(content["mean"])
    )
    judged = as_json("evaluate", tiny_run, "--data", tiny_sysu, "--no-report")["evaluations"][0]
    assert content["mean"] == pytest.approx(judged["mean"])
    assert "seeded draw" in run("score", file, "--draw", "seeded").output
    assert "rand_perm_cam.mat" in said(run("score", file, code=2))


def test_demo_on_the_tiny_preset(tmp_path):
    answer = as_json("demo", "--preset", "tiny", "--out", tmp_path / "demo")
    assert set(answer["figures"]) == {"Base", "FMCNet (full)"}
    report = (tmp_path / "demo" / "report" / "report.md").read_text()
    for word in ("Base", "FMCNet (full)", "GENERATED", "official draw", "seed", "Versions"):
        assert word in report
    again = as_json("demo", "--preset", "tiny", "--out", tmp_path / "demo")
    assert again["figures"] == answer["figures"]


def small_csv(folder, tiny_sysu, identities):
    table = read_dataset(tiny_sysu).select(split="train")
    keep = sorted(set(table.pid.tolist()))[:identities]
    lines = ["path,pid,modality,split"] + [
        f"{tiny_sysu / r.path},{r.pid},{r.modality},train" for r in table.records() if r.pid in keep
    ]
    test = read_dataset(tiny_sysu).select(split="test")
    lines += [f"{tiny_sysu / r.path},{r.pid},{r.modality},test" for r in test.records()]
    (folder / "few.csv").write_text("\n".join(lines) + "\n")
    return folder / "few.csv"


@pytest.mark.parametrize("identities", [1, 2])
def test_too_few_identities_are_told_and_leave_nothing_behind(identities, tiny_sysu, tmp_path):
    data = small_csv(tmp_path, tiny_sysu, identities)
    result = run(
        "train", "--config", "tiny", "--data", data, "--out", tmp_path / "r", "data.identities=2", code=2
    )
    assert "give more training identities" in said(result)
    assert not (tmp_path / "r").exists()


def test_a_refused_validation_leaves_nothing_behind(tiny_sysu, tmp_path):
    train = [
        "train",
        "--config",
        "tiny",
        "--data",
        small_csv(tmp_path, tiny_sysu, 2),
        "--out",
        tmp_path / "r",
    ]
    train += ["data.identities=2", "data.val_share=0", "training.epochs=1"]
    assert "training.validate_every=0" in said(run(*train, code=2))
    run(*train, "training.validate_every=0")


def test_the_demo_does_not_write_into_a_foreign_folder(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds other things (thesis.txt)" in said(
        run("demo", "--preset", "tiny", "--out", tmp_path, code=2)
    )
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_broken_crops_can_be_left_out(tiny_run, tiny_sysu, tmp_path):
    folder = tmp_path / "night"
    shutil.copytree(sorted((tiny_sysu / "cam3").iterdir())[0], folder)
    (folder / "0000.jpg").write_bytes(b"")
    good = len(list(folder.iterdir())) - 1
    arguments = [
        "embed",
        tiny_run,
        folder,
        "--modality",
        "ir",
        "--out",
        tmp_path / "e.npz",
        "--skip-unreadable",
    ]
    assert as_json(*arguments)["images"] == good
    assert len(np.load(tmp_path / "e.npz")["features"]) == good


def test_an_interrupted_generation_is_named(tiny_sysu, tmp_path):
    shutil.copytree(tiny_sysu, tmp_path / "d")
    manifest = tmp_path / "d" / "generated.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    output = said(run("data", "check", tmp_path / "d", code=1))
    assert "generation was interrupted" in output
    assert "agreement" not in output


def test_names_that_read_like_emoji_codes_are_shown_as_they_are(tmp_path):
    with Gallery(tmp_path / "g", model="0123456789abcdef") as gallery:
        gallery.add(
            np.ones((1, 4), np.float32), modality="visible", camera="gate:b:", pid="an:warning:na", ids=["a"]
        )
    assert "an:warning:na" in run("gallery", "list", tmp_path / "g").stdout
    assert "gate:b: (1)" in run("gallery", "info", tmp_path / "g").stdout
    assert "x:smile:.png" in said(run("search", tmp_path / "g", "x:smile:.png", "--modality", "ir", code=2))


@pytest.mark.usefixtures("no_plots")
def test_a_report_holds_figures_of_one_test_set(tiny_run, tiny_sysu, tmp_path):
    """Two CSVs of equally many images and identities are two test sets."""
    out = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("embeddings", "report"))
    data = shutil.copytree(tiny_sysu, tmp_path / "data")
    one, two = write_csv(read_dataset(data).select(split="test"), data / "one.csv"), data / "two.csv"
    rows = [line.split(",") for line in one.read_text().splitlines()]
    column = rows[0].index("pid")
    first, second = sorted({row[column] for row in rows[1:]})[:2]
    for row in rows[1:]:
        row[column] = {first: second, second: first}.get(row[column], row[column])
    rows[1][column], rows[2][column] = rows[2][column], rows[1][column]
    two.write_text("\n".join(map(",".join, rows)) + "\n")
    for file, is_told in ((one, False), (one, False), (two, True), (two, False)):
        told = run("evaluate", out, "--data", file).stderr
        assert ("figures of other weights or data, or of an earlier version" in told) is is_told, file
        [facts] = json.loads((out / "report" / "report.json").read_text())["runs"].values()
        assert len(facts["evaluations"]) == 1
