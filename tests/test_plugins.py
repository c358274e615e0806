"""Backbones and readers of other installed packages: found by entry points, loaded on first use."""

from __future__ import annotations

import sys

import pytest

from fmcnet import plugins as plugin_list
from fmcnet.config import load_config
from fmcnet.data import readers
from fmcnet.data.readers import layouts, read_dataset
from fmcnet.errors import ConfigError
from fmcnet.models.backbones import backbones, make_backbone
from fmcnet.models.build import build_model
from tests.cli import run_command

CODE = """
from fmcnet.models.backbones.resnet import ResNet
from fmcnet.data.readers.csv import read_csv

class Thin(ResNet):
    def __init__(self, width=64, last_stride=1):
        super().__init__("resnet18", width // 2, last_stride)

def read_people(root):
    return read_csv(root / "people.txt")

number = 3

def no_backbone(width, last_stride):
    return "a network"
"""
POINTS = """
[fmcnet.backbones]
thin = a_plugin:Thin
absent = a_plugin:Wide
gone = no_such_package.module:Thin
number = a_plugin:number
text = a_plugin:no_backbone
resnet50 = a_plugin:no_backbone

[fmcnet.readers]
people = a_plugin:read_people
broken = no_such_package:read
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """A package with entry points, as pip installs one."""
    site = tmp_path / "site"
    about = site / "a_plugin-1.2.dist-info"
    about.mkdir(parents=True)
    (site / "a_plugin.py").write_text(CODE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: a-plugin\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(readers, "_READERS", {})
    plugin_list.plugins.cache_clear()
    yield
    plugin_list.plugins.cache_clear()
    sys.modules.pop("a_plugin", None)


def test_they_are_listed_without_being_loaded():
    assert {"resnet50", "thin", "gone"} <= set(backbones())
    assert {"sysu", "people"} <= set(layouts())
    make_backbone("resnet18")
    assert "a_plugin" not in sys.modules


def test_a_backbone_is_built():
    assert make_backbone("thin", 16).channels(4) == 64
    model = build_model(load_config("tiny", ["model.arch=thin", "model.width=16"]).model, 3)
    assert model.decomposition.stem_visible.conv1.weight.shape[0] == 8


def test_a_shipped_name_stays_the_shipped_backbone():
    assert make_backbone("resnet50", 8).channels(4) == 256


def test_a_reader_reads_for_commands_too(tmp_path, tiny_sysu):
    from fmcnet.data.readers.csv import write_csv

    folder = tmp_path / "data"
    folder.mkdir()
    table = read_dataset(tiny_sysu)
    write_csv(table, folder / "people.csv")
    (folder / "people.csv").rename(folder / "people.txt")
    assert len(read_dataset(folder, layout="people")) == len(table)
    assert f"{len(table):,} images" in run_command("data", "summary", folder, "--layout", "people").output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", r"the plugin absent = a_plugin:Wide of a-plugin 1.2 cannot be loaded \(AttributeError"),
        ("gone", r"the plugin gone = .* cannot be loaded \(ModuleNotFoundError: No module named 'no_such"),
        ("number", r"the plugin number .* is a int: it must be a function or a class"),
        ("text", r"model.arch = 'text': its function gives a str, not a fmcnet.Backbone"),
    ],
)
def test_a_broken_one_is_named_in_one_line_and_hurts_no_other(name, said):
    with pytest.raises(ConfigError, match=said) as caught:
        make_backbone(name, 8)
    assert "\n" not in str(caught.value)
    assert make_backbone("thin", 16).depth == 5


def test_a_broken_reader_is_one_line(tmp_path):
    said = run_command("data", "summary", tmp_path, "--layout", "broken", code=2).output
    assert "the plugin broken = no_such_package:read of a-plugin 1.2 cannot be loaded" in " ".join(
        said.split()
    )
