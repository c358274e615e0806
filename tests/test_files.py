"""Files that appear whole: what an error names."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmcnet.data.crop import CropOptions, crop
from fmcnet.errors import DataError, FmcnetError
from fmcnet.files import check_writable, left_in, put_in_place, write_atomically, write_rows
from fmcnet.inference.adapt import Crops, adapt_model
from fmcnet.inference.embed import embed_dataset
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.export.write import export
from fmcnet.inference.fit_calibration import calibrate_model
from fmcnet.inference.fit_projection import project_model
from fmcnet.progress import Progress
from fmcnet.synthetic.generate import _write_atomic
from fmcnet.types import Embeddings, Modality
from tests.cli import run_command


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A folder that this process may not write into, root or not."""
    folder, access = tmp_path / "read-only", os.access
    folder.mkdir()
    monkeypatch.setattr(
        os, "access", lambda path, mode: access(path, mode) and (path != folder or mode == os.F_OK)
    )
    return folder


def test_a_place_that_cannot_be_written_is_named_with_the_cause(tmp_path, read_only):
    check_writable(tmp_path / "new" / "folder" / "x.json", "say --out FILE")
    assert not (tmp_path / "new").exists()
    if os.access("/", os.W_OK):
        check_writable(Path("/"), "say --out FILE")
    (tmp_path / "file").touch()
    for path, cause in (
        (tmp_path / "file" / "x", "a file, not a folder, is at"),
        (read_only / "a" / "x", "write into"),
    ):
        with pytest.raises(DataError, match=f"{path} cannot be written: .*{cause} .*; say --out FILE"):
            check_writable(path, "say --out FILE")


def test_no_work_is_done_for_what_cannot_be_written(tiny_run, tiny_sysu, read_only, monkeypatch):
    for name in ("embed_table", "encode", "_embed"):
        monkeypatch.setattr(Encoder, name, lambda *_, **__: pytest.fail("images were embedded"))
    out = read_only / "new"
    for work, advice in (
        (lambda: calibrate_model(tiny_run, tiny_sysu, out=out, device="cpu"), "--calibration FILE to search"),
        (lambda: project_model(tiny_run, tiny_sysu, dim=4, out=out, device="cpu"), "say --out FOLDER"),
        (
            lambda: adapt_model(tiny_run, Crops((), (), np.empty(0, np.int64)), out, device="cpu"),
            "say --out FOLDER",
        ),
        (lambda: export(tiny_run, out=out, data=tiny_sysu), "say --out FOLDER"),
        (lambda: embed_dataset(tiny_run, tiny_sysu, read_only / "e.npz", device="cpu"), "say --out FILE.npz"),
    ):
        with pytest.raises(
            FmcnetError, match=f"cannot be written: you may not write into {read_only}; .*{advice}"
        ):
            work()


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.ENOENT])
def test_an_error_names_the_file_that_the_user_knows(tmp_path, code):
    def refused(path):
        raise OSError(code, "refused", str(path))

    with pytest.raises(OSError, match="refused") as found:
        write_atomically(tmp_path / "x.json", refused)
    assert (found.value.errno, found.value.filename, found.value.filename2) == (
        code,
        str(tmp_path / "x.json"),
        None,
    )
    assert type(found.value) is type(OSError(code, ""))


def test_a_folder_that_is_not_there_and_one_in_the_files_place(tmp_path):
    with pytest.raises(FileNotFoundError) as found:
        write_atomically(tmp_path / "no" / "x.json", lambda path: path.write_text("x"))
    assert found.value.filename == str(tmp_path / "no" / "x.json")
    (tmp_path / "x.json").mkdir()
    with pytest.raises(IsADirectoryError) as found:
        write_atomically(tmp_path / "x.json", lambda path: path.write_text("x"))
    assert found.value.filename == str(tmp_path / "x.json")
    assert left_in(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError) as found:
        write_atomically(tmp_path / "file" / "x.json", lambda path: path.write_text("x"))
    assert found.value.filename == str(tmp_path / "file" / "x.json")


@pytest.mark.skipif(os.name != "posix", reason="only POSIX systems tell whether a process runs")
def test_what_a_killed_writer_left_goes_at_the_next_write_of_the_name(tmp_path):
    path = tmp_path / "a[1].json"
    code = (
        "import os, pathlib, sys; from fmcnet.files import write_atomically\n"
        "half = lambda path: (path.write_text('half'), os.kill(os.getpid(), 9))\n"
        "write_atomically(pathlib.Path(sys.argv[1]), half)"
    )
    for name in (path.name, "b.json"):
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path / name)]).returncode == -9
    left, other = sorted(left_in(tmp_path))
    number = left.name.rpartition("-")[2]
    kept = [
        other,
        left.with_name(left.name.replace(number, f"{os.getppid()}.tmp")),
        left.with_name(left.name.replace(number, f"{10**30}.tmp")),
        left.with_name(left.name.replace(number, "x.tmp")),
        left.with_name(f".{path.name}.00000000-{number}"),  # of another machine
    ]
    for file in kept:
        file.touch()
    write_atomically(path, lambda file: file.write_text("x"), many=True)
    assert left.exists()
    write_atomically(path, lambda file: file.write_text("x"))
    assert sorted(left_in(tmp_path)) == sorted(kept)


def test_errors_about_other_files_are_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError) as found:
        write_atomically(tmp_path / "x.json", lambda path: (tmp_path / "other").read_text())
    assert found.value.filename == str(tmp_path / "other")


@pytest.fixture
def full_disk():
    """Files take 4 KiB at most: the system's error names no file, as that of a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def test_a_full_disk_is_told_with_the_file(tmp_path, full_disk):
    from fmcnet.models.shipped import replaced

    big = tmp_path / "big"
    big.write_bytes(bytes(9000))
    (tmp_path / "frames").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "frames" / "1.png")
    boxes = tmp_path / "boxes.txt"
    boxes.write_text("1,1,0,0,60,60,1\n")
    found = Embeddings.unlabelled(
        np.ones((99, 99), np.float32), np.zeros(99, np.uint8), np.arange(99).astype(str)
    )

    def copy():
        with replaced(tmp_path / "model") as folder:
            shutil.copy(big, folder / "weights")

    def write():
        with replaced(tmp_path / "model") as folder, (folder / "weights").open("wb") as stream:
            stream.write(bytes(9000))

    for name, work in {
        "x.npz": lambda: write_atomically(tmp_path / "x.npz", found.save),
        "x.csv": lambda: write_rows(tmp_path / "x.csv", [["x" * 9000]]),
        "crops/1_00.png": lambda: crop(
            tmp_path / "frames", boxes, tmp_path / "crops", CropOptions(Modality.VISIBLE)
        ),
        "model/weights": copy,
        "model": write,
        "data/cam1/0001.jpg": lambda: _write_atomic(tmp_path / "data", "cam1/0001.jpg", bytes(9000)),
    }.items():
        with full_disk(), pytest.raises(OSError, match="File too large") as caught:
            work()
        assert caught.value.filename == str(tmp_path / name)


def test_the_journal_of_crops_is_named(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "frames").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "frames" / "1.png")
    (tmp_path / "boxes.txt").write_text("1,1,0,0,60,60,1\n")
    words = (
        "crop",
        tmp_path / "frames",
        tmp_path / "boxes.txt",
        "--out",
        tmp_path / "out",
        "--modality",
        "visible",
    )
    monkeypatch.setattr(Progress, "advance", full)  # as the line before it, of the journal
    done = run_command(*words, code=None)
    assert f"fmcnet: {tmp_path / 'out' / '.crops.jsonl'}: No space left on device" in done.output.replace(
        "\n", ""
    )


def test_a_copy_that_cannot_be_written_is_named_by_its_target(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "there.pth", None, "here.pth")

    monkeypatch.setattr("fmcnet.inference.info.model_info", full)
    assert "fmcnet: here.pth: No space left" in run_command("info", "fmcnet-lite", code=None).output


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "no"), KeyboardInterrupt()])
def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch, fault):
    new, target, old = (tmp_path / name for name in ("new", "model", "old"))
    for folder in (new, target):
        folder.mkdir()
        (folder / "which").write_text(folder.name)
    rename = type(target).rename

    def refused(path, to):
        if path == new:
            raise fault
        return rename(path, to)

    with monkeypatch.context() as patched:
        patched.setattr(type(target), "rename", refused)
        with pytest.raises(type(fault)):
            put_in_place(new, target, old)
    assert (target / "which").read_text() == "model"
    put_in_place(new, target, old)
    assert [(folder / "which").read_text() for folder in (target, old)] == ["new", "model"]


def test_a_model_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    from fmcnet.models.shipped import replaced

    target = tmp_path / "model"
    target.mkdir()
    (target / "which").write_text("first")
    rename = type(target).rename

    def refused(path, to):
        if path.name == "new":
            raise OSError(errno.EIO, "no")
        return rename(path, to)

    monkeypatch.setattr(type(target), "rename", refused)
    with pytest.raises(OSError, match="no"), replaced(target) as folder:
        (folder / "which").write_text("second")
    assert (target / "which").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
