import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fmcnet.data import cache as cache_module
from fmcnet.data.cache import ImageCache, cache_key, default_folder
from fmcnet.data.readers.sysu import read_sysu
from fmcnet.data.table import Table
from fmcnet.errors import DataError
from fmcnet.files import file_state
from tests.data import trees


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return read_sysu(trees.sysu(tmp_path / "data", images=1))


def test_rows_are_the_resized_images(tmp_path: Path, table: Table) -> None:
    cache = ImageCache(table, 24, 10, folder=tmp_path / "cache")
    assert cache.images.shape == (len(table), 24, 10, 3)
    assert cache.images.dtype == np.uint8
    assert isinstance(cache.images, np.memmap)
    assert not cache.images.flags.writeable
    assert len(cache) == len(table)
    for row in (0, 7, len(table) - 1):
        expected = Image.open(table.full_path(row)).convert("RGB").resize((10, 24), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(cache.images[row], np.asarray(expected))


def test_the_second_time_nothing_is_decoded(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ImageCache(table, 12, 6, folder=tmp_path / "cache")
    assert first.built
    monkeypatch.setattr(cache_module, "decode_images", None)
    second = ImageCache(table, 12, 6, folder=tmp_path / "cache")
    assert not second.built
    np.testing.assert_array_equal(first.images, second.images)
    names = {first.path.name, first.path.with_suffix(".json").name}
    assert {p.name for p in (tmp_path / "cache").iterdir()} == names


def test_a_changed_image_is_never_stale(tmp_path: Path, table: Table) -> None:
    first = ImageCache(table, 12, 6, folder=tmp_path / "cache").images[0].copy()
    status = table.full_path(0).stat()
    Image.new("RGB", (6, 12), "red").save(table.full_path(0))
    os.utime(table.full_path(0), ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    again = ImageCache(table, 12, 6, folder=tmp_path / "cache")
    assert again.built
    assert (again.images[0] != first).any()


@pytest.mark.parametrize("how", ["written", "renamed"])
def test_pixels_replaced_with_equal_size_and_time_are_noticed(tmp_path: Path, table: Table, how: str) -> None:
    path = table.full_path(0)
    for at in table.full_paths():  # uncompressed, under a .jpg name: all of one size
        Image.new("RGB", (6, 12), "blue").save(at, "BMP")
        os.utime(at, (1.6e9, 1.6e9))
    first = ImageCache(table, 12, 6, folder=tmp_path / "cache").images[0, 0, 0].tolist()
    target = path if how == "written" else tmp_path / "new.bmp"
    Image.new("RGB", (6, 12), "red").save(target, "BMP")
    os.utime(target, (1.6e9, 1.6e9))
    target.replace(path)
    again = ImageCache(table, 12, 6, folder=tmp_path / "cache")
    assert (again.built, first, again.images[0, 0, 0].tolist()) == (True, [0, 0, 255], [255, 0, 0])


def test_where_times_of_change_are_coarse_the_content_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(b"one")
    real = path.stat()
    fields = ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")
    fake = SimpleNamespace(**{name: getattr(real, name) for name in fields} | {"st_ctime_ns": 16 * 10**17})
    monkeypatch.setattr(Path, "stat", lambda self: fake)
    before = file_state(path)
    path.write_bytes(b"two")
    assert file_state(path) != before
    fake.st_ctime_ns += 1
    assert file_state(path) == f"3 {fake.st_mtime_ns} {fake.st_ctime_ns} {fake.st_ino}"


def test_size_order_and_rows_are_part_of_the_key(table: Table) -> None:
    keys = {
        cache_key(table, 12, 6),
        cache_key(table, 6, 12),
        cache_key(table.take(np.arange(len(table))[::-1]), 12, 6),
        cache_key(table.select(split="train"), 12, 6),
    }
    assert len(keys) == 4
    assert cache_key(table, 12, 6) in keys


def test_a_damaged_cache_file_is_built_again(tmp_path: Path, table: Table) -> None:
    path = ImageCache(table, 12, 6, folder=tmp_path / "cache").path
    path.write_bytes(path.read_bytes()[:300])
    cache = ImageCache(table, 12, 6, folder=tmp_path / "cache")
    assert cache.built
    assert cache.images[-1].any()


def test_unreadable_images_are_all_listed_and_nothing_is_left(tmp_path: Path, table: Table) -> None:
    table.full_path(3).write_bytes(b"")
    table.full_path(9).write_text("hello")
    with pytest.raises(DataError, match=r"2 of 36 images(.|\n)*0 bytes(.|\n)*a text file"):
        ImageCache(table, 12, 6, folder=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_folder_comes_from_the_environment(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMCNET_CACHE", str(tmp_path / "env"))
    assert ImageCache(table, 12, 6).path.parent == tmp_path / "env"
    monkeypatch.delenv("FMCNET_CACHE")
    assert default_folder() == Path.home() / ".cache" / "fmcnet"


def test_memory_where_the_folder_cannot_be_written(
    tmp_path: Path, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        cache = ImageCache(table, 12, 6, folder=tmp_path / "file")
    assert cache.path is None
    assert "in memory" in caplog.text
    kept = ImageCache(table, 12, 6, folder=tmp_path / "cache")
    np.testing.assert_array_equal(cache.images, kept.images)
    assert not cache.images.flags.writeable


def test_an_empty_table_and_a_bad_size(tmp_path: Path, table: Table) -> None:
    assert ImageCache(table.take(np.arange(0)), 12, 6, folder=tmp_path).images.shape == (0, 12, 6, 3)
    with pytest.raises(DataError, match="must be positive"):
        ImageCache(table, 0, 6, folder=tmp_path)
