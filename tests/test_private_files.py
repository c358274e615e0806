"""What holds a person is its owner's alone, under the usual umask too; a set-group-ID folder shares it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fmcnet.data.cache import write_cache
from fmcnet.data.crop import CropOptions, crop
from fmcnet.data.table import Record, Table
from fmcnet.inference import embed as embedding
from fmcnet.inference.encoder import keep
from fmcnet.retrieval.answer import Answer
from fmcnet.retrieval.answer_page import write_page
from fmcnet.server.thumbnails import KeptThumbnails
from fmcnet.types import Embeddings, Modality

FEATURES = np.ones((1, 4), np.float32)
ONE = np.zeros(1, np.uint8)
EMBEDDINGS = Embeddings(
    FEATURES, ONE.astype(np.int64), ONE.astype(np.int64), ONE, ONE.astype(np.int64), np.array(["a"])
)


def embed(path, monkeypatch):
    encoder = SimpleNamespace(encode=lambda *_, **__: EMBEDDINGS)
    monkeypatch.setattr(embedding, "load", lambda *_: encoder)
    monkeypatch.setattr(embedding, "list_images", lambda sources, *_: sources)
    embedding.embed_files("run", [path], "visible", path)


def cut(path, _):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8))
    frames = path.parent / "frames"
    frames.mkdir()
    image.save(frames / "1.PNG", "PNG")
    boxes = path.parent / "boxes"
    boxes.write_text("1,7,10,20,30,60\n")
    crop(frames, boxes, path, CropOptions(Modality.VISIBLE), progress=False)
    (frames / "1.PNG").unlink()


WRITERS = {
    "cut": cut,
    "saved.npz": lambda path, _: EMBEDDINGS.save(path),
    "run.npz": lambda path, _: keep(
        FEATURES, Table.from_records("t", path.parent, [Record("a", 0, Modality.VISIBLE)]), path
    ),
    "embed.npz": embed,
    "cache.npy": lambda path, _: write_cache(path, (1, 2, 2, 3), {}, [np.zeros((2, 2, 3), np.uint8)]),
    "who.html": lambda path, _: write_page(path, Answer((), (), True, None, 1, 0, None, {}), [], {}, {}),
    "crops": lambda path, _: KeptThumbnails(path, "people.gallery").keep("a.jpg", b"jpeg"),
}


@pytest.fixture(autouse=True)
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="needs file modes")
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("folder", "expected"), [(0o755, 0o600), (0o2770, 0o660)])
def test_it_is_private(name, folder, expected, tmp_path, monkeypatch):
    tmp_path.chmod(folder)
    WRITERS[name](tmp_path / name, monkeypatch)
    made = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "gallery.txt"]
    assert made
    if name in ("crops", "cut"):  # in a folder of its own
        expected = 0o600
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in made if path.suffix} == {expected}
