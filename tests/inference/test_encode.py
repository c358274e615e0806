"""Whatever an image comes as, its embedding is the same; what is no image is named."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fmcnet.data.images import open_rgb
from fmcnet.data.pixels import Remarks
from fmcnet.data.readers import read_dataset
from fmcnet.errors import DataError, FmcnetError
from fmcnet.inference import image_input as reading
from fmcnet.inference.encoder import Encoder, load
from fmcnet.types import NO_CAMERA, NO_PID, Embeddings, Modality


@pytest.fixture(scope="module")
def encoder(tiny_run):
    return load(tiny_run, "cpu")


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Five PNGs of unequal sizes, smooth enough that resizing has something to do."""
    folder = tmp_path_factory.mktemp("crops")
    generator = np.random.default_rng(0)
    for at in range(5):
        small = generator.integers(0, 256, (9, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize((30 + 7 * at, 70 + 11 * at)).save(folder / f"{at}.png")
    return folder


@pytest.fixture
def paths(crops):
    return sorted(crops.glob("*.png"))


def test_every_form_of_an_image_gives_the_same_thumbnail(paths):
    image = open_rgb(paths[0])
    pixels = np.asarray(image)
    forms = [paths[0], str(paths[0]), image, pixels, torch.from_numpy(pixels.copy()).permute(2, 0, 1)]
    assert len({reading.make_thumbnail(form, size=(20, 20)) for form in forms}) == 1
    assert image.size != (20, 20)
    assert reading.make_thumbnail(pixels[:, :, 0]) == reading.make_thumbnail(pixels[:, :, :1])


def test_every_form_of_an_image_gives_the_same_embedding(encoder, paths):
    path = paths[2]
    pixels = np.asarray(open_rgb(path))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    forms = [path, str(path), Image.open(path), open_rgb(path), pixels, pixels[None], tensor, tensor[None]]
    forms += [tensor.float() / 255, (tensor.double() / 255)[None], [path], (pixels,)]
    expected = encoder.encode(path, "visible").features
    for form in forms:
        assert np.array_equal(encoder.encode(form, "visible").features, expected), type(form)
    together = encoder.encode([path, pixels, tensor, Image.open(path)], "visible", batch_size=1).features
    assert np.array_equal(together, np.repeat(expected, 4, axis=0))


def test_grey_images_are_repeated_in_three_channels(encoder, tmp_path):
    grey = np.arange(64 * 32, dtype=np.uint32).reshape(64, 32).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    expected = encoder.encode(np.repeat(grey[:, :, None], 3, axis=2), "infrared").features
    for form in (tmp_path / "grey.png", grey, grey[:, :, None], torch.from_numpy(grey)[None]):
        assert np.array_equal(encoder.encode(form, "infrared").features, expected)


def test_deep_and_rotated_images_are_the_same_from_disk_and_memory(encoder, tmp_path):
    deep = Image.fromarray(np.linspace(0, 60000, 64 * 32).reshape(64, 32).astype(np.uint16))
    deep.save(tmp_path / "deep.png")
    turned = Image.new("RGB", (64, 32), (200, 30, 30))
    turned.paste((0, 200, 0), (0, 0, 20, 32))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    for path in (tmp_path / "deep.png", tmp_path / "turned.jpg"):
        from_disk = encoder.encode(path, "infrared").features
        assert np.array_equal(encoder.encode(Image.open(path), "infrared").features, from_disk)


def test_the_result_says_what_it_is(encoder, paths):
    found = encoder.encode([paths[0], np.asarray(open_rgb(paths[1]))], "ir")
    assert isinstance(found, Embeddings)
    assert found.features.dtype == np.float32
    assert np.linalg.norm(found.features, axis=1) == pytest.approx([1, 1], abs=1e-6)
    assert found.name.tolist() == [str(paths[0]), "images[1]"]
    assert found.modality.tolist() == [1, 1]
    assert set(found.pid.tolist()) == {NO_PID}
    assert set(found.camid.tolist()) == {NO_CAMERA}
    assert found.index.tolist() == [1, 2]
    assert np.asarray(found) is found.features
    assert encoder.encode(np.zeros((2, 8, 8, 3), np.uint8), "ir").name.tolist() == ["images[0]", "images[1]"]
    assert encoder.encode([np.zeros((2, 8, 8, 3), np.uint8)], "ir").name[1] == "images[0][1]"
    raw = encoder.encode(paths[0], "ir", normalize=False).features
    assert raw / np.linalg.norm(raw) == pytest.approx(found.features[:1], abs=1e-6)


def test_modalities_may_be_mixed_in_one_call(encoder, paths):
    kinds = ["infrared", Modality.VISIBLE, "ir", "rgb", 0]
    mixed = encoder.encode(paths, kinds, batch_size=2)
    assert mixed.modality.tolist() == [1, 0, 1, 0, 0]
    assert mixed.name.tolist() == [str(path) for path in paths]
    for at, kind in enumerate(kinds):
        alone = encoder.encode(paths[at], "visible" if kind == 0 else kind)
        assert mixed.features[at] == pytest.approx(alone.features[0], abs=1e-6)
        other = encoder.encode(paths[at], Modality.from_code(mixed.modality[at]).other)
        assert np.abs(mixed.features[at] - other.features[0]).max() > 1e-3
    as_numbers = encoder.encode(paths, mixed.modality, batch_size=2)
    assert np.array_equal(as_numbers.features, mixed.features)


def test_the_order_of_images_does_not_matter(encoder, paths):
    order = np.array([3, 0, 4, 2, 1])
    kinds = np.array([0, 1, 1, 0, 1], dtype=np.uint8)
    straight = encoder.encode(paths, kinds)
    shuffled = encoder.encode([paths[at] for at in order], kinds[order], batch_size=2, workers=3)
    assert shuffled.features == pytest.approx(straight.features[order], abs=1e-6)
    assert shuffled.name.tolist() == straight.name[order].tolist()


def test_folders_are_expanded(encoder, crops, paths, tmp_path):
    whole = encoder.encode(crops, "visible")
    assert whole.name.tolist() == [str(path) for path in paths]
    both = encoder.encode([crops, paths[0]], ["infrared", "visible"])
    assert both.modality.tolist() == [1] * 5 + [0]
    each = encoder.encode([crops, paths[0]], [0, 1, 0, 1, 0, 1])
    assert each.modality.tolist() == [0, 1, 0, 1, 0, 1]
    with pytest.raises(DataError, match="3 modalities for 6 images"):
        encoder.encode([crops, paths[0]], ["ir", "ir", "ir"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        encoder.encode(tmp_path / "empty", "visible")


def test_preprocessing_is_applied_exactly_once(encoder, paths, monkeypatch):
    calls = {"resize": 0, "normalise": 0}
    resize, normalise = reading.resize, encoder.model.preprocess

    def counted(name, real):
        def call(*a):
            calls[name] += 1
            return real(*a)

        return call

    monkeypatch.setattr(reading, "resize", counted("resize", resize))
    monkeypatch.setattr(encoder.model, "preprocess", counted("normalise", normalise))
    found = encoder.encode(paths, "visible", batch_size=2).features
    assert calls == {"resize": 5, "normalise": 3}
    monkeypatch.undo()
    # The same, written out: resized by Pillow, brought to 0..1, and normalised by the weights' own statistics.
    by_hand = []
    for path in paths:
        small = (
            Image.open(path).convert("RGB").resize((encoder.width, encoder.height), Image.Resampling.BILINEAR)
        )
        by_hand.append(torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).double() / 255)
    model = encoder.model
    normalised = ((torch.stack(by_hand) - model.mean) / model.std).float()
    monkeypatch.setattr(model, "preprocess", lambda images: images)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model.embed(normalised, Modality.VISIBLE), dim=1)
    assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_flip_averages_with_the_mirror_image(encoder, paths):
    pixels = np.asarray(open_rgb(paths[1]).resize((encoder.width, encoder.height)))
    one, two = (encoder.encode(p, "ir", normalize=False).features for p in (pixels, pixels[:, ::-1]))
    assert encoder.encode(pixels, "ir", normalize=False, flip=True).features == pytest.approx((one + two) / 2)


def test_similarity_is_the_cosine(encoder, paths):
    a, b = encoder.encode(paths[:2], "visible", normalize=False), encoder.encode(paths, "infrared")
    slow = np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b.features] for x in a.features])
    found = encoder.similarity(a, b)
    assert found.dtype == np.float32
    assert found == pytest.approx(slow, abs=1e-6)
    assert encoder.similarity(a.features, np.asarray(b)) == pytest.approx(slow, abs=1e-6)
    assert encoder.similarity(np.zeros((1, a.features.shape[1])), b).tolist() == [[0.0] * 5]
    with pytest.raises(DataError, match="values do not compare: take both of one model"):
        encoder.similarity(a, b.features[:, :-1])


@pytest.fixture
def with_broken(paths, tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:200])
    bad = np.zeros((4, 4, 2), np.uint8)
    return [
        paths[0],
        tmp_path / "text.jpg",
        paths[1],
        bad,
        tmp_path / "none.png",
        paths[2],
        tmp_path / "cut.png",
    ]


def test_broken_images_are_refused_and_all_named(encoder, with_broken):
    with pytest.raises(DataError, match="4 of 7 images cannot be read") as raised:
        encoder.encode(with_broken, "visible", batch_size=1)
    lines = str(raised.value).splitlines()[1:]
    for line, name in zip(lines, ("text.jpg", "images[3]", "none.png", "cut.png"), strict=True):
        assert name in line
    assert "a text file" in lines[0]
    assert "(4, 4, 2)" in lines[1]
    assert "no such file" in lines[2]


def test_broken_images_are_skipped_and_named(encoder, with_broken, paths, caplog):
    kinds = [0, 1, 1, 0, 1, 0, 0]
    with caplog.at_level(logging.WARNING):
        found = encoder.encode(with_broken, kinds, on_error="skip", batch_size=2)
    assert found.name.tolist() == [str(path) for path in paths[:3]]
    assert found.modality.tolist() == [0, 1, 0]
    assert found.features == pytest.approx(encoder.encode(paths[:3], [0, 1, 0]).features, abs=1e-6)
    assert "4 of 7 images" in caplog.text
    assert "text.jpg" in caplog.text
    faults = []
    again = encoder.encode(with_broken, kinds, on_error=faults.append)
    assert np.allclose(again.features, found.features, atol=1e-6)
    assert [fault.position for fault in faults] == [1, 3, 4, 6]
    assert faults[1].name == "images[3]"
    with pytest.raises(DataError, match="2 of 2 images cannot be read"):
        encoder.encode(with_broken[3:5], "visible", on_error="skip")
    faults.clear()
    with pytest.raises(DataError, match="2 of 2 images cannot be read"):
        encoder.encode(with_broken[3:5], "visible", on_error=faults.append)
    assert [fault.position for fault in faults] == [0, 1]
    with pytest.raises(FmcnetError, match="say raise, skip"):
        encoder.encode(paths, "visible", on_error="ignore")


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "no images to encode"),
        (None, "images is a NoneType"),
        (memoryview(np.zeros((8, 8, 3), np.uint8)), "images is a memoryview: give a path"),
        ("", "images is an empty text: give a path"),
        (["a.png", ""], r"images\[1\] is an empty text"),
        ([{"a": 1}], r"images\[0\] is a dict"),
        (3, "images is an int"),
        (np.zeros((8, 8, 3), np.float32), r"must be \(H, W, 3\) or \(H, W\) uint8.*convert it with .astype"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
        (np.zeros((5,), np.uint8), "an image array must be"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"an image tensor must be \(3, H, W\)"),
        (torch.randn(3, 8, 8), "without normalisation"),
        (torch.full((3, 8, 8), float("nan")), "without normalisation"),
    ],
)
def test_what_is_no_image_is_refused_in_words(encoder, images, said):
    with pytest.raises(DataError, match=said):
        encoder.encode(images, "visible")


def test_unknown_words_are_refused(encoder, paths):
    with pytest.raises(FmcnetError, match="unknown modality 'x-ray'"):
        encoder.encode(paths, "x-ray")
    with pytest.raises(FmcnetError, match="batch_size must be 1 or more"):
        encoder.encode(paths, "visible", batch_size=0)


def test_long_lists_show_a_bar(encoder, paths, capsys):
    encoder.encode(paths, "visible", batch_size=2, progress=True)
    assert "5/5" in capsys.readouterr().err
    encoder.encode(paths, "visible", progress=False)
    assert capsys.readouterr().err == ""


def test_threads_are_an_option(tiny_run):
    before = torch.get_num_threads()
    try:
        Encoder.from_pretrained(tiny_run, device="cpu", threads=min(2, os.cpu_count() or 1))
        assert torch.get_num_threads() == min(2, os.cpu_count() or 1)
    finally:
        torch.set_num_threads(before)


def test_embeddings_of_nobody_are_not_scored(encoder, paths):
    from fmcnet.errors import ProtocolError
    from fmcnet.evaluation import protocols
    from fmcnet.evaluation.evaluate import evaluate

    found = encoder.encode(paths, [0, 1, 0, 1, 1])
    with pytest.raises(ProtocolError, match="5 of 5 embeddings have no identity"):
        evaluate(found, protocols.custom(Modality.INFRARED, Modality.VISIBLE, name="x"))


def test_a_caller_that_stops_does_not_wait_for_what_is_queued(monkeypatch):
    """Two batches of 50 wait behind the first; decoding one takes a hundredth of a second."""
    read = []

    def slow(source, height, width, **more):
        time.sleep(0.01)
        read.append(source)
        return np.zeros((height, width, 3), np.uint8)

    monkeypatch.setattr(reading, "read_pixels", slow)
    items = reading.expand(np.zeros((150, 8, 8, 3), np.uint8), "visible")
    ahead = reading.read_ahead(items, 50, 8, 8, 1)
    next(ahead)
    ahead.close()
    assert len(read) < 60


def test_colours_that_contradict_the_modality_are_told(encoder, paths):
    pixels = np.asarray(Image.open(paths[0]).resize((48, 96)))
    grey = pixels[..., :1].repeat(3, axis=2)
    blurred = np.clip(
        grey + np.array([0, 0, 1], np.uint8) * (np.indices(grey.shape[:2]).sum(0) % 2)[..., None], 0, 255
    )
    tinted = (grey * np.array([1, 0.6, 0.9])).astype(np.uint8)  # a night camera's purple
    false_colours = np.stack([grey[..., 0], 255 - grey[..., 0], np.sin(grey[..., 0] / 30) * 127 + 128], 2)
    even = np.full_like(pixels, (200, 40, 40))
    noise = np.random.default_rng(0).normal(0, 5, grey.shape)  # of a colour sensor in the dark
    images = [pixels, grey, blurred.astype(np.uint8), tinted, false_colours.astype(np.uint8), even]
    images.append(np.clip(grey + noise, 0, 255).astype(np.uint8))
    for modality, kind, names in (
        ("visible", "coloured", set()),
        ("visible", "colourless", {"images[1]", "images[2]", "images[3]"}),  # noise: undecided
        ("infrared", "coloured", {"images[0]", "images[4]"}),
        ("infrared", "colourless", set()),
    ):
        remarks = Remarks()
        encoder.encode(images, modality, remarks=remarks)
        assert remarks._names.get(kind, set()) == names


def test_columns_of_embeddings_are_checked():
    n = 4
    columns = {
        "features": np.eye(n, dtype=np.float32),
        "pid": np.arange(n),
        "camid": np.ones(n, np.int64),
        "modality": np.array([0, 0, 1, 1], np.uint8),
        "index": np.ones(n, np.int64),
        "name": np.array(list("abcd")),
    }
    words = np.array(["visible", "RGB", "ir", "thermal"])
    assert Embeddings(**columns | {"modality": words}).modality.tolist() == [0, 0, 1, 1]
    for cameras in (np.array([1.0, 2.0, 3.0, -1.0]), np.array([1, 2, 3, -1], object)):
        found = Embeddings(**columns | {"camid": cameras}).camid
        assert (found.dtype, found.tolist()) == (np.int64, [1, 2, 3, -1])
    for wrong, said in (
        ({"modality": np.array([1, 1, 2, 2])}, "modality is 2 in row 2: 0 is visible, 1 infrared"),
        ({"modality": np.array(["day", "ir", "ir", "ir"])}, "unknown modality 'day'"),
        ({"camid": np.array([1.0, np.nan, 2, 3])}, "camid is nan in row 1: give whole numbers"),
        ({"camid": np.array([1.0, 2, np.inf, 3])}, "camid is inf in row 2"),
        ({"camid": np.array(list("abcd"))}, "camid is a in row 0"),
    ):
        with pytest.raises(FmcnetError, match=said):
            Embeddings(**columns | wrong)


def test_modalities_and_paths_come_in_many_forms(tmp_path, monkeypatch):
    for name in "ab":
        Image.new("RGB", (8, 16)).save(tmp_path / f"{name}.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reading.expand(["~1.png"], 0)[0].source.name == "~1.png"
    paths = np.array([str(tmp_path / "a.png"), "~/b.png"])
    for kinds in (torch.tensor([0, 1]), np.array([0, 1]), ["visible", 1]):
        items = reading.expand(paths, kinds)
        assert [one.modality for one in items] == [Modality.VISIBLE, Modality.INFRARED]
        assert [one.source.name for one in items] == ["a.png", "b.png"]
        assert items[1].source.is_file()
    assert reading.expand(paths, torch.tensor(1))[0].modality is Modality.INFRARED
    with pytest.raises(FmcnetError, match=r"unknown modality '1\.0'"):
        reading.expand(paths, 1.0)
    with pytest.raises(DataError, match=r"images is bytes: open them"):
        reading.expand(b"\xff\xd8", "visible")


def test_kept_embeddings_have_the_names_of_the_table(tiny_run, tiny_sysu, tmp_path):
    """Those that an earlier version kept lack them."""
    encoder = Encoder.from_pretrained(tiny_run, device="cpu")
    rows = read_dataset(tiny_sysu).select(split="test").take(np.arange(4))
    for camera in ("", "gate"):
        table = replace(rows, camera=np.full(4, camera))
        found = encoder.embed_table(table, store=tmp_path, progress=False)
        assert found.camera_name.tolist() == [camera] * 4
    assert len([*tmp_path.glob("*.npz")]) == 1
