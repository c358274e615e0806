"""Files that changed, moved or went since they were indexed: noticed, named, and never doubled."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fmcnet.errors import GalleryError
from fmcnet.inference.encoder import Encoder
from fmcnet.retrieval import Gallery, Where, indexing
from fmcnet.retrieval import sources as sources_module
from fmcnet.retrieval.freshness import relocate
from fmcnet.retrieval.sources import path_id
from fmcnet.retrieval.sqlite_database import FILES
from tests.retrieval import milvus_stand_in
from tests.retrieval.fakes import image
from tests.retrieval.test_commands import BLUE, RED, RULES, as_json, crops, dated, model, run, wrong

__all__ = ["crops", "model"]


def entries():
    with Gallery("g", read_only=True) as gallery:
        return {entry.id: (entry, vector) for entry, vector in gallery.scan()}


def sources():
    return sorted(str(Path(entry.source).relative_to(Path.cwd())) for entry, _ in entries().values())


def test_pixels_replaced_with_equal_size_and_time_are_noticed(tmp_path):
    folder = tmp_path / "bitmaps"
    folder.mkdir()
    path = folder / "gate1.bmp"
    for colour, expected in ((RED, []), (BLUE, [str(path)])):
        Image.new("RGB", (8, 16), colour).save(path)
        os.utime(path, (1.6e9, 1.6e9))
        assert as_json("index", "g", folder, *RULES)["changed"] == expected
    said = run("index", "g", folder, *RULES).output
    assert f"{path}: content is sha256 " in said
    assert "--existing update" in said
    [(_, before)] = entries().values()
    made = as_json("index", "g", folder, *RULES, "--existing", "update")
    assert (made["replaced"], made["changed"]) == (1, [str(path)])
    [(_, after)] = entries().values()
    assert before @ after < 0.9
    os.utime(path, (1.7e9, 1.7e9))  # touched only
    quiet = as_json("index", "g", folder, *RULES)
    assert (quiet["changed"], quiet["differences"], quiet["notes"]) == ([], [], [])


def test_encoding_a_copy_again_brings_no_removed_image_back(crops):
    removed, copy = crops / "gate1/1_0900.png", crops / "gate1/4_0900.png"
    shutil.copy(removed, copy)
    run("index", "g", crops, *RULES)
    run("gallery", "remove", "g", "--id", path_id(removed), "--yes")
    for options in (["--existing", "replace"], ["--existing", "update", "--keep-images"], []):
        made = as_json("index", "g", crops, *RULES, *options)
        assert (made["added"], made["removed_before"]) == (0, [str(removed)])


@pytest.mark.parametrize("existing", ["update", "replace"])
def test_what_changes_while_images_are_encoded_again_stays_changed(crops, monkeypatch, existing):
    """A removal and new metadata of another process, at the longest step."""
    paths = sorted(crops.rglob("*.png"))
    run("index", "g", crops, *RULES)
    for path in paths:
        Image.open(path).transpose(Image.Transpose.ROTATE_180).save(path)
    gone, kept = path_id(paths[0]), path_id(paths[1])
    encode = Encoder.encode

    def slow(*arguments, **options):
        with Gallery("g") as gallery:
            gallery.remove(Where(ids=[gone]))
            gallery.update([kept], tags=["wanted"], track="t1")
        return encode(*arguments, **options)

    monkeypatch.setattr(Encoder, "encode", slow)
    made = as_json("index", "g", crops, *RULES, "--existing", existing)
    assert (made["added"], made["replaced"], made["already"]) == (0, len(paths) - 1, len(paths) - 1)
    assert made["removed_before"] == [str(paths[0])]
    found = {name: entry for name, (entry, _) in entries().items()}
    assert gone not in found
    assert (found[kept].tags, found[kept].track) == (("wanted",), "t1")


def test_an_image_that_changed_before_its_removal_stays_removed(crops):
    changed, before, after = (crops / f"gate1/{name}_0900.png" for name in (1, 8, 9))
    run("index", "g", crops, *RULES)
    shutil.copy(changed, before)
    image(7, 99, 180).save(changed)
    shutil.copy(changed, after)
    (crops / "gate1/2_0910.png").unlink()  # its removal has no file to look at
    run("gallery", "remove", "g", "--camera", "1", "--yes")
    made = as_json("index", "g", crops, *RULES)
    assert (made["added"], made["removed_before"]) == (0, [str(changed), str(before), str(after)])


def test_a_newer_image_at_the_path_of_an_expired_entry_is_added(crops):
    """A camera that writes its oldest file anew: the person in it was never removed."""
    index = dated(crops)
    path = min(Path("dated").rglob("*.png"), key=lambda path: path.relative_to("dated"))
    image(7, 99, 180).save(path)
    run("gallery", "expire", "g", "--keep", "1d", "--yes", "--all")
    made = as_json(*index)
    assert (made["added"], len(made["removed_before"])) == (1, 1)


def test_a_cluster_tells_that_it_notices_no_changed_files(crops, monkeypatch):
    milvus_stand_in.install(monkeypatch)
    index = ("index", "milvus://localhost:19530/people", crops, *RULES)
    assert as_json(*index)["notes"] == []
    image(*BLUE).save(crops / "gate1/1_0900.png")
    for existing in ("keep", "update"):
        made = as_json(*index, "--existing", existing)
        assert (made["replaced"], made["changed"]) == (0, [])
        assert made["notes"] == [
            "4 entries are of a cluster, which does not notice changed files: --existing replace encodes all anew"
        ]
    made = as_json(*index, "--existing", "replace")
    assert (made["replaced"], made["notes"]) == (4, [])


def test_a_changed_file_that_cannot_be_read_is_still_changed_later(crops):
    run("index", "g", crops, *RULES)
    path = crops / "gate1/1_0900.png"
    path.write_text("no image")
    made = as_json("index", "g", crops, *RULES, "--existing", "update", "--on-error", "skip")
    assert (made["replaced"], len(made["faults"])) == (0, 1)
    assert as_json("index", "g", crops, *RULES)["changed"] == [str(path)]


def test_moved_images_are_told_and_not_doubled_then_relocated(crops, tmp_path):
    run("index", "g", crops, *RULES)
    old = entries()
    new = tmp_path / "there" / "people"
    new.parent.mkdir()
    crops.rename(new)
    made = as_json("index", "g", new, *RULES)
    assert (made["added"], made["entries"], len(made["moved"])) == (0, 4, 4)
    assert made["moved"][0] == {"path": f"{new}/gate1/1_0900.png", "before": f"{crops}/gate1/1_0900.png"}
    said = run("index", "g", new, *RULES).output.replace("\n", "")
    assert f"fmcnet gallery relocate g {crops} {new}" in said

    assert as_json("gallery", "relocate", "g", crops, new, "--dry-run")["would_relocate"] == 4
    assert entries().keys() == old.keys()
    asked = run("gallery", "relocate", "g", crops, new, input="y\n")
    assert "Relocate 4 of 4 entries?" in asked.output
    names = ("gate1/1_0900", "gate1/2_0910", "gate2/1_1000", "gate2/3_1010")
    assert sources() == [f"there/people/{name}.png" for name in names]
    for name, (entry, vector) in entries().items():
        assert name == path_id(Path(entry.source))
        before, same = old[path_id(crops / Path(entry.source).relative_to(new))]
        assert (vector == same).all()
        assert entry.camera == before.camera
    again = as_json("index", "g", new, *RULES)
    assert (again["added"], again["already"], again["moved"], again["changed"]) == (0, 4, [], [])
    assert as_json("gallery", "remove", "g", "--camera", "1", "--yes")["removed"] == 2  # filters still hold


def test_an_image_that_moved_beside_its_copy_is_reported_as_moved(crops):
    old, copy = crops / "gate1/1_0900.png", crops / "gate1/4_0900.png"
    shutil.copy(old, copy)
    assert as_json("index", "g", crops, *RULES)["added"] == 5
    first, second = crops / "gate1/5_0900.png", crops / "gate1/6_0900.png"
    old.rename(first)
    shutil.copy(copy, second)
    made = as_json("index", "g", crops, *RULES)
    assert made["moved"] == [{"path": str(first), "before": str(old)}]
    assert made["added"] == 1
    assert made["notes"][0] == f"1 new images are copies of indexed ones, the first {second} of {copy}"


def test_relocation_refuses_what_would_collide_or_match_nothing(crops, tmp_path):
    run("index", "g", crops, *RULES)
    assert "no entry whose source is" in wrong("gallery", "relocate", "g", "elsewhere", "x", "--yes")
    shutil.copytree(crops, tmp_path / "copy")
    made = as_json("index", "g", tmp_path / "copy", *RULES)
    assert (made["added"], made["moved"]) == (4, [])  # both are there: copies
    assert "4 new images are copies" in made["notes"][0]
    before = entries().keys()
    taken = wrong("gallery", "relocate", "g", crops, "copy", "--yes")
    assert "already has 4 of the 4" in taken
    assert "with fmcnet index --prune (of a folder that is gone: --prune --prune-roots)" in taken
    assert "cannot ask" in wrong("gallery", "relocate", "g", crops, "other", "--json")
    assert entries().keys() == before
    assert "none of the 4 files is at other" in wrong("gallery", "relocate", "g", crops, "other", "--yes")
    assert entries().keys() == before
    made = as_json("gallery", "relocate", "g", crops, "other", "--yes", "--missing-ok")
    assert (made["relocated"], made["files_missing"]) == (4, 4)


def test_relocation_into_a_folder_below_the_old_one(tmp_path):
    with Gallery("g", model="m") as gallery:
        place = tmp_path / "a"
        paths = [place / "x.png", place / "b" / "x.png"]
        ids = [path_id(path) for path in paths]
        gallery.add([[1, 0], [0, 1]], modality="visible", ids=ids, source=paths)
        assert relocate(gallery, str(place), str(place / "b")).matched == 2
        found = {entry.source: vector.tolist() for entry, vector in gallery.scan()}
        assert found == {f"{place}/b/x.png": [1, 0], f"{place}/b/b/x.png": [0, 1]}
        assert gallery.get(path_id(place / "b/x.png")).source == f"{place}/b/x.png"
        gallery.add([[1, 1]], modality="visible", ids=["free"], source="s3://bucket/a/1.png")
        gallery.add([[1, 2]], modality="visible", ids=["mine"], source="/of/python/1.png")
        assert relocate(gallery, "/of/python", "/nowhere", dry_run=True) == (1, 1)
        assert relocate(gallery, "s3://bucket/a", "s3://other", dry_run=True).missing == 0
        relocate(gallery, "s3://bucket/a", "s3://other")
        assert gallery.get("free").source == "s3://other/1.png"
        with pytest.raises(GalleryError, match="no entry whose source is s3://bucke"):
            relocate(gallery, "s3://bucke", "x")  # no whole name


def test_prune_removes_entries_whose_files_are_gone(crops):
    run("index", "g", crops, *RULES)
    with Gallery("g") as gallery:  # by another program, of another machine's file
        gallery.add(
            [[1, 0, 0]], modality="visible", ids=["http"], source="/camera/1.png", model=_model(gallery)
        )
    (crops / "gate1/1_0900.png").unlink()
    shown = as_json("index", "g", crops, *RULES, "--prune", "--dry-run")
    assert shown["would_prune"] == 1
    assert shown["gone"] == [
        {"folder": str(crops), "gone": 1, "entries": 4, "first": f"{crops}/gate1/1_0900.png"}
    ]
    assert len(entries()) == 5
    assert "--json cannot ask" in wrong("index", "g", crops, *RULES, "--prune", "--json")
    assert "go with --prune" in wrong("index", "g", crops, *RULES, "--yes")
    run("index", "g", crops, *RULES, "--prune", input="n\n", code=1)
    assert len(entries()) == 5
    said = run("index", "g", crops, *RULES, "--prune", input="y\n").output
    assert "1 of 4 files are gone" in said
    assert "Remove 1 of 5 entries" in said
    assert len(entries()) == 4
    assert as_json("index", "g", crops, *RULES, "--prune", "--yes")["pruned"] == 0
    shutil.copy("night.png", crops / "gate1/1_0900.png")  # a file that comes back was not removed by anybody
    assert as_json("index", "g", crops, *RULES)["added"] == 1


def test_a_wrong_option_prunes_nothing(crops):
    run("index", "g", crops, *RULES)
    (crops / "gate1/1_0900.png").unlink()
    before = len(entries())
    prune = ("index", "g", crops, "--modality", "visible", "--prune", "--yes")
    assert "is no regular expression" in wrong(*prune, "--pid-from-name", "(")
    assert "is no duration" in wrong(*prune, "--keep", "often")
    assert len(entries()) == before


def test_prune_takes_a_missing_disk_for_no_deletion(crops, tmp_path):
    run("index", "g", crops, *RULES)
    crops.rename(tmp_path / "unmounted")
    crops.mkdir()  # the mount point
    (tmp_path / "more").mkdir()
    shutil.copy("night.png", tmp_path / "more" / "gate9.png")
    kept = as_json("index", "g", "more", *RULES, "--prune", "--yes")
    assert (kept["pruned"], kept["added"], kept["entries"]) == (0, 0, 4)  # night.png is gate1/1_0900, moved
    assert kept["gone_kept"][0]["folder"] == str(crops)
    made = as_json("index", "g", "more", *RULES, "--prune", "--prune-roots", "--yes")
    assert (made["pruned"], made["added"], made["entries"]) == (4, 1, 1)


@pytest.mark.parametrize("how", ["empty", "nested", "link"])
def test_prune_takes_a_missing_disk_below_the_folder_for_no_deletion(crops, tmp_path, how):
    disk = crops / "gate2"
    if how != "empty":
        disk /= "disk"
        shutil.copytree(crops / "gate1", disk / "gate3")
    run("index", "g", crops, *RULES)
    shutil.rmtree(disk)
    disk.symlink_to(tmp_path / "unmounted") if how == "link" else disk.mkdir()
    (crops / "gate1/1_0900.png").unlink()
    made = as_json("index", "g", crops, *RULES, "--prune", "--yes")
    assert (made["pruned"], [folder["folder"] for folder in made["gone_kept"]]) == (1, [str(disk)])
    assert as_json("index", "g", crops, *RULES, "--prune", "--prune-roots", "--yes")["pruned"] == 2


@pytest.mark.parametrize("how", ["gone", "file"])
def test_prune_removes_the_entries_of_a_folder_that_was_deleted(crops, how):
    run("index", "g", crops, *RULES)
    shutil.rmtree(crops / "gate2")
    if how == "file":
        (crops / "gate2").write_text("no folder")
    assert as_json("index", "g", crops, *RULES, "--prune", "--yes")["pruned"] == 2


def test_galleries_without_records_are_indexed_on(crops):
    run("index", "g", crops, *RULES)
    with Gallery("g") as gallery:
        gallery._store.database.connection.execute(f"DROP TABLE {FILES}")
    (crops / "gate1/1_0900.png").unlink()
    assert as_json("index", "g", crops, *RULES, "--prune", "--yes")["pruned"] == 1
    with Gallery("g") as gallery:
        gallery._store.database.connection.execute(f"DROP TABLE {FILES}")
    assert any(
        "3 entries have no record of their files" in one
        for one in as_json("index", "g", crops, *RULES)["notes"]
    )
    quiet = as_json("index", "g", crops, *RULES)
    assert (quiet["notes"], quiet["already"]) == ([], 3)
    run("gallery", "relocate", "g", crops, "other", "--yes", "--missing-ok")


def test_a_record_goes_with_its_entry(crops):
    run("index", "g", crops, *RULES)
    run("gallery", "remove", "g", "--camera", "1", "--yes")
    with Gallery("g", read_only=True) as gallery:
        database = gallery._store.database
        assert database.run(f"SELECT count(*) FROM {FILES}") == [(2,)]
        assert len(list(gallery.files.origins())) == 2
    assert b"gate1/1_0900.png" not in b"".join(path.read_bytes() for path in Path("g").iterdir())


def _model(gallery):
    return gallery.settings.model


def tables(crops, *folders):
    """A CSV of the same images in each folder beside them."""
    for folder in folders:
        (crops.parent / folder).mkdir()
        rows = "".join(
            f"../{path.relative_to(crops.parent).as_posix()},ir\n" for path in sorted(crops.rglob("*.png"))
        )
        (crops.parent / folder / "t.csv").write_text(f"path,modality\n{rows}")
    return [("index", "g", crops.parent / folder / "t.csv", "--model", "m") for folder in folders]


def test_images_outside_the_folders_of_two_tables_are_one_entry_each(crops, monkeypatch):
    first, second = tables(crops, "a", "b")
    assert as_json(*first)["added"] == 4
    assert [as_json(*again)["already"] for again in (first, second)] == [4, 4]
    assert as_json("index", "g", crops, *RULES[:4])["already"] == 4
    assert sources() == [str(path.relative_to(Path.cwd())) for path in sorted(crops.rglob("*.png"))]
    assert as_json("gallery", "relocate", "g", crops, crops.parent / "c", "--dry-run")["would_relocate"] == 4


@pytest.mark.parametrize("place", ["g", "milvus://localhost:19530/people"])
def test_entries_that_an_older_version_made_of_a_path_with_dots_are_known(crops, monkeypatch, place):
    milvus_stand_in.install(monkeypatch)
    first, second = tables(crops, "a", "b")
    with monkeypatch.context() as older:
        older.setattr(sources_module, "without_dots", str)
        assert as_json("index", place, *first[2:])["added"] == 4
    made = as_json("index", place, *first[2:])
    assert (made["added"], made["already"], made["entries"]) == (0, 4, 4)
    if place != "g":
        return
    # Another table finds them by their content, and tells the command that renames them.
    said = run(*second).output.replace("\n", "")
    [(_, rename)] = re.findall(r"(if these files were moved: fmcnet) (gallery relocate g \S+ \S+)", said)
    assert as_json(*shlex.split(rename), "--yes")["relocated"] == 4
    assert sources() == [str(path.relative_to(Path.cwd())) for path in sorted(crops.rglob("*.png"))]
    assert all(name == path_id(Path(entry.source)) for name, (entry, _) in entries().items())
    assert [as_json(*again)["already"] for again in (first, second)] == [4, 4]


def test_a_file_that_an_older_version_indexed_twice_is_not_relocated_onto_itself(crops, monkeypatch):
    first, second = tables(crops, "a", "b")
    with monkeypatch.context() as older:
        older.setattr(sources_module, "without_dots", str)
        assert [as_json(*one)["added"] for one in (first, second)] == [4, 4]
    assert [as_json(*one)["already"] for one in (first, second)] == [4, 4]
    crops.rename(crops.parent / "c")
    said = wrong("gallery", "relocate", "g", crops, crops.parent / "c", "--yes")
    assert "g has 4 files under two paths" in said
    assert len(entries()) == 8


def test_an_image_removed_by_its_path_with_dots_stays_removed(crops, monkeypatch):
    [first] = tables(crops, "a")
    with monkeypatch.context() as older:
        older.setattr(sources_module, "without_dots", str)
        older.setattr(indexing, "compare_files", lambda *_: {})  # no record of the file, as in 0.1.0
        assert as_json(*first)["added"] == 4
    assert as_json("gallery", "remove", "g", "--modality", "ir", "--yes", "--all")["removed"] == 4
    made = as_json(*first)
    assert (made["added"], len(made["removed_before"])) == (0, 4)


def test_dots_behind_a_linked_folder_lead_to_where_it_points(crops):
    table = crops.parent / "a" / "t.csv"
    tables(crops, "a")
    (crops.parent / "a" / "link").symlink_to(crops / "gate1")
    path = sorted(crops.rglob("*.png"))[-1]  # of gate2, beside gate1
    (crops.parent / "a" / "gate2").mkdir()
    image(*RED).save(crops.parent / "a" / "gate2" / path.name)  # which the path without dots would name
    table.write_text(f"path,modality\nlink/../gate2/{path.name},ir\n")
    assert as_json("index", "g", table, "--model", "m")["added"] == 1
    [(entry, _)] = entries().values()
    assert Path(entry.source).samefile(path)
    there = crops.parent / "a" / "gate2"
    assert "no entry whose source is" in wrong("gallery", "relocate", "g", there, "moved", "--dry-run")
