"""Images given as the wrong modality are told wherever a table of them is read."""

from dataclasses import replace

import numpy as np
import pytest

from fmcnet.data.cache import ImageCache
from fmcnet.data.check import check
from fmcnet.data.pairs import make_pairs
from fmcnet.data.pixels import LOOKED_AT, colour_notes
from fmcnet.data.readers import read_dataset
from fmcnet.data.readers.csv import write_csv
from fmcnet.errors import DataError
from fmcnet.types import Modality

MENDED = "Then correct their modality"
VISIBLE = "images looked at that are given as visible{} have no colour: are they infrared? " + MENDED
INFRARED = "images looked at that are given as infrared{} have colours: are they visible? " + MENDED
SWAPPED = [
    "32 of 32 " + VISIBLE.format(" by camera 3, 6"),
    "64 of 64 " + INFRARED.format(" by camera 1, 2, 4, 5"),
]


@pytest.fixture(scope="module")
def swapped(tiny_sysu, tmp_path_factory):
    """`tiny_sysu` as a CSV that has each image under the other modality."""
    table = read_dataset(tiny_sysu)
    wrong = replace(table, modality=1 - table.modality, name="csv")
    return write_csv(wrong, tmp_path_factory.mktemp("swapped") / "people.csv")


def test_a_check_tells(tiny_sysu, swapped):
    assert [note for note in check(swapped).notes if "looked at" in note] == SWAPPED
    assert not [note for note in check(tiny_sysu).notes if "looked at" in note]


def test_training_and_evaluation_tell(tiny_sysu, swapped, tmp_path, caplog):
    for source in (tiny_sysu, swapped):
        table = read_dataset(source)
        ImageCache(table, 32, 16, folder=tmp_path)
    assert [r.message for r in caplog.records] == [f"{swapped}: {note}" for note in SWAPPED]


def test_one_process_of_a_job_tells(swapped, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    ImageCache(read_dataset(swapped), 32, 16, folder=tmp_path)
    assert not caplog.records


def test_swapped_folders_of_pairs_are_told(tiny_sysu, tmp_path):
    table = read_dataset(tiny_sysu)
    for modality in Modality:
        folder = tmp_path / str(modality)
        folder.mkdir()
        for number, path in enumerate(table.select(modality=modality).full_paths()[:5]):
            (folder / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    right, wrong = (
        make_pairs(tmp_path / one, tmp_path / other, tmp_path / f"{one}.csv").notes
        for one, other in (("visible", "infrared"), ("infrared", "visible"))
    )
    assert right == ()
    assert wrong == ("5 of 5 " + VISIBLE.format(""), "5 of 5 " + INFRARED.format(""))


def test_one_wrong_camera_of_many_is_told(tiny_sysu, tmp_path, caplog):
    table = read_dataset(tiny_sysu)
    modality = np.where(table.camid == 6, Modality.VISIBLE.code, table.modality).astype(np.uint8)
    ImageCache(replace(table, modality=modality), 32, 16, folder=tmp_path)
    [told] = [record.message for record in caplog.records]
    assert told == f"{table.root}: 16 of 16 " + VISIBLE.format(" by camera 6")


def test_half_of_the_images_are_no_reason_and_an_even_spread_is_looked_at():
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 256, (32, 16, 1), dtype=np.uint8), 3, axis=2)
    colour = np.zeros((32, 16, 3), np.uint8)
    colour[:16, :, 0] = colour[16:, :, 2] = 200
    loaded = []

    def load(row):
        loaded.append(row)
        if row == 0:
            raise DataError("cannot be read")
        return colour if row % 2 else grey

    infrared = [Modality.INFRARED.code] * 5
    assert list(colour_notes(infrared, load)) == []  # 2 of 4
    assert len(list(colour_notes(infrared[:4], load))) == 1  # 2 of 3
    loaded.clear()
    list(colour_notes([Modality.VISIBLE.code] * 1000, load))
    assert len(loaded) == LOOKED_AT
    assert {0, 999} < set(loaded)
    loaded.clear()
    list(colour_notes([Modality.VISIBLE.code] * 1000, load, np.arange(1000)))  # cameras that are none
    assert len(loaded) == LOOKED_AT
