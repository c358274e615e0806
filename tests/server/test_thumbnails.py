"""Which thumbnails the page gets, and that none comes from elsewhere."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, features

from fmcnet.errors import FmcnetError
from fmcnet.inference.image_input import make_thumbnail
from fmcnet.retrieval import Gallery, Where
from fmcnet.retrieval.backup import backup, restore
from fmcnet.retrieval.file_records import FileRecord
from fmcnet.server.limits import Limits
from fmcnet.server.thumbnails import KeptThumbnails, SourceFolder, thumbnail_name
from fmcnet.server.uploads import UploadError, decode
from tests.server.service import DIGEST, bands, encoded, png, running
from tests.server.test_starving import many_segments


@pytest.fixture
def tree(tmp_path):
    """root/ with an image, a text, links inside and out; secret.png beside it."""
    root = tmp_path / "root"
    (root / "cam1").mkdir(parents=True)
    (root / "cam1" / "a.png").write_bytes(png(1))
    (root / "notes.txt").write_text("secret words")
    (tmp_path / "secret.png").write_bytes(png(2))
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "inside.png").symlink_to(root / "cam1" / "a.png")
    (tmp_path / "root-beside").mkdir()
    (tmp_path / "root-beside" / "b.png").write_bytes(png(3))
    os.mkfifo(root / "pipe.png")
    return root


def kept_in(folder):
    return list((folder / "kept").glob("*.jpg"))


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it never came")


def test_sources_below_the_root_and_no_others(tree):
    sources = SourceFolder(tree)
    for inside in ("cam1/a.png", str(tree / "cam1" / "a.png"), "cam1/../cam1/a.png", "inside.png"):
        assert sources.read(inside) == png(1)
    outside = tree.parent
    for other in (
        "../secret.png", str(outside / "secret.png"), "out.png", "pipe.png", "cam1", "", ".", "/",
        "cam1/a.png\0", "x" * 5000, "../root-beside/b.png", "//etc/passwd", "http://host/a.png", "none.png",
    ):  # fmt: skip
        assert sources.read(other) is None, other


def test_a_link_root_is_followed_once(tree):
    link = tree.parent / "link"
    link.symlink_to(tree)
    assert SourceFolder(link).read("cam1/a.png") is not None
    with pytest.raises(FmcnetError, match="no folder"):
        SourceFolder(tree / "notes.txt")


def test_the_route_shows_sources(tree, tmp_path):
    with running(tmp_path, sources=tree) as one:
        one.add(1, source="cam1/a.png")
        one.add(2, source="../secret.png")
        one.add(3, source="notes.txt")
        shown = Image.open(io.BytesIO(one.client.get("/v1/images/crop-1").content))
        assert (shown.format, shown.size) == ("JPEG", (24, 48))
        for other in ("crop-2", "crop-3"):
            assert one.client.get(f"/v1/images/{other}").status_code == 404


def test_a_source_that_has_changed_since_it_was_indexed_is_not_shown(tree, tmp_path):
    """It may be of another person."""
    place = tree / "cam1" / "a.png"
    with running(tmp_path, sources=tree) as one:
        one.add(1, source=str(place))
        record = FileRecord(str(place), str(tree), "of another copy", hashlib.sha256(png(1)).hexdigest())
        one.service.gallery.files.put({"crop-1": record})
        assert one.client.get("/v1/images/crop-1").status_code == 200
        place.write_bytes(png(2))
        reply = one.client.get("/v1/images/crop-1")
        assert reply.status_code == 404
        assert reply.json()["error"]["what"] == "the file has changed since it was indexed"


def test_a_source_that_is_slow_to_decode_holds_nobody(tree, tmp_path):
    """It is decoded where uploads are, and ended as they are."""
    (tree / "heavy.jpg").write_bytes(many_segments(300_000))
    with running(tmp_path, sources=tree, limits=Limits(decode_seconds=0.5, wait=0.001)) as one:
        one.add(1, source="heavy.jpg")
        with ThreadPoolExecutor(4) as pool:
            shown = [pool.submit(one.client.get, "/v1/images/crop-1") for _ in range(4)]
            time.sleep(0.1)
            start = time.monotonic()
            assert one.search(1).status_code == 200
            assert time.monotonic() - start < 2.0  # all four threads of the gallery were busy for minutes
            assert {reply.result().status_code for reply in shown} == {404}


def test_kept_thumbnails_are_named_by_hashes_of_id_and_embedding(tmp_path):
    kept = KeptThumbnails(tmp_path / "kept", "people.gallery")
    data, (one, other) = make_thumbnail(bands(1)), np.eye(2, dtype=np.float32)
    ids = ["../../evil", "/etc/passwd", "a", "x" * 256, "\udcff"]
    names = [thumbnail_name(entry_id, one) for entry_id in ids]
    for name in names:
        assert re.fullmatch(r"[0-9a-f]{64}\.jpg", name)
        kept.keep(name, data)
        assert kept.read(name) == data
    assert kept.read(thumbnail_name("other", one)) is None
    assert kept.read(thumbnail_name("a", other)) is None
    (kept.folder / names[0]).unlink()
    (kept.folder / names[0]).mkdir()  # which no unlink removes
    assert kept.find_others([names[2]]) == {*names} - {names[2]}
    assert kept.remove(names[:2] + names[3:]) == 1
    assert kept.read(names[0]) is None
    (kept.folder / names[0]).rmdir()
    assert not list(kept.folder.glob(names[1]))
    assert kept.read(names[2]) == data
    kept.remove([names[2]])
    kept.remove([names[2]])
    assert kept.read(names[2]) is None


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_thumbnail_is_of_the_very_entry(tmp_path, dtype):
    """Whoever replaces the entry, or the gallery; before, the thumbnail of the id was shown."""
    Gallery(tmp_path / "people.gallery", dtype=dtype).close()
    with running(tmp_path, keep=True) as one:
        shown = lambda: one.client.get("/v1/images/crop-3")  # noqa: E731
        one.add(3)
        assert shown().content == make_thumbnail(bands(3))
        one.service.searcher.add(
            bands(15), "visible", ids=["crop-3"], on_duplicate="replace", keep_images=True, progress=False
        )
        assert shown().content == one.service.gallery.thumbnail("crop-3") != make_thumbnail(bands(3))
    with running(tmp_path, keep=True) as one:
        shown = lambda: one.client.get("/v1/images/crop-3")  # noqa: E731
        assert shown().content == one.service.gallery.thumbnail("crop-3")
        wait_for(lambda: not kept_in(tmp_path))
        assert one.add(3, on_duplicate="replace").json()["replaced"] == 1
        assert shown().content == make_thumbnail(bands(3))
        one.add(4, id="crop-3", on_duplicate="skip")
        assert shown().content == make_thumbnail(bands(3))
        one.add(4, id="crop-3", on_duplicate="replace")
        assert shown().content == make_thumbnail(bands(4))
        assert len(kept_in(tmp_path)) == 1
        place = tmp_path / "people.gallery"
        place.rename(tmp_path / "away")
        with Gallery(place) as gallery:
            gallery.add(np.ones((1, 12)), modality="visible", ids=["crop-3"], model=DIGEST)
        assert shown().status_code == 404


def test_a_replaced_crop_goes_though_the_new_one_cannot_be_kept(tmp_path, monkeypatch):
    with running(tmp_path, keep=True) as one:
        one.add(3)

        def keep(name, data):
            raise OSError("full")

        monkeypatch.setattr(one.service.kept, "keep", keep)
        [note] = one.add(4, id="crop-3", on_duplicate="replace").json()["notes"]
        assert "not all of their thumbnails could be kept" in note
        assert one.client.get("/v1/images/crop-3").status_code == 404
        assert not kept_in(tmp_path)


def test_what_a_killed_service_left_half_written_goes(tmp_path):
    KeptThumbnails(tmp_path / "kept", "one")
    left = tmp_path / "kept" / f".{thumbnail_name('a', np.ones(2, np.float32))}.17.tmp"
    left.write_bytes(b"half")
    KeptThumbnails(tmp_path / "kept", "one")
    assert not left.exists()


def test_a_folder_is_of_one_gallery(tmp_path):
    KeptThumbnails(tmp_path / "kept", "one")
    KeptThumbnails(tmp_path / "kept", "one")
    with pytest.raises(FmcnetError, match="of one, not of two"):
        KeptThumbnails(tmp_path / "kept", "two")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FmcnetError, match="other files"):
        KeptThumbnails(tmp_path / "other", "one")


def test_crops_of_entries_removed_elsewhere_are_forgotten_at_the_start(tmp_path):
    with running(tmp_path, keep=True) as one:
        one.add(1, 2)
        one.service.gallery.remove(Where(ids=["crop-1"]))
    assert len(kept_in(tmp_path)) == 2
    with running(tmp_path, keep=True) as one:
        wait_for(lambda: len(kept_in(tmp_path)) == 1)
        embedding = one.service.gallery.embedding("crop-2")
        assert [at.name for at in kept_in(tmp_path)] == [thumbnail_name("crop-2", embedding)]


@pytest.mark.parametrize("noted", [True, False])
def test_thumbnails_stay_when_the_gallery_is_missing(tmp_path, noted):
    """A new one is made where a disk is missing. Earlier versions noted the gallery's place alone."""
    place, away, owner = tmp_path / "people.gallery", tmp_path / "away", tmp_path / "kept" / "gallery.txt"
    for _ in range(2):  # a gallery that stays empty is removed, and has another name then
        with running(tmp_path, keep=True):
            pass
        shutil.rmtree(place)
    with running(tmp_path, keep=True) as one:
        one.add(1, 2)
        told = f"people.gallery\n{one.service.gallery.unique_name}\n"
    assert owner.read_text() == told
    place.rename(away)
    if not noted:
        owner.write_text("people.gallery\n")
    before = owner.read_text()
    with (
        pytest.raises(FmcnetError, match=r"of another gallery that was at people\.gallery"),
        running(tmp_path, keep=True),
    ):
        pass
    assert (len(kept_in(tmp_path)), owner.read_text()) == (2, before)
    shutil.rmtree(place)
    away.rename(place)
    with Gallery(place) as gallery:
        gallery.remove(Where(ids=["crop-1"]))
    with running(tmp_path, keep=True):
        wait_for(lambda: len(kept_in(tmp_path)) == 1)
    assert owner.read_text() == told
    with Gallery(place) as gallery:
        gallery.remove(Where(ids=["crop-2"]))  # empty now, but still the same
    with running(tmp_path, keep=True):
        wait_for(lambda: not kept_in(tmp_path))


def test_thumbnails_of_a_gallery_that_was_replaced_meanwhile_stay(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("fmcnet.server.service.SWEEP_SECONDS", 0.05)
    place = tmp_path / "people.gallery"
    with running(tmp_path, keep=True) as one:
        one.add(1, 2)
        place.rename(tmp_path / "away")
        with Gallery(place) as gallery:
            gallery.add(np.ones((1, 12)), modality="visible", ids=["x"], model=DIGEST)
        wait_for(lambda: "of another gallery that was at people.gallery" in caplog.text)
        assert len(kept_in(tmp_path)) == 2


def test_thumbnails_are_those_of_a_restored_gallery(tmp_path):
    """It has another name, and lacks what was added since the backup."""
    with running(tmp_path, keep=True) as one:
        one.add(1)
        backup(str(tmp_path / "people.gallery"), tmp_path / "backup")
        one.add(2)
    restore(tmp_path / "backup", tmp_path / "people.gallery", replace=True)
    with running(tmp_path, keep=True) as one:
        wait_for(lambda: len(kept_in(tmp_path)) == 1)
        name = one.service.gallery.unique_name
    assert (tmp_path / "kept" / "gallery.txt").read_text() == f"people.gallery\n{name}\n"


def test_a_sweep_that_fails_is_told_and_tried_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("fmcnet.server.service.SWEEP_SECONDS", 0.05)
    place, away = tmp_path / "people.gallery", tmp_path / "away"
    with running(tmp_path, keep=True) as one:
        one.add(1, 2)
        place.rename(away)
        wait_for(lambda: "kept thumbnails were not checked: ApiError: the gallery was removed" in caplog.text)
        away.rename(place)
        with Gallery(place) as other:
            other.remove(Where(ids=["crop-1"]))
        wait_for(lambda: len(kept_in(tmp_path)) == 1)
        place.rename(away)  # a stop during such a sweep


def test_a_sweep_leaves_what_is_kept_again_meanwhile(tmp_path, monkeypatch):
    """An entry replaced by the same image during the scan, which then leaves it out."""
    monkeypatch.setattr("fmcnet.server.service.SWEEP_SECONDS", 0.05)
    with running(tmp_path, keep=True) as one:
        one.add(1, 2)
        kept, gone, replies = {path.name for path in kept_in(tmp_path)}, "f" * 64 + ".jpg", []
        scan = one.service.gallery.scan

        def scan_without(where=None, chunk=4096):
            first = where is None and not replies
            if first:
                replies.append(one.add(1, on_duplicate="replace", camera="gate"))
            yield from (stored for stored in scan(where, chunk) if not first or stored[0].id != "crop-1")

        monkeypatch.setattr(one.service.gallery, "scan", scan_without)
        one.service.kept.keep(gone, b"of a removed entry")
        wait_for(lambda: one.service.kept.read(gone) is None)
        assert replies[0].json()["replaced"] == 1
        assert {path.name for path in kept_in(tmp_path)} == kept


def test_nothing_of_a_files_metadata_is_kept():
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    exif[0x0112] = 6  # to be turned by 90 degrees
    image = decode(encoded(bands(1), "JPEG", exif=exif), "a", 10_000)
    assert image.size == (48, 24)
    assert b"home" not in make_thumbnail(image)
    assert not image.getexif()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_formats_taken(kind):
    assert decode(encoded(bands(1), kind), "a", 10_000).mode == "RGB"


def test_heic_and_avif_are_taken():
    heif = pytest.importorskip("pillow_heif")
    small = bands(1, (64, 128))
    expected = np.asarray(small).astype(int)
    for data in (heif.from_pillow(small), None):
        stored = io.BytesIO()
        if data is None:
            small.save(stored, "AVIF")
        else:
            data.save(stored)
        found = np.asarray(decode(stored.getvalue(), "a", 10_000)).astype(int)
        assert np.abs(found - expected).mean() < 10
        with pytest.raises(UploadError, match="pixels, more than 100"):
            decode(stored.getvalue(), "a", 100)


def test_heic_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UploadError, match=r"pip install 'fmcnet\[heic\]'"):
        decode(b"\0\0\0\x18ftypheic" + bytes(40), "a", 10_000)


def test_a_damaged_avif_is_refused_wherever_the_damage_is():
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    whole, refused = encoded(bands(1), "AVIF"), 0
    for at in range(12, len(whole), 5):
        try:
            decode(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :], "a", 10_000)
        except UploadError:
            refused += 1
    assert refused > 10


def test_other_formats_are_not_even_tried():
    for kind in ("PPM", "ICO", "TGA", "JPEG2000"):
        with pytest.raises(UploadError, match="is no image"):
            decode(encoded(bands(1), kind), "a", 10_000)


def test_thumbnails_that_the_gallery_holds_are_shown_before_sources(tree, tmp_path):
    with running(tmp_path, sources=tree, keep=True) as one:
        with Gallery(one.service.gallery.location) as gallery:
            gallery.add(
                np.ones((2, 12)), modality="visible", ids=["a", "b"], source="cam1/a.png",
                thumbnails=[png(7), None], model=DIGEST,
            )  # fmt: skip
        shown = [one.client.get(f"/v1/images/{name}") for name in ("a", "b")]
        assert shown[0].content == png(7)
        assert shown[1].content == make_thumbnail(bands(1))
        name = thumbnail_name("a", one.service.gallery.embedding("a"))
        one.service.kept.keep(name, png(8))
        assert one.client.get("/v1/images/a").content == png(8)
        assert one.client.delete("/v1/entries/a").status_code == 200
        assert one.client.get("/v1/images/a").status_code == 404
        assert one.service.kept.read(name) is None


def test_only_crops_that_are_added_become_thumbnails(tmp_path, monkeypatch):
    with running(tmp_path, keep=True) as one:
        kept, decode_images = [], one.service._decoders.decode

        async def decoded(uploads, caller):
            images = await decode_images(uploads, caller)
            kept.append([image.thumbnail is not None for image in images])
            return images

        monkeypatch.setattr(one.service._decoders, "decode", decoded)
        one.add(1, 2)
        one.search(1)
    assert kept == [[True, True], [False]]


def test_thumbnails_that_another_process_indexes_meanwhile_are_shown(tmp_path):
    with running(tmp_path) as one:
        one.add(1)
        assert not one.client.get("/v1/gallery").json()["pictures"]
        with Gallery(one.service.gallery.location) as gallery:
            gallery.add(np.ones((1, 12)), modality="visible", ids=["new"], thumbnails=[png(7)], model=DIGEST)
        assert one.client.get("/v1/gallery").json()["pictures"]
        assert one.client.get("/v1/images/new").content == png(7)
