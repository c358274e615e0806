"""What is on disk: checksums, damage, a full disk, files larger than memory."""

import errno
import json
import logging
import os
import subprocess
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fmcnet.data import cache as cache_module
from fmcnet.data.cache import ImageCache, UnusableCacheError
from fmcnet.data.readers.sysu import read_sysu
from fmcnet.data.table import Table
from fmcnet.errors import DataError
from tests.data import trees

SIZE = (300, 150)
"""36 images of 4.6 MiB together."""


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return read_sysu(trees.sysu(tmp_path / "data", images=1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"there is no mount command: {error}")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "BLOCK", 1000)


def rebuilt(table: Table, folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Open again: it must be built again, with the right pixels; what was said."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        cache = ImageCache(table, 12, 6, folder=folder)
    assert cache.built
    np.testing.assert_array_equal(cache.images, ImageCache(table, 12, 6, folder=folder / "fresh").images)
    assert not ImageCache(table, 12, 6, folder=folder).built
    assert f"the image cache {cache.path} cannot be used" in caplog.text
    return caplog.text


def test_the_description(tmp_path: Path, table: Table, small_blocks: None) -> None:
    path = ImageCache(table, 12, 6, folder=tmp_path / "cache").path
    facts = json.loads(path.with_suffix(".json").read_text())
    assert (facts["version"], facts["shape"], facts["images"]) == (cache_module.FORMAT, [36, 12, 6, 3], 36)
    assert facts["root"] == str(table.root)
    assert facts["key"] in path.name
    assert facts["bytes"] == path.stat().st_size
    assert facts["crc32"] == f"{zlib.crc32(path.read_bytes()):08x}"


@pytest.mark.parametrize("at", [3, 128, 4000, -1])
def test_a_flipped_byte_is_found(
    tmp_path: Path, table: Table, small_blocks: None, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    folder = tmp_path / "cache"
    path = ImageCache(table, 12, 6, folder=folder).path
    whole = path.read_bytes()
    stored = bytearray(whole)
    stored[at] ^= 1
    path.write_bytes(stored)
    found, right = (f"{zlib.crc32(content):08x}" for content in (path.read_bytes(), whole))
    assert f"its checksum should be {right}, not {found}" in rebuilt(table, folder, caplog)


def test_damage_of_every_other_kind_is_found(
    tmp_path: Path, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    path = ImageCache(table, 12, 6, folder=folder).path
    note = path.with_suffix(".json")
    path.write_bytes(path.read_bytes()[:-5])
    assert "its .json has bytes " in rebuilt(table, folder, caplog)
    note.unlink()
    assert f"{note.name} is missing" in rebuilt(table, folder, caplog)
    for damage in ("{", "[]"):
        note.write_text(damage)
        assert "cannot be read" in rebuilt(table, folder, caplog)
    for name, value in (("version", 0), ("shape", [36, 6, 12, 3]), ("key", "x")):
        note.write_text(json.dumps({**json.loads(note.read_text()), name: value}))
        assert f"its .json has {name} {value}, not " in rebuilt(table, folder, caplog)
    for checksum in (None, 0, "00000000"):
        note.write_text(json.dumps({**json.loads(note.read_text()), "crc32": checksum}))
        assert f"its checksum should be {checksum}" in rebuilt(table, folder, caplog)


def test_a_cache_of_version_0_1_0_is_built_again(
    tmp_path: Path, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds a digest per block, and its .json is of format 1."""
    path = ImageCache(table, 12, 6, folder=tmp_path / "cache").path
    note = path.with_suffix(".json")
    facts = json.loads(note.read_text())
    blocks = [facts.pop("crc32")]
    old = {**facts, "version": 1, "digest": "crc32", "block": 16 * 2**20, "blocks": blocks}
    note.write_text(json.dumps(old))
    assert "its .json has version 1, not 2" in rebuilt(table, tmp_path / "cache", caplog)


def test_of_a_large_file_a_spread_is_checked(
    tmp_path: Path, table: Table, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 blocks of 1000 bytes, of which the first, the fourth and the last are read."""
    monkeypatch.setattr(cache_module, "MAX_BLOCKS", 3)
    path = ImageCache(table, 12, 6, folder=tmp_path / "cache").path
    whole = path.read_bytes()
    for at, found in ((3500, True), (len(whole) - 1, True), (1500, False)):
        stored = bytearray(whole)
        stored[at] ^= 1
        path.write_bytes(stored)
        assert ImageCache(table, 12, 6, folder=tmp_path / "cache").built is found


def test_building_never_holds_many_images(tmp_path: Path, table: Table, small_blocks: None) -> None:
    tracemalloc.start()
    cache = ImageCache(table, *SIZE, folder=tmp_path / "cache")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < cache.images.nbytes / 4


def in_memory(table: Table, folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Build where it cannot be stored: the images are in memory, nothing is left; what was said."""
    with caplog.at_level(logging.WARNING):
        cache = ImageCache(table, *SIZE, folder=folder)
    assert cache.built
    assert cache.path is None
    assert not cache.images.flags.writeable
    assert list(folder.iterdir()) == []
    assert cache.images[-1].any()
    assert "holding 36 images (4.6 MiB) in memory" in caplog.text
    return caplog.text


def test_a_disk_too_small_is_seen_before(
    small_disk: Path, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    assert "5.7 MiB are needed, 2.0 MiB are free" in in_memory(table, small_disk, caplog)


def test_a_disk_that_fills_up_meanwhile(
    small_disk: Path,
    table: Table,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_module, "require_disk", lambda *_: None)
    assert "No space left on device" in in_memory(table, small_disk, caplog)


def test_an_interrupted_checksum_leaves_no_file(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module, "_checksum", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ImageCache(table, 12, 6, folder=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_a_write_that_fails_midway(
    tmp_path: Path, table: Table, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        in_memory(table, tmp_path / "cache", caplog)
    plain = cache_module.write_atomically
    with monkeypatch.context() as patch:
        patch.setattr(
            cache_module,
            "write_atomically",
            lambda to, *how: plain(to, *how) if to.suffix == ".npy" else full(),
        )
        in_memory(table, tmp_path / "cache", caplog)


@pytest.mark.parametrize("fault", [UnusableCacheError("it holds nothing"), OSError(errno.EIO, "input error")])
def test_a_cache_that_does_not_hold_what_was_written_is_removed(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def failing(*_: object) -> None:
        raise fault

    monkeypatch.setattr(cache_module, "_memory_map", failing)
    cache = ImageCache(table, 12, 6, folder=tmp_path / "cache")
    assert cache.path is None  # memory holds the images
    assert list((tmp_path / "cache").iterdir()) == []


def test_neither_disk_nor_memory_has_room(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "require_disk", full)
    monkeypatch.setattr(cache_module, "free_memory", lambda: 5 * 2**20)
    with pytest.raises(DataError) as caught:
        ImageCache(table, *SIZE, folder=tmp_path / "cache")
    said = str(caught.value)
    for part in ("take 4.6 MiB", str(tmp_path / "cache"), "No space left", "only 5.0 MiB", "Set data.cache"):
        assert part in said
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_memory_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 90 kB\nMemAvailable:   50 kB\n")
    monkeypatch.setattr(cache_module, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(cache_module, "CGROUP", tmp_path)
    assert cache_module.free_memory() == 50 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert cache_module.free_memory() == 50 * 1024
    (tmp_path / "memory.max").write_text("40960\n")
    (tmp_path / "memory.stat").write_text("anon 10000\nfile 9999999\n")
    assert cache_module.free_memory() == 30960
