"""Where caches are, which there are, and removing them."""

import os
import shutil
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmcnet.data.cache import ImageCache, cache_folder, default_folder, lock_path
from fmcnet.data.cache_pruning import list_caches, prune_caches
from fmcnet.data.check import check
from fmcnet.data.readers import read_dataset, read_sysu
from fmcnet.data.readers.csv import write_csv
from fmcnet.data.table import Table
from fmcnet.errors import ConfigError, DataError
from fmcnet.files import lock_file
from fmcnet.parsing import parse_duration
from tests.data import trees


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return read_sysu(trees.sysu(tmp_path / "data", images=1))


def test_the_setting(tmp_path: Path) -> None:
    assert cache_folder("auto", tmp_path) == default_folder()
    assert cache_folder("beside", tmp_path) == tmp_path / ".fmcnet-cache"
    assert cache_folder("~/x", tmp_path) == Path.home() / "x"


@pytest.mark.parametrize("layout", ["sysu", "regdb", "llcm", "csv"])
def test_a_cache_beside_a_dataset_is_no_part_of_it(
    tmp_path: Path, request: pytest.FixtureRequest, layout: str
) -> None:
    source = request.getfixturevalue("tiny_sysu" if layout == "csv" else f"tiny_{layout}")
    root = shutil.copytree(source, tmp_path / "data")
    path = root
    if layout == "csv":
        path = root / "data.csv"
        write_csv(read_dataset(root), path)
        shutil.rmtree(root / "exp")
    before, checked = read_dataset(path), check(path, images=False).to_dict()
    cache = ImageCache(before, 12, 6, folder="beside")
    assert cache.path.parent == root / ".fmcnet-cache"
    after = read_dataset(path)
    assert (after.name, after.notes, after.records()) == (before.name, before.notes, before.records())
    assert check(path, images=False).to_dict() == checked
    assert not ImageCache(after, 12, 6, folder="beside").built


def test_the_cache_of_changed_images_replaces_the_old_one(tmp_path: Path, table: Table) -> None:
    folder = tmp_path / "cache"
    before = ImageCache(table, 12, 6, folder=folder)
    kept = before.images.copy()
    others = [
        ImageCache(table, 6, 12, folder=folder).path,
        ImageCache(table.select(split="test"), 12, 6, folder=folder).path,
    ]
    status = table.full_path(0).stat()
    Image.new("RGB", (6, 12), "red").save(table.full_path(0))
    os.utime(table.full_path(0), ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = ImageCache(table, 12, 6, folder=folder)
    assert after.built
    assert after.images[0, 0, 0, 0] > 200 > kept[0, 0, 0, 0]
    np.testing.assert_array_equal(after.images[1:], kept[1:])
    np.testing.assert_array_equal(before.images, kept)
    stems = {path.stem for path in (after.path, *others)}
    assert {p.name for p in folder.iterdir()} == {f"{s}{e}" for s in stems for e in (".npy", ".json")}


def test_listing_and_pruning(tmp_path: Path, table: Table) -> None:
    folder = tmp_path / "cache"
    assert list_caches(folder).caches == prune_caches(folder, timedelta(0)).removed == ()
    old = ImageCache(table, 12, 6, folder=folder).path
    new = ImageCache(table, 24, 10, folder=folder).path
    bare = ImageCache(table, 6, 12, folder=folder).path
    bare.with_suffix(".json").unlink()
    foreign = folder / "mine.npy"
    foreign.write_bytes(b"not ours")
    past = time.time() - 40 * 86400
    for path in (old.with_suffix(".json"), bare):
        os.utime(path, (past, past))
    found = list_caches(folder)
    assert {entry.name for entry in found.caches} == {old.name, new.name, bare.name}
    first = found.caches[0]
    assert (first.name, first.images, first.size, first.root) == (new.name, 36, "24 x 10", str(table.root))
    assert first.bytes == new.stat().st_size
    assert "will be built again" in "\n".join(found.lines())

    ImageCache(table, 12, 6, folder=folder)  # used again now
    assert [entry.name for entry in prune_caches(folder, timedelta(days=30)).removed] == [bare.name]
    os.utime(old.with_suffix(".json"), (past, past))
    temporary = folder / f".{old.stem}.{'0' * 32}.building"  # of version 0.1.0
    temporary.write_bytes(b"")
    with lock_file(lock_path(new), optional=True):
        (folder / f".{new.name}.123.tmp").write_bytes(b"")
    (folder / ".other.building").write_bytes(b"")
    result = prune_caches(folder, timedelta(days=30))
    assert [entry.name for entry in result.removed] == [old.name]
    assert result.temporaries == 2
    assert "removed 1" in "\n".join(result.lines())
    names = {new.name, new.with_suffix(".json").name, foreign.name, ".other.building"}
    assert {p.name for p in folder.iterdir()} == names


def test_a_cache_that_is_being_built_is_not_pruned(tmp_path: Path, table: Table) -> None:
    path = ImageCache(table, 12, 6, folder=tmp_path / "cache").path
    with lock_file(lock_path(path), optional=True):
        assert prune_caches(path.parent, timedelta(0)).removed == ()
    assert prune_caches(path.parent, parse_duration("999999999w")).removed == ()
    assert path.exists()
    assert [cache.name for cache in prune_caches(path.parent, timedelta(0)).removed] == [path.name]
    assert list(path.parent.iterdir()) == []


def test_durations() -> None:
    assert parse_duration("30d") == timedelta(days=30)
    assert parse_duration(" 12h") == timedelta(hours=12)
    assert parse_duration("2w") == timedelta(weeks=2)
    for bad in ("30", "d", "-1d", "1y", "", "1.5d", "99999999999d"):
        with pytest.raises(ConfigError, match=f"'{bad}' is no duration: write a whole number and a unit"):
            parse_duration(bad)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(DataError, match="is a file"):
        list_caches(tmp_path / "x")
