"""Files that appear whole: what an error names."""

from __future__ import annotations

import errno

import pytest

from fmcnet.files import left_in, put_in_place, write_atomically


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


def test_errors_about_other_files_are_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError) as found:
        write_atomically(tmp_path / "x.json", lambda path: (tmp_path / "other").read_text())
    assert found.value.filename == str(tmp_path / "other")


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
