"""Thumbnails in a gallery: kept byte for byte when given, gone with the entry, damage named, none in a cluster."""

from __future__ import annotations

import numpy as np
import pytest

from fmcnet.errors import GalleryDamagedError, GalleryError
from fmcnet.retrieval import Gallery, Where
from tests.retrieval.people import MODEL, add, crops, entries


def made_up(n, seed=0):
    """Bytes of all sizes, larger than a page of the database too; some entries have none."""
    random = np.random.default_rng(seed)
    return [
        None if i % 4 == 3 else random.bytes(int(random.choice([1, 700, 5_000, 40_000]))) for i in range(n)
    ]


def bytes_of(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def pieces(thumbnail):
    """Sixteen bytes of its beginning, middle and end."""
    return [
        thumbnail[i : i + 16] for i in (0, len(thumbnail) // 2, len(thumbnail) - 16) if len(thumbnail) >= 32
    ]


def test_they_are_kept_and_go_with_their_entries_without_a_trace(tmp_path):
    random = np.random.default_rng(1)
    alive, gone = {}, []
    gallery = Gallery(tmp_path / "g", flush_rows=50)
    for step in range(6):
        rows, thumbnails = entries(20, first=20 * step), made_up(20, seed=step)
        add(gallery, crops(20, seed=step), rows, thumbnails=thumbnails)
        alive |= {row.id: thumbnail for row, thumbnail in zip(rows, thumbnails, strict=True)}
        doomed = [str(name) for name in random.choice(sorted(alive), 8, replace=False)]
        if step % 3 == 2:  # replaced, by entries without a thumbnail
            add(gallery, crops(8, seed=99), [gallery.get(n) for n in doomed], on_duplicate="replace")
            gone += [alive[name] for name in doomed if alive[name]]
            alive |= dict.fromkeys(doomed)
        else:
            gallery.remove(Where(ids=doomed))
            gone += [thumbnail for name in doomed if (thumbnail := alive.pop(name))]
        if step == 3:
            gallery.close()
            gallery = Gallery(tmp_path / "g", flush_rows=50)
        data = bytes_of(tmp_path / "g")
        assert not [1 for thumbnail in gone for piece in pieces(thumbnail) if piece in data]
    assert {name: gallery.thumbnail(name) for name in alive} == alive
    assert gallery.info().thumbnails == sum(thumbnail is not None for thumbnail in alive.values())
    assert all(thumbnail[:16] in data for thumbnail in alive.values() if thumbnail and len(thumbnail) > 15)
    before = gallery.info().bytes
    gallery.compact()
    assert gallery.info().bytes < before
    assert {name: gallery.thumbnail(name) for name in alive} == alive
    assert gallery.check() == []
    gallery.close()


def test_a_damaged_thumbnail_is_named(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        add(gallery, crops(3), entries(3), thumbnails=[b"first thumbnail", None, b"third thumbnail"])
    path = tmp_path / "g/gallery.sqlite"
    path.write_bytes(path.read_bytes().replace(b"third thumbnail", b"third thumbnaiL"))
    with Gallery(tmp_path / "g") as gallery:
        assert gallery.thumbnail("crop-00000") == b"first thumbnail"
        assert gallery.thumbnail("crop-00001") is None
        with pytest.raises(GalleryDamagedError, match="row 3, thumbnail"):
            gallery.thumbnail("crop-00002")
        with pytest.raises(GalleryDamagedError, match="row 3, thumbnail"):
            gallery.check()


@pytest.mark.parametrize("bad", [[b"one"], b"one", [b"", None], ["text", None], [b"x" * (2**20 + 1), None]])
def test_what_is_no_thumbnail_is_refused(tmp_path, bad):
    with Gallery(tmp_path / "g") as gallery:
        with pytest.raises(GalleryError, match="thumbnail"):
            gallery.add(crops(2), modality="visible", model=MODEL, thumbnails=bad)
        assert len(gallery) == 0


def test_a_gallery_made_before_there_were_thumbnails_is_read_and_extended(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        add(gallery, crops(3), entries(3))
        gallery._store.database.run("DROP TABLE pictures")
    with Gallery(tmp_path / "g", read_only=True) as gallery:
        assert gallery.thumbnail("crop-00001") is None
        assert (gallery.info().thumbnails, gallery.check()) == (0, [])
    with Gallery(tmp_path / "g") as gallery:
        add(gallery, crops(1, seed=1), entries(1, first=9), thumbnails=[b"new"])
        assert gallery.thumbnail("crop-00009") == b"new"
