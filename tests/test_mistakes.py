"""Every command with a wrong path, a folder for a file, cut weights, a wrong value: said, without a traceback."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from fmcnet.cli.app import app
from tests.cli import run_command

IN = ("missing", "text", "bytes", "empty", "below")
"""No input: nothing there, a file of text, one of random bytes, a folder with nothing in it, a path below a file."""
MODEL = (*IN, "cut", "cut_card")
"""Nor a model: weights, or the card, that end in the middle."""

NOWHERE = ("nowhere",) if Path("/proc/self").is_dir() else ()
"""No output: a file system that takes no file, from root either."""

WRONG = {
    "demo --preset tiny --out {X}": ("text", "below", *NOWHERE),
    "data generate --preset tiny --seed 9 --workers 1 --out {X}": ("text", "below", "data", *NOWHERE),
    "data check {X}": IN,
    "data summary {X}": IN,
    "data pairs {X} {data} --out pairs.csv": ("missing",),
    "train --config tiny --data {X} --out {new}": IN,
    "train --config tiny --data {data} --out {X}": ("text", "below", "data", *NOWHERE),
    "train --config {X} --data {data} --out {new}": IN,
    "train --config tiny --data {data} --out {X} --resume": ("text", "below", "data"),
    "config {X}": IN,
    "evaluate {X} --data {data}": MODEL,
    "evaluate {run} --data {X}": IN,
    "evaluate {run} --data {data} --out {X}": ("text", "below", *NOWHERE),
    "evaluate {run} --data {data} --protocol {X}": IN,
    "embed {X} {image} --modality ir --out {new}.npz": MODEL,
    "embed {run} {X} --modality ir --out {new}.npz": IN,
    "embed {run} {image} --modality ir --out {X}": ("text", "below", "empty"),
    "embed {run} --data {X} --out {new}.npz": IN,
    "score {X}": IN,
    "score {embeddings} --permutation {X}": IN,
    "score {embeddings} --protocol {X}": IN,
    "study table2 --data {X} --out {new}": IN,
    "study table2 --preset tiny --out {X}": ("text", "below", *NOWHERE),
    "study table2 --config {X} --out {new}": IN,
    "calibrate {X} --data {data} --out {new}": MODEL,
    "calibrate {run} --data {X} --out {new}": IN,
    "calibrate {run} --data {data} --out {X}": ("empty", "below", *NOWHERE),
    "export {X} --out {new}": MODEL,
    "export {run} --out {X}": ("text", "below", *NOWHERE),
    "export {run} --data {X} --out {new}": IN,
    "export {run} --int8 --calibrate {X} --out {new}": IN,
    "project {X} --data {data} --dim 4 --out {new}": MODEL,
    "project {run} --data {X} --dim 4 --out {new}": IN,
    "project {run} --data {data} --dim 4 --out {X}": ("text", "below", *NOWHERE),
    "adapt {X} {data} --out {new}": MODEL,
    "adapt {run} {X} --out {new}": IN,
    "adapt {run} --visible {X} --infrared {image} --out {new}": ("missing", "empty", "below"),
    "adapt {run} {data} --out {X}": ("text", "below", *NOWHERE),
    "crop {X} {boxes} --modality ir --out {new}": IN,
    "crop {frames} {X} --modality ir --out {new}": IN,
    "crop {frames} {boxes} --modality ir --out {X}": ("text", "below", "data", *NOWHERE),
    "index {new} {X} --model {run} --modality ir --layout images": IN,
    "index {new} {image} --model {X} --modality ir": MODEL,
    "index {X} {image} --model {run} --modality ir": ("text", "bytes", "below", *NOWHERE),
    "search {gallery} {X} --modality ir": IN,
    "search {X} {image} --modality ir": IN,
    "search {gallery} {image} --modality ir --model {X}": MODEL,
    "search {gallery} {image} --modality ir --calibration {X}": (*IN, "image"),
    "serve {gallery} --port 0 --model {run} --calibration {X}": (*IN, "image"),
    "search {gallery} {image} --modality ir --html {X}": ("empty", "below", *NOWHERE),
    "gallery info {X}": IN,
    "gallery remove {X} --pid 1 --yes": IN,
    "gallery expire {X} --keep 30d --yes": IN,
    "gallery list {X}": IN,
    "gallery compact {X}": IN,
    "gallery export {X} {new}.npz": IN,
    "gallery backup {X} {new}": IN,
    "gallery backup {gallery} {X}": ("text", "empty", "below", *NOWHERE),
    "gallery restore {X} {new}": IN,
    "gallery restore {gallery} {X}": ("text", "below", *NOWHERE),
    "gallery relocate {X} old new --yes": IN,
    "gallery copy {X} {new}": IN,
    "gallery copy {gallery} {X}": ("text", "bytes", "below", *NOWHERE),
    "gallery recover {X} {new} --model {run}": IN,
    "gallery export {gallery} {X}": ("text", "empty", "below"),
    "serve {gallery} --port 0 --model {X}": MODEL,
    "serve {X} --port 0 --model {run}": ("text", "bytes", "below"),
    "serve {gallery} --port 0 --model {run} --keys {X}": ("missing", "bytes", "empty", "below"),
    "serve {gallery} --port 0 --model {run} --show-sources {X}": ("missing", "text", "below"),
    "serve {gallery} --port 0 --model {run} --certificate {X} --certificate-key {X}": (
        "missing",
        "empty",
        "below",
    ),
    "keys {X} --name a --scope read": ("text", "bytes", "empty", "below", *NOWHERE),
    "keys add {X} --name a --scope read": ("text",),
    "keys list {X}": ("missing", "text", "bytes", "empty", "below"),
    "keys revoke {X} --name a": ("missing", "text", "bytes", "empty", "below"),
    "report compare {X}": IN,
    "report compare {run} --out {X}": ("text", "below", *NOWHERE),
    "info {X}": MODEL,
    "doctor --model {X}": MODEL,
    "push {X} me/model": MODEL,
    "doctor --model {run} --gallery {X}": IN,
    "doctor --model {run} --calibration {X}": IN,
}
VALUES = [
    "demo --preset huge --out {new}",
    "demo --seed -1 --out {new}",
    "data generate --layout market --out {new}",
    "data generate --workers -1 --out {new}",
    "data check {data} --layout market",
    "data summary {data} --split 11",
    "data cache --prune soon",
    "train --config tiny --data {data} --out {new} training.nothing=1",
    "train --config tiny --data {data} --out {new} training.lr=fast",
    "train --config tiny --data {data} --out {new} training.lr",
    "train --config tiny --data {data} --out {new} --device tpu",
    "train --config tiny --data {data} --out {new} --splits one",
    "train --config tiny --data {data} --out {new} --track paper",
    "train --config tiny --data {data} --out {new} --splits ''",
    "config tiny training.lr=fast",
    "index {new} '' --modality visible",
    "search {gallery} '' --modality ir",
    "adapt {run} --visible '' --infrared {image} --out {new}",
    "docs nothing",
    "evaluate {run} --data {data} mode=outdoor",
    "evaluate {run} --data {data} --device tpu",
    "embed {run} {image} --modality warm --out {new}.npz",
    "embed {run} {image} --modality ir --on-error laugh --out {new}.npz",
    "embed {run} --data {data} --split half --out {new}.npz",
    "embed {run} --data {data} --modality ir --out {new}.npz",
    "embed {run} {image} --modality ir --batch 0 --out {new}.npz",
    "score {embeddings} --protocol market",
    "score {embeddings} --mode outdoor",
    "score {embeddings} --distance far",
    "study table9 --out {new}",
    "embed {run} --data {data} --split '' --out {new}.npz",
    "study table2 --seeds a --out {new}",
    "study table2 --preset tiny --rows '' --out {new}",
    "study table2 --preset '' --out {new}",
    "study table2 --preset tiny --config '' --out {new}",
    "study table2 --budget 0 --out {new}",
    "study table2 --preset tiny --worlds many --out {new}",
    "calibrate {run} --data {data} --fmr 2 --out {new}",
    "calibrate {run} --data {data} --prior 1 --out {new}",
    "calibrate {run} --data {data} --split half --out {new}",
    "calibrate {run} --data {data} --device tpu --out {new}",
    "project {run} --data {data} --dim 0 --out {new}",
    "adapt {run} --out {new}",
    "adapt {run} {data} --visible {image} --out {new}",
    "adapt {run} --infrared {image} --out {new}",
    "adapt {run} --visible {image} --infrared {image} --out {new}",
    "adapt {run} {data} --device tpu --out {new}",
    "project {run} --data {data} --dim 100000 --out {new}",
    "project {run} --data {data} --dim 4 --method magic --out {new}",
    "export {run} --to tflite",
    "export {run} --images 1",
    "crop {frames} {boxes} --modality warm --out {new}",
    "crop {frames} {boxes} --modality ir --out {new} --start-time noon",
    "crop {frames} {boxes} --modality ir --out {new} --start-time 2026-03-01 --fps 0",
    "crop {frames} {boxes} --modality ir --out {new} --every 0",
    "crop {frames} {boxes} --modality ir --out {new} --range 9",
    "index {new} {image} --model {run} --modality warm",
    "index {new} {image} --model {run} --modality ir --camera ''",
    "index {new} {image} --model {run} --modality ir --camera-from-name '('",
    "index {new} {image} --model {run} --modality ir --time-from-name '%Q'",
    "index {new} {image} --model {run} --modality ir --timezone Mars/Base",
    "index {new} {image} --model {run} --modality ir --on-error laugh",
    "index {new} {image} --model {run} --modality ir --layout market",
    "index {new} {image} --model {run} --modality ir --existing forget",
    "index {new} {image} --model {run} --modality ir --dtype int8",
    "index {new} {image} --model {run} --modality ir --index tree",
    "index {new} {image} --model {run} --modality ir --doubtful-times never",
    "index {new} {data} --model {run} --split half",
    "search {gallery} {image} --modality warm",
    "search {gallery} {image} --modality ir --since yesterday",
    "search {gallery} {image} --modality ir --among warm",
    "search {gallery} {image} --modality ir --group face",
    "search {gallery} {image} --modality ir --min-probability 2",
    "search {gallery} {image} --modality ir --prior 7",
    "search {gallery} {image} --modality ir --fmr -1",
    "search {gallery} {image} --modality ir --device tpu",
    "search milvus://:port/ {image} --modality ir",
    "gallery remove {gallery} --yes",
    "gallery remove {gallery} --pid unknown --yes",
    "gallery expire {gallery} --keep long",
    "gallery relocate {gallery} nowhere new --yes",
    "gallery expire {gallery} --keep 30d --json",
    "gallery list {gallery} --limit -1",
    "index {new} {image} --model {run} --modality ir --keep soon",
    "gallery export {gallery} {new}.txt",
    "gallery copy {gallery} {gallery}",
    "gallery copy {gallery} {new} --index tree",
    "serve {gallery} --model {run} --port 70000",
    "serve {gallery} --model {run} --port 0 --host nowhere.invalid",
    "serve {gallery} --model {run} --port 0 --device tpu",
    "keys {new} --name a --scope all",
    "report compare {run} --out",
    "info fmcnet-unheard-of",
    "doctor --model fmcnet-unheard-of",
    "push {run} model",
    "push {run} me/model@main",
    "doctor --model {run} --gallery milvus://:port/",
    "doctor --model {run} --device tpu",
]
NO_EFFECT = {
    "data summary {data} --split 2": "--split is for RegDB",
    "train --config tiny --data {data} --out {new} --splits 1,2 data.split=3": "data.split would do nothing",
    "train --config '' --data {data} --out {new}": "argument is empty",
    "evaluate {run} --data {data} --no-report --out {new}": "--no-report",
    "study table2 --data {data} --preset tiny --out {new}": "--preset is of the generated benchmark",
    "study table2 --data {data} --out {new} training.seed=4": "training.seed=4 would do nothing",
    "study table2 --data {data} --out {new} evaluation.direction=i2v": "evaluation.direction=i2v would do",
    "study table2 --data {data} --out {new} --budget 6 training.epochs=3": "training.epochs=3 would do",
    "study table2 --data {data} --out {new} --budget 6 training.steps_per_epoch=4": "per_epoch=4 would do",
    "export {run} --images 9 --out {new}": "--images would do nothing without --int8",
    "export {run} --data {data} --calibrate {data} --out {new}": "--calibrate would do nothing",
    "export {run} --force --out {new}": "--force would do nothing",
    "crop {frames} {boxes} --modality ir --out {new} --timezone Europe/Berlin": "are of --start-time",
    "crop {frames} {boxes} --modality ir --out {new} --doubtful-times later": "are of --start-time",
    "crop {frames} {named} --modality ir --out {new} --first-frame 0": "the boxes name their images",
    "gallery expire {gallery} --keep 30d --all": "--all goes with --yes",
    "gallery remove {gallery} --pid 1 --all": "--all goes with --yes",
    "serve {gallery} --model {run} --port 0 --read-only --keep-images {new}": "--keep-images",
}
"""An option that would be ignored, and what is said instead."""
MISPLACED = {
    "evaluate draw=seeded {run} --data {data}": "evaluate RUN --data DATA draw=seeded",
    "evaluate {run} {data} --data {data}": "is no setting (key=value, as shots=10): the run is the first argument",
    "config training.seed=1 tiny": "settings come last: fmcnet config tiny training.seed=1",
    "train --config lr=1.yaml --data {new} --out {new}": "lr=1.yaml",
    "study training.epochs=1 table2 --out {new}": "settings come last: fmcnet study table2 training.epochs=1",
    "train --config training.seed=1 --data {data} --out {new}": "--data DATA --out RUN training.seed=1",
    "train {data} --data {data} --out {new}": "paths have options, as --data and --out",
    "data crop {frames} {boxes}": "Did you mean 'fmcnet crop'?",
    "generate --out {new}": "Did you mean 'fmcnet data generate'?",
    "data index {new}": "Did you mean 'fmcnet index'?",
    "check {data}": "Did you mean 'fmcnet data check'?",
    "compare {run}": "Did you mean 'fmcnet report compare'?",
    "gallery search {gallery}": "Did you mean 'fmcnet search'?",
    "report export {run}": "Did you mean 'fmcnet export' or 'fmcnet gallery export'?",
    "list": "Did you mean 'fmcnet gallery list' or 'fmcnet keys list'?",
}
"""A command in another group, or an argument in another's place, and the right one."""


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_sysu, tiny_run):
    """Everything the commands name: what is right, and what is not."""
    root = tmp_path_factory.mktemp("mistakes")
    (root / "text").write_text("these are notes\n")
    (root / "bytes").write_bytes(bytes(range(256)) * 40)
    (root / "empty").mkdir()
    (root / "boxes.csv").write_text("1,1,0,0,20,40,1\n")
    (root / "named.json").write_text(
        '{"images": [{"id": 1, "file_name": "0001.jpg"}], "annotations": [{"image_id": 1, "bbox": [0, 0, 20, 40]}]}'
    )
    run = shutil.copytree(
        tiny_run, root / "run", ignore=shutil.ignore_patterns("embeddings", "report", "onnx*")
    )
    for name, file in (("cut", "model.safetensors"), ("cut_card", "model.json")):
        shutil.copytree(run, root / name)
        whole = (run / file).read_bytes()
        (root / name / file).write_bytes(whole[: len(whole) // 2])
    image = sorted((tiny_sysu / "cam3").rglob("*.jpg"))[0]
    (run / "report").mkdir()
    report = {"dataset": {"name": "csv"}, "runs": {"a": {"evaluations": [], "selected_on": "last"}}}
    (run / "report" / "report.json").write_text(json.dumps(report))
    found = {
        "missing": root / "none" / "here",
        "below": root / "text" / "x",
        "nowhere": Path("/proc/nowhere"),
        **{name: root / name for name in ("text", "bytes", "empty", "cut", "cut_card", "run")},
        "data": tiny_sysu,
        "image": image,
        "frames": image.parent,
        "boxes": root / "boxes.csv",
        "named": root / "named.json",
        "gallery": root / "people.gallery",
        "embeddings": root / "e.npz",
    }
    made = run_command(
        "index", str(found["gallery"]), str(image), "--model", str(run), "--modality", "ir", code=None
    )
    assert made.exit_code == 0, made.output
    from fmcnet.data.readers import read_dataset
    from fmcnet.inference.encoder import load

    load(run).embed_table(read_dataset(tiny_sysu).select(split="test"), progress=False).save(
        found["embeddings"]
    )
    return found


def refused(command, places, tmp_path, monkeypatch, **more):
    """What the command says; it must end with 1 or 2 by itself, and leave nothing running."""
    from fmcnet.server import run as serving

    def started(*_):
        raise AssertionError("the service started")

    monkeypatch.setattr(serving, "_run", started)
    monkeypatch.chdir(tmp_path)
    words = [word.format(**{**places, "new": tmp_path / "new", **more}) for word in shlex.split(command)]
    before = os.environ.copy()
    result = run_command(*words, code=None)
    assert os.environ == before
    assert isinstance(result.exception, SystemExit), f"{result.output}\n{result.exception!r}"
    assert result.exit_code == 2 or (result.exit_code == 1 and command.startswith(("data check", "doctor")))
    assert "Traceback" not in result.output
    assert not re.search(r"/\.[a-z]", result.output.replace(sys.executable, "")), "a temporary name"
    return result.output


@pytest.mark.parametrize(("command", "kind"), [(c, kind) for c, kinds in WRONG.items() for kind in kinds])
def test_a_wrong_path_is_said(command, kind, places, tmp_path, monkeypatch):
    output = refused(command, places, tmp_path, monkeypatch, X=places[kind])
    assert len(output.split()) > 3
    name = places[kind].parent.name if kind in ("below", "missing") else places[kind].name
    assert name in output.replace("\n", "")


@pytest.mark.parametrize("command", VALUES)
def test_a_wrong_value_is_said(command, places, tmp_path, monkeypatch):
    assert len(refused(command, places, tmp_path, monkeypatch).split()) > 4


@pytest.mark.parametrize(("command", "said"), NO_EFFECT.items())
def test_an_option_without_effect_is_refused(command, said, places, tmp_path, monkeypatch):
    assert said in " ".join(refused(command, places, tmp_path, monkeypatch).split())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("command", "said"), MISPLACED.items())
def test_the_right_place_is_told(command, said, places, tmp_path, monkeypatch):
    assert said in " ".join(refused(command, places, tmp_path, monkeypatch).replace("│", "").split())
    assert not (tmp_path / "new").exists()


def test_every_command_is_here():
    import typer

    group = typer.main.get_command(app)
    names = set()
    for name, one in group.commands.items():
        names |= {f"{name} {inner}" for inner in getattr(one, "commands", {})} or {name}
    tried = [*WRONG, *VALUES]
    assert [name for name in sorted(names) if not any(c.startswith(f"{name} ") for c in tried)] == []
