"""Every script of examples/ runs as a user starts it, on tiny generated data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fmcnet.data.readers import read_dataset
from fmcnet.data.readers.csv import write_csv
from fmcnet.inference.encoder import load
from fmcnet.retrieval import Gallery
from fmcnet.types import Modality
from tests import forked

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: object, cwd: Path) -> str:
    """The output of a script."""
    code, output, error = forked.script(EXAMPLES / script, *arguments, cwd=cwd)
    assert code == 0, error
    return output


def test_every_example_is_short_and_tested():
    scripts = sorted(EXAMPLES.glob("*.py"))
    text = Path(__file__).read_text(encoding="utf-8")
    assert len(scripts) == 9
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) < 80, script.name
        assert f'run("{script.name}"' in text.replace("(\n        ", "("), script.name


def test_score_embeddings(tmp_path):
    printed = run("score_embeddings.py", cwd=tmp_path)
    assert printed.count("Rank-1") >= 3
    assert "SYSU-MM01 all-search" in printed


def test_search_folder(tmp_path, tiny_sysu):
    table = read_dataset(tiny_sysu).select(split="test")
    query = table.select(modality=Modality.INFRARED).full_path(0)
    day = tiny_sysu / "cam1"
    command = ["search_folder.py", "--visible", day, "--query", query, "--model", "fmcnet-generated"]
    printed = run("search_folder.py", *command[1:], "--top", 3, cwd=tmp_path)
    assert printed.splitlines()[0].startswith("1. ")
    assert "probability" in printed
    assert run("search_folder.py", *command[1:], "--top", 3, cwd=tmp_path) == printed  # indexed only once


def test_finetune_csv(tmp_path, tiny_sysu, tiny_run):
    table = read_dataset(tiny_sysu)
    write_csv(table.select(split=("train", "val", "test")), tmp_path / "people.csv")
    steps = ["training.epochs=1", "training.steps_per_epoch=2"]
    printed = run("finetune_csv.py", tiny_run, "people.csv", "--out", "tuned", *steps, cwd=tmp_path)
    assert "rank1" in printed
    assert (tmp_path / "tuned" / "model.safetensors").is_file()


def test_new_backbone(tmp_path):
    assert "descriptor of a visible image: (256,)" in run("new_backbone.py", cwd=tmp_path)


def test_losses_in_your_model(tmp_path):
    lines = run("losses_in_your_model.py", cwd=tmp_path).splitlines()
    assert float(lines[-1].split()[-1]) < float(lines[0].split()[-1])  # the centres move together


def test_train_plain_loop(tmp_path, tiny_sysu):
    lines = run("train_plain_loop.py", tiny_sysu, "--steps", 40, cwd=tmp_path).splitlines()
    identity = [float(line.split("id_shared ")[1].split()[0]) for line in lines[:-1]]
    assert len(lines) == 41
    assert sum(identity[-10:]) < sum(identity[:10])  # it learns
    assert all(term in lines[-2] for term in ("gan", "fc", "ic", "mc", "id_fused"))
    assert lines[-1].startswith("<Encoder ")


def test_own_loss(tmp_path, tiny_sysu):
    values = {}
    for weight in (1, 4):
        command = ["--out", f"run{weight}", "--steps", 2, "--weight", weight]
        lines = run("own_loss.py", tiny_sysu, *command, cwd=tmp_path).splitlines()
        assert lines[0].startswith("step   1  loss ")
        values[weight] = float(lines[0].split()[-1])
    assert values[4] == pytest.approx(4 * values[1], abs=0.001)


def test_new_dataset(tmp_path, tiny_sysu):
    for half, camera in (("day", "cam1"), ("night", "cam3")):
        shutil.copytree(tiny_sysu / camera, tmp_path / "data" / half)
    printed = run("new_dataset.py", "data", cwd=tmp_path).splitlines()
    people = len({p.name for p in (tmp_path / "data").glob("*/*")})
    assert [line.split()[0] for line in printed[-2:]] == ["train:", "test:"]
    assert sum(int(line.split()[-2]) for line in printed[-2:]) == people


def test_search_shards(tmp_path, tiny_sysu):
    """The crops of two cameras in two galleries: the answer is that of one gallery of both."""
    encoder = load("fmcnet-lite")
    query = next((tiny_sysu / "cam3").rglob("*.jpg"))
    similarities = []
    for camera in ("cam1", "cam2"):
        images = sorted((tiny_sysu / camera).rglob("*.jpg"))[:12]
        embeddings = encoder.encode(images, "visible", progress=False)
        with Gallery(tmp_path / camera, model=encoder.digest) as gallery:
            gallery.add(embeddings, modality="visible", source=images)
        similarities += encoder.similarity(encoder.encode(query, "infrared"), embeddings)[0].tolist()
    printed = run("search_shards.py", "cam1", "cam2", "--query", query, "--top", 5, cwd=tmp_path).splitlines()
    best = sorted(similarities, reverse=True)[:5]
    assert [float(line.split()[0]) for line in printed] == pytest.approx(best, abs=0.001)
    assert all(line.split()[1] in line.split()[2] for line in printed)  # each from its own camera's folder
