import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from fmcnet.data import images
from fmcnet.data.cache import ImageCache
from fmcnet.data.check import check
from fmcnet.data.images import decode_images, load_image, unreadable_images
from fmcnet.data.readers import read_dataset
from fmcnet.data.table import Record, Table
from fmcnet.errors import DataError
from fmcnet.types import Modality
from tests.data import trees


def damage(path: Path, kind: str) -> Path:
    """Write a broken image of the given kind."""
    if kind == "absent":
        return path
    trees.write_image(path, size=(60, 120))
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>404 not found</html>\n")
    elif kind == "noise":
        path.write_bytes(bytes(range(256)) * 4)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    return path


KINDS = {
    "truncated": "truncated",
    "zero bytes": r"empty \(0 bytes\)",
    "text": "a text file, not an image",
    "noise": "not an image in a known format",
    "absent": "no such file",
    "folder": "it is a folder",
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
@pytest.mark.parametrize("kind", KINDS)
def test_broken_images_are_named_with_the_reason(tmp_path: Path, kind: str, suffix: str) -> None:
    path = damage(tmp_path / f"x{suffix}", kind)
    with pytest.raises(DataError, match=rf"cannot read the image .*x\{suffix}: .*{KINDS[kind]}"):
        load_image(path)


def test_a_png_with_more_text_than_pillow_reads_is_told_what_to_do(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "a" * 2_000_000, zip=True)
    Image.new("RGB", (8, 16)).save(tmp_path / "x.png", pnginfo=text)
    with pytest.raises(
        DataError, match=r"its metadata have more text than Pillow reads: save it without them$"
    ):
        load_image(tmp_path / "x.png")


def test_a_huge_image_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    path = trees.write_image(tmp_path / "x.png", size=(6, 12))
    with pytest.raises(DataError, match="it is too large, more than 60 pixels: cut the person out"):
        load_image(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_three_channels(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    pixels = load_image(trees.write_image(tmp_path / f"x.{suffix}", mode=mode))
    assert pixels.shape == (12, 6, 3)
    assert pixels.dtype == np.uint8


def test_one_channel_infrared_is_repeated(tmp_path: Path) -> None:
    pixels = load_image(trees.write_image(tmp_path / "x.png", mode="L"))
    assert (pixels == pixels[..., :1]).all()
    assert pixels.std() > 0


def test_orientation_is_respected(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(10, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    image.save(tmp_path / "x.png", exif=exif)
    pixels = load_image(tmp_path / "x.png")
    assert pixels.shape == (6, 10, 3)
    np.testing.assert_array_equal(pixels[..., 0], np.rot90(np.asarray(image), -1))


def test_sixteen_bit_thermal_is_stretched(tmp_path: Path) -> None:
    raw = np.linspace(7000, 9000, 64 * 32).reshape(64, 32).astype(np.uint16)
    raw[0, 0] = 65535  # a dead pixel must not flatten the rest
    Image.fromarray(raw).save(tmp_path / "x.png")
    pixels = load_image(tmp_path / "x.png")[..., 0]
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert 100 < pixels[32].mean() < 155


def test_sixteen_bits_that_hold_eight_stay_as_they_are(tmp_path: Path) -> None:
    raw = np.arange(200, dtype=np.uint16).reshape(20, 10)
    Image.fromarray(raw).save(tmp_path / "x.png")
    np.testing.assert_array_equal(load_image(tmp_path / "x.png")[..., 0], raw)


def test_a_flat_or_float_thermal_image(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 9000, dtype=np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="nearly constant and shows nothing: its values are 9000 to 9000"):
        load_image(tmp_path / "x.png")
    Image.fromarray(np.linspace(-10, 40, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "x.tif")
    assert load_image(tmp_path / "x.tif").max() == 255
    Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)).save(tmp_path / "y.tif")
    with pytest.raises(DataError, match="NaN"):
        load_image(tmp_path / "y.tif")


def _table(root: Path, paths: list[str]) -> Table:
    return Table.from_records("x", root, [Record(path, 1, Modality.VISIBLE) for path in paths])


def test_all_unreadable_images_are_listed_in_order(tmp_path: Path) -> None:
    paths = []
    for n, kind in enumerate(["", "truncated", "zero bytes", "", "text", "absent"]):
        damage(tmp_path / f"{n}.jpg", kind)
        paths.append(f"{n}.jpg")
    faults = unreadable_images(_table(tmp_path, paths))
    assert [path for path, _ in faults] == ["1.jpg", "2.jpg", "4.jpg", "5.jpg"]
    with pytest.raises(DataError) as caught:
        list(decode_images(_table(tmp_path, paths), 4, 2))
    assert str(caught.value).startswith(f"4 of 6 images under {tmp_path} cannot be read:\n  1.jpg: ")
    assert "4.jpg: a text file" in str(caught.value)


def test_a_long_list_ends_with_the_rest_counted(tmp_path: Path) -> None:
    table = _table(tmp_path, [f"{n:02d}.jpg" for n in range(25)])
    with pytest.raises(DataError, match=r"25 of 25 images(.|\n)*19.jpg(.|\n)*and 5 more") as caught:
        list(decode_images(table, 4, 2))
    assert "20.jpg" not in str(caught.value)


def test_readable_images_raise_nothing_and_a_bar_can_be_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    trees.write_image(tmp_path / "a.jpg")
    table = _table(tmp_path, ["a.jpg"])
    assert unreadable_images(table) == []
    assert len(list(decode_images(table, 4, 2))) == 1
    assert capfd.readouterr().err == ""
    assert unreadable_images(table, progress=True) == []


def test_few_images_are_decoded_ahead_and_an_early_end_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    plain = images.open_rgb
    monkeypatch.setattr(images, "open_rgb", lambda path: (opened.append(path), plain(path))[1])
    monkeypatch.setattr(images, "MOST_THREADS", 2)
    paths = [f"{n:02d}.jpg" for n in range(30)]
    for n, path in enumerate(paths):
        Image.new("RGB", (9, 5), (8 * n, 0, 0)).save(tmp_path / path, "BMP")
    threads = threading.active_count()
    decoded = decode_images(_table(tmp_path, paths), 4, 2)
    assert [next(decoded)[0, 0, 0] for _ in range(3)] == [0, 8, 16]
    decoded.close()
    assert len(opened) <= 3 + 2 * 2
    assert threading.active_count() == threads
    assert [image[0, 0, 0] for image in decode_images(_table(tmp_path, paths), 4, 2)] == list(
        range(0, 240, 8)
    )


def head_of(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + b"\0" * 40


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"heix"])
def test_a_heic_image_without_its_package_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brand: bytes
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "x.heic").write_bytes(head_of(brand))
    with pytest.raises(DataError, match=r"x.heic: a HEIC image, .*pip install 'fmcnet\[heic\]'$"):
        load_image(tmp_path / "x.heic")


def test_heic_and_avif_are_read(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 64), (200, 40, 90))
    if features.check("avif"):
        image.save(tmp_path / "x.avif", quality=95)
        assert np.abs(load_image(tmp_path / "x.avif").astype(int) - (200, 40, 90)).max() < 8
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(image).save(tmp_path / "x.heic", quality=95)
    assert np.abs(load_image(tmp_path / "x.heic").astype(int) - (200, 40, 90)).max() < 8


def test_an_avif_without_content_is_called_damaged_where_avif_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    path.write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0mif1avif" + bytes(50))
    said = "a damaged AVIF image" if features.check("avif") else "pip install"
    with pytest.raises(DataError, match=said):
        load_image(path)


@pytest.mark.parametrize("kind", ["gif", "avif"])
def test_damage_anywhere_is_an_error_that_names_the_file(tmp_path: Path, kind: str) -> None:
    """Pillow raises IndexError for some cut GIFs and RuntimeError for damaged AVIFs."""
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{kind}"
    Image.fromarray(rng.integers(0, 256, (12, 6, 3), dtype=np.uint8)).save(path)
    whole, told = path.read_bytes(), []
    for cut in range(1, len(whole), 3):
        damaged = bytearray(whole[:cut] if kind == "gif" else whole)
        damaged[min(cut, len(damaged) - 1)] ^= 0x55
        path.write_bytes(damaged)
        try:
            load_image(path)
        except DataError as error:
            told.append(str(error))
    assert len(told) > 10
    assert all(str(path) in text for text in told)


def test_a_deep_image_of_one_column(tmp_path: Path) -> None:
    raw = np.arange(64, dtype=np.uint16).reshape(64, 1) * 500
    Image.fromarray(raw).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png").shape == (64, 1, 3)


def test_doubtful_images_of_a_dataset_are_told_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A dataset has no range of values: training, evaluation and check say what was stretched."""
    for name, low in (("a", 3000), ("b", 4000)):
        values = np.linspace(low, low + 500, 200).reshape(20, 10).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    Image.new("RGB", (6, 12), (50, 50, 50)).save(tmp_path / "c.png")
    trees.write_image(tmp_path / "d.png", mode="L")
    file = tmp_path / "people.csv"
    file.write_text("path,pid,modality\n" + "".join(f"{name}.png,1,infrared\n" for name in "abcd"))
    table = read_dataset(file, training=False)
    for built in (True, False):
        caplog.clear()
        cache = ImageCache(table, 12, 6, folder=tmp_path / "cache")
        assert cache.built is built
        stretched, flat = caplog.messages
        assert stretched.startswith(f"{file}: 2 images with values of no usual range")
        assert "convert deep images to 8 bits first (the first is a.png)" in stretched
        assert "--range" not in stretched
        assert flat.startswith(f"{file}: 1 image nearly constant, showing nothing")
        assert flat.endswith("(the first is c.png)")
        assert {f"{file}: {note}" for note in check(file).notes} >= {stretched, flat}
    assert cache.path is not None
    earlier = cache.path.with_suffix(".json")
    earlier.write_text(json.dumps({k: v for k, v in json.loads(earlier.read_text()).items() if k != "notes"}))
    caplog.clear()
    assert not ImageCache(table, 12, 6, folder=tmp_path / "cache").built
    assert not caplog.messages
