"""Pictures in a gallery: kept byte for byte when given, gone when the entry goes, damage named, none in a cluster."""

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


def pieces(picture):
    """Sixteen bytes of its beginning, middle and end."""
    return [picture[i : i + 16] for i in (0, len(picture) // 2, len(picture) - 16) if len(picture) >= 32]


def test_they_are_kept_and_go_with_their_entries_without_a_trace(tmp_path):
    random = np.random.default_rng(1)
    alive, gone = {}, []
    gallery = Gallery(tmp_path / "g", flush_rows=50)
    for step in range(6):
        rows, pictures = entries(20, first=20 * step), made_up(20, seed=step)
        add(gallery, crops(20, seed=step), rows, pictures=pictures)
        alive |= {row.id: picture for row, picture in zip(rows, pictures, strict=True)}
        doomed = [str(name) for name in random.choice(sorted(alive), 8, replace=False)]
        if step % 3 == 2:  # replaced, by entries without a picture
            add(gallery, crops(8, seed=99), [gallery.get(n) for n in doomed], on_duplicate="replace")
            gone += [alive[name] for name in doomed if alive[name]]
            alive |= dict.fromkeys(doomed)
        else:
            gallery.remove(Where(ids=doomed))
            gone += [picture for name in doomed if (picture := alive.pop(name))]
        if step == 3:
            gallery.close()
            gallery = Gallery(tmp_path / "g", flush_rows=50)
        data = bytes_of(tmp_path / "g")
        assert not [1 for picture in gone for piece in pieces(picture) if piece in data]
    assert {name: gallery.picture(name) for name in alive} == alive
    assert gallery.info().pictures == sum(picture is not None for picture in alive.values())
    assert all(picture[:16] in data for picture in alive.values() if picture and len(picture) > 15)
    before = gallery.info().bytes
    gallery.compact()
    assert gallery.info().bytes < before
    assert {name: gallery.picture(name) for name in alive} == alive
    assert gallery.check() == []
    gallery.close()


def test_a_damaged_picture_is_named(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        add(gallery, crops(3), entries(3), pictures=[b"first picture", None, b"third picture"])
    path = tmp_path / "g/gallery.sqlite"
    path.write_bytes(path.read_bytes().replace(b"third picture", b"third pictuRe"))
    with Gallery(tmp_path / "g") as gallery:
        assert gallery.picture("crop-00000") == b"first picture"
        assert gallery.picture("crop-00001") is None
        with pytest.raises(GalleryDamagedError, match="row 3, picture"):
            gallery.picture("crop-00002")
        with pytest.raises(GalleryDamagedError, match="row 3, picture"):
            gallery.check()


@pytest.mark.parametrize("bad", [[b"one"], b"one", [b"", None], ["text", None], [b"x" * (2**20 + 1), None]])
def test_what_is_no_picture_is_refused(tmp_path, bad):
    with Gallery(tmp_path / "g") as gallery:
        with pytest.raises(GalleryError, match="picture"):
            gallery.add(crops(2), modality="visible", model=MODEL, pictures=bad)
        assert len(gallery) == 0


def test_a_gallery_made_before_there_were_pictures_is_read_and_extended(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        add(gallery, crops(3), entries(3))
        gallery._store.database.run("DROP TABLE pictures")
    with Gallery(tmp_path / "g", read_only=True) as gallery:
        assert gallery.picture("crop-00001") is None
        assert (gallery.info().pictures, gallery.check()) == (0, [])
    with Gallery(tmp_path / "g") as gallery:
        add(gallery, crops(1, seed=1), entries(1, first=9), pictures=[b"new"])
        assert gallery.picture("crop-00009") == b"new"
