"""Files that changed, moved or went since they were indexed: noticed, named, and never doubled."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fmcnet.errors import GalleryError
from fmcnet.retrieval import Gallery
from fmcnet.retrieval.freshness import relocate
from fmcnet.retrieval.sources import path_id
from fmcnet.retrieval.sqlite_database import FILES
from tests.retrieval import milvus_stand_in
from tests.retrieval.fakes import picture
from tests.retrieval.test_commands import BLUE, RED, RULES, as_json, crops, model, run, wrong

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


def test_a_cluster_tells_that_it_notices_no_changed_files(crops, monkeypatch):
    milvus_stand_in.install(monkeypatch)
    index = ("index", "milvus://localhost:19530/people", crops, *RULES)
    assert as_json(*index)["notes"] == []
    picture(*BLUE).save(crops / "gate1/1_0900.png")
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


def test_moved_pictures_are_told_and_not_doubled_then_relocated(crops, tmp_path):
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


def test_a_picture_that_moved_beside_its_copy_is_reported_as_moved(crops):
    old, copy = crops / "gate1/1_0900.png", crops / "gate1/4_0900.png"
    shutil.copy(old, copy)
    assert as_json("index", "g", crops, *RULES)["added"] == 5
    first, second = crops / "gate1/5_0900.png", crops / "gate1/6_0900.png"
    old.rename(first)
    shutil.copy(copy, second)
    made = as_json("index", "g", crops, *RULES)
    assert made["moved"] == [{"path": str(first), "before": str(old)}]
    assert made["added"] == 1
    assert made["notes"][0] == f"1 new pictures are copies of indexed ones, the first {second} of {copy}"


def test_relocation_refuses_what_would_collide_or_match_nothing(crops, tmp_path):
    run("index", "g", crops, *RULES)
    assert "no entry whose source is" in wrong("gallery", "relocate", "g", "elsewhere", "x", "--yes")
    shutil.copytree(crops, tmp_path / "copy")
    made = as_json("index", "g", tmp_path / "copy", *RULES)
    assert (made["added"], made["moved"]) == (4, [])  # both are there: copies
    assert "4 new pictures are copies" in made["notes"][0]
    before = entries().keys()
    assert "already has 4 of the 4" in wrong("gallery", "relocate", "g", crops, "copy", "--yes")
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
