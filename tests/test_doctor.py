"""`fmcnet doctor`: the installation, and whether a model, a gallery and a calibration fit together."""

from __future__ import annotations

import importlib.metadata
import json
import shutil

import numpy as np
import pytest

from fmcnet import doctor as doctoring
from fmcnet.doctor import diagnose
from fmcnet.inference.encoder import load
from fmcnet.retrieval.gallery import Gallery
from tests.cli import run_command


def by_name(found, part):
    return {one.name: one for one in found.findings if one.part == part}


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_run):
    """A run with a calibration of its own, one of another model, and a gallery of the run."""
    root = tmp_path_factory.mktemp("doctor")
    run = shutil.copytree(tiny_run, root / "run", ignore=shutil.ignore_patterns("checkpoints", "embeddings"))
    shipped = load("fmcnet-lite")
    other = root / "other.json"
    shutil.copy(shipped.folder / "calibration.json", other)
    tree = json.loads(other.read_text())
    encoder = load(run)
    (run / "calibration.json").write_text(json.dumps(tree | {"model": encoder.digest}))
    with Gallery(root / "g", model=encoder.digest) as gallery:
        width = encoder.encode(np.zeros((8, 4, 3), np.uint8), "visible").features.shape[1]
        gallery.add(np.ones((3, width), np.float32), modality="visible", ids=["a", "b", "c"])
    return {"run": run, "gallery": root / "g", "other": other, "digest": encoder.digest}


def test_all_that_fits_is_ok_and_exit_code_0(places, caplog):
    found = diagnose(places["run"], places["gallery"])
    assert not caplog.records  # the image that it tries has colours where they are expected
    assert found.ok
    assert by_name(found, "model")["encodes"].found.startswith("128 values")
    assert by_name(found, "gallery")["model"].ok
    assert "3 entries" in by_name(found, "gallery")[str(places["gallery"])].found
    [calibration] = by_name(found, "calibration").values()
    assert (calibration.ok, calibration.name) == (True, str(places["run"] / "calibration.json"))
    assert places["digest"] in calibration.found
    output = run_command("doctor", "--model", places["run"], "--gallery", places["gallery"]).output
    assert output.splitlines()[-1] == "all is well"


def test_another_models_gallery_and_calibration_are_named_with_exit_code_1(places):
    words = ["doctor", "--model", "fmcnet-lite", "--gallery", places["gallery"], "--json"]
    tree = json.loads(run_command(*words, code=1).stdout)
    faults = [one for one in tree["findings"] if one["ok"] is False]
    assert tree["ok"] is False
    assert [(one["part"], one["name"]) for one in faults] == [("gallery", "model")]
    assert places["digest"] in faults[0]["found"]
    found = diagnose(places["run"], calibration=places["other"])
    [calibration] = by_name(found, "calibration").values()
    assert calibration.ok is False
    assert "another model" in calibration.found
    assert run_command("doctor", "--model", places["run"], "--calibration", places["other"], code=1)


def test_without_a_model_the_gallery_and_the_calibration_are_held_against_each_other(places, tmp_path):
    calibration = places["run"] / "calibration.json"
    with Gallery(tmp_path / "g", model="0123456789abcdef") as gallery:
        gallery.add(np.ones((1, 4), np.float32), modality="visible", ids=["a"])
    found = diagnose("nowhere", tmp_path / "g", calibration)
    parts = {
        part: [one.ok for one in by_name(found, part).values()]
        for part in ("model", "gallery", "calibration")
    }
    assert parts == {"model": [False], "gallery": [True], "calibration": [False]}


def test_it_writes_nothing(places):
    def content():
        files = [path for path in places["gallery"].rglob("*") if not path.name.endswith(("-shm", "-wal"))]
        return {path: path.read_bytes() for path in files}  # those two are a reader's own

    before = content()
    diagnose(places["run"], places["gallery"])
    assert content() == before
    assert not diagnose(places["run"], places["gallery"] / "none").ok
    assert not (places["gallery"] / "none").exists()


REQUIRES = [
    "numpy>=1.26",
    "torch>=99.1",
    "no-such-package>=2",
    'faiss-cpu>=1.12; extra == "gallery"',
    'fmcnet[gallery,extra-two]; extra == "serve"',
    'no-such-package>=2; extra == "extra-two"',
    'pytest; extra == "dev"',
]


def test_packages_and_extras_with_the_command_that_mends_them(monkeypatch):
    class About:
        def get_all(self, name):
            return ["gallery", "extra-two", "serve", "dev"]

    versions = {"numpy": "2.1", "torch": "2.6+cpu", "faiss-cpu": "1.20.0"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRES)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: About())
    monkeypatch.setattr(importlib.metadata, "version", version)
    found = doctoring.Diagnosis(tuple(doctoring._packages()))
    packages, extras = by_name(found, "packages"), by_name(found, "extras")
    ok = {name: one.ok for name, one in packages.items()}
    assert ok == {"numpy": True, "torch": False, "no-such-package": False}
    assert packages["torch"].found == "is 2.6+cpu, older than 99.1"
    assert packages["torch"].advice == "pip install 'torch>=99.1'"
    assert {name: one.ok for name, one in extras.items()} == {
        "extra-two": None,
        "gallery": True,
        "serve": None,
    }
    assert extras["serve"].found == "no-such-package is missing; faiss-cpu 1.20.0"
    assert extras["serve"].advice == "pip install 'fmcnet[serve]'"
    assert not found.ok


def test_a_broken_plugin_is_a_finding(tmp_path, monkeypatch):
    from fmcnet import plugins as plugin_list

    about = tmp_path / "b-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: b\nVersion: 1\n")
    points = (
        "[fmcnet.backbones]\nbroken = no_such:A\nresnet50 = json:loads\n[fmcnet.readers]\nfine = json:loads\n"
    )
    (about / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin_list.plugins.cache_clear()
    try:
        found = by_name(diagnose(), "plugins")
    finally:
        plugin_list.plugins.cache_clear()
    assert {name: one.ok for name, one in found.items()} == {"broken": False, "resnet50": False, "fine": True}
    assert "ModuleNotFoundError" in found["broken"].found
    assert "not used" in found["resnet50"].advice


def test_shipped_backbones_are_all_named():
    from fmcnet.models.backbones import backbones, shipped

    assert set(shipped()) <= set(backbones())
    assert {name for name in backbones() if name.startswith(("resnet", "efficientnet"))} >= set(shipped())
