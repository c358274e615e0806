"""Every depth and number of channels follows one rule; what shows nothing is refused."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fmcnet.data.images import REMARKS, load_image, open_rgb, to_rgb, unreadable_images
from fmcnet.data.pixels import (
    COARSE,
    DROPPED,
    OUTSIDE,
    PAGES,
    RANGED,
    STRETCHED,
    eight_bits,
    parse_range,
)
from fmcnet.data.table import Record, Table
from fmcnet.errors import DataError
from fmcnet.server.uploads import UploadError, decode
from fmcnet.types import Modality

SCENE = np.asarray(
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (9, 5), dtype=np.uint8)).resize((32, 64))
)
COLOUR = np.stack([SCENE, SCENE[::-1], SCENE[:, ::-1]], axis=-1)


def write_tiff(
    path: Path,
    values: np.ndarray,
    *,
    extra=(),
    order="<",
    photometric=1,
    deflate=False,
    planar=1,
    turned=1,
    rows=0,
    more=None,
) -> Path:
    """A TIFF of any type and number of channels, in strips of some rows (0: all), in planes or not."""
    values = values if values.ndim == 3 else values[..., None]
    height, width, samples = values.shape
    rows = rows or height
    planes = [values[..., [channel]] for channel in range(samples)] if planar == 2 else [values]
    parts = [plane[row : row + rows] for plane in planes for row in range(0, height, rows)]
    parts = [part.astype(part.dtype.newbyteorder(order)).tobytes() for part in parts]
    parts = [zlib.compress(part) for part in parts] if deflate else parts
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    arrays = {258: [8 * values.dtype.itemsize] * samples, 339: [kind] * samples}
    if extra:
        arrays[338] = list(extra)
    single = {256: width, 257: height, 259: 8 if deflate else 1, 262: photometric, 277: samples, 278: rows}
    single |= {274: turned, 284: planar, **(more or {})}
    sizes = [len(part) for part in parts]
    tags = {**{k: [v] for k, v in single.items()}, **arrays, 273: [0] * len(parts), 279: sizes}
    longs = (256, 257, 273, 278, 279)
    start = 8 + 2 + 12 * len(tags) + 4
    body, entries = b"", b""
    where = {}
    length = sum(size for size in (len(v) * (4 if k in longs else 2) for k, v in tags.items()) if size > 4)
    tags[273] = [start + length + sum(sizes[:number]) for number in range(len(parts))]
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}{'I' if tag in longs else 'H'}", *numbers)
        if len(packed) > 4:
            where[tag] = start + len(body)
            body += packed
    for tag, numbers in sorted(tags.items()):
        letter = "I" if tag in longs else "H"
        packed = struct.pack(f"{order}{len(numbers)}{letter}", *numbers).ljust(4, b"\0")
        value = struct.pack(f"{order}I", where[tag]) if tag in where else packed
        entries += struct.pack(f"{order}HHI", tag, 4 if tag in longs else 3, len(numbers)) + value
    magic = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    path.write_bytes(
        magic
        + struct.pack(f"{order}H", len(tags))
        + entries
        + struct.pack(f"{order}I", 0)
        + body
        + b"".join(parts)
    )
    return path


def remarks(path: Path, value_range=None) -> tuple[str, ...]:
    found = open_rgb(path, value_range).info[REMARKS]
    assert (RANGED in found) == (value_range is not None and not {OUTSIDE, COARSE} & {*found})
    return tuple(kind for kind in found if kind != RANGED)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["float32", "float64", "float16"])
@pytest.mark.parametrize("scene", [SCENE, COLOUR], ids=["one", "three"])
def test_floats_of_0_to_1_are_the_8_bit_image(tmp_path, kind, order, scene):
    path = write_tiff(tmp_path / "x.tif", (scene / 255).astype(kind), order=order)
    expected = scene if scene.ndim == 3 else np.repeat(scene[..., None], 3, axis=2)
    assert np.array_equal(load_image(path), expected)
    assert remarks(path) == ()


@pytest.mark.parametrize("kind", ["uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_a_range_maps_every_depth_alike(tmp_path, kind):
    values = (1000 + SCENE.astype(np.float64) * 100).astype(kind)
    path = write_tiff(tmp_path / "x.tif", values)
    assert np.array_equal(load_image(path, (1000, 26500))[..., 0], SCENE)
    assert remarks(path, (1000, 26500)) == ()
    free = load_image(path)[..., 0]
    assert len(np.unique(free)) > 150
    assert remarks(path) == (STRETCHED,)


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
@pytest.mark.parametrize("scale", [257, 16, 1])
def test_several_channels_of_16_bits_keep_their_lower_bytes(tmp_path, mode, scale):
    """Pillow keeps the upper bytes, so that 12-bit values had 16 grey levels."""
    scene = SCENE[..., None] if mode == "LA" else COLOUR
    values = scene.astype(np.uint16) * np.uint16(scale)
    if mode != "RGB":
        values = np.concatenate([values, np.full((64, 32, 1), 65535, np.uint16)], axis=2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", 32, 64, 16, {"LA": 4, "RGB": 2, "RGBA": 6}[mode], 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    found = load_image(tmp_path / "x.png", (0, 255 * scale))
    expected = np.repeat(scene, 3, axis=2) if mode == "LA" else scene
    assert np.array_equal(found, expected)
    free = load_image(tmp_path / "x.png")
    if scale == 16:
        assert np.abs(free.astype(int) - expected).max() <= 8
        assert remarks(tmp_path / "x.png") == (STRETCHED,)
    else:
        assert np.array_equal(free, expected)
        assert remarks(tmp_path / "x.png") == ()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_tiff(tmp_path, order, channels):
    values = np.concatenate([COLOUR, COLOUR[..., :1]], axis=2)[..., :channels].astype(np.uint16) * 16
    path = write_tiff(tmp_path / "x.tif", values, order=order, photometric=2)
    assert np.array_equal(load_image(path, (0, 4080)), COLOUR)
    assert remarks(path, (0, 4080)) == ((DROPPED,) if channels == 4 else ())  # no ExtraSamples: not alpha


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_planes_are_read_as_channels_beside_each_other(tmp_path, order, deflate):
    bands = np.concatenate([COLOUR, COLOUR[..., :1]], axis=2)
    for channels, photometric, extra, rows, turned in (
        (3, 2, (), 0, 1), (3, 2, (), 10, 6), (4, 2, (2,), 0, 1), (4, 2, (0,), 7, 8), (4, 5, (), 0, 1),
        (1, 1, (), 9, 6), (1, 0, (), 0, 1),
    ):  # fmt: skip
        for values in (
            bands,
            bands.astype(np.uint16) * 13,
            3 * bands.astype(np.int16) - 400,
            bands / np.float32(9),
        ):
            if values.dtype != np.uint8 and channels > 1:
                continue  # refused
            if values.dtype.kind in "if" and photometric == 0:
                continue  # Pillow opens none of these
            if values.dtype == np.uint8 and extra == (0,):
                continue  # read by Pillow 12 and newer
            one, two = (
                write_tiff(
                    tmp_path / f"{planar}.tif", values[..., :channels], planar=planar, photometric=photometric,
                    extra=extra, rows=rows, turned=turned, order=order, deflate=deflate and planar == 2,
                )
                for planar in (1, 2)
            )  # fmt: skip
            most = (float(values.min()), float(values.max()))
            assert np.array_equal(load_image(two, most), load_image(one, most)), (
                channels,
                values.dtype,
                extra,
            )
            assert remarks(two) == remarks(one)
            upright = np.rot90(values, {1: 0, 6: -1, 8: 1}[turned])
            if channels == 1 and photometric == 1 and values.dtype != np.uint8:
                assert np.array_equal(load_image(two, most)[..., 0], eight_bits(upright[..., 0], most)[0])


def test_planes_that_pillow_cuts_or_garbles_are_refused(tmp_path):
    pair = np.stack([SCENE, np.full_like(SCENE, 255)], axis=-1)
    mixed = np.concatenate([COLOUR, pair[..., 1:]], axis=2).astype(np.uint16) * 257
    for deflate in (False, True):
        grey = write_tiff(tmp_path / "x.tif", pair, extra=(2,), planar=2, deflate=deflate)
        colour = write_tiff(tmp_path / "y.tif", mixed, extra=(1,), planar=2, deflate=deflate, photometric=2)
        opaque = write_tiff(tmp_path / "z.tif", mixed[..., :3], planar=2, deflate=deflate, photometric=2)
        for path in (grey, colour, opaque):
            with pytest.raises(DataError, match=r"channels in planes of their own.*PlanarConfiguration 1"):
                load_image(path)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32])
def test_compressed_big_endian_values(tmp_path, kind):
    values = SCENE.astype(kind) * 7 - 300
    path = write_tiff(tmp_path / "x.tif", values, order=">", deflate=True)
    assert np.array_equal(load_image(path, (-300, 255 * 7 - 300))[..., 0], SCENE)


@pytest.mark.parametrize("mode", ["L", "I;16", "I;16B", "P", "CMYK", "RGBA", "RGB", "F"])
def test_a_tiff_turned_by_its_orientation_is_read_by_path_as_from_a_stream(tmp_path, mode):
    path = tmp_path / "x.tif"
    if mode in ("I;16", "I;16B"):
        image = Image.fromarray((SCENE.astype(np.uint16) * 257).astype("<u2" if mode == "I;16" else ">u2"))
    else:
        image = Image.fromarray(COLOUR if mode in ("CMYK", "RGBA", "RGB") else SCENE).convert(mode)
    image.save(path)
    upright = load_image(path)
    for orientation in range(2, 9):
        image.save(path, tiffinfo={274: orientation})
        plain = Image.fromarray(upright)
        plain.getexif()[274] = orientation
        expected = np.asarray(ImageOps.exif_transpose(plain))
        assert np.array_equal(load_image(path), expected), orientation
        with Image.open(path) as opened:
            assert np.array_equal(np.asarray(to_rgb(opened)), expected)
            assert opened.filename == str(path)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_compressed_depths(tmp_path, compression):
    Image.fromarray((15 + SCENE / 255 * 25).astype(np.float32)).save(
        tmp_path / "x.tif", compression=compression
    )
    assert np.array_equal(load_image(tmp_path / "x.tif", (15, 40))[..., 0], SCENE)


@pytest.mark.parametrize("most", [4095, 65535])
@pytest.mark.parametrize("is_text", [False, True])
@pytest.mark.parametrize("scene", [SCENE, COLOUR], ids=["grey", "colour"])
def test_portable_maps_of_16_bits_are_counts(tmp_path, scene, is_text, most):
    head = f"P{(6 if scene.ndim == 3 else 5) - 3 * is_text}\n# by a camera\n32 64\n{most}\n".encode()
    path = tmp_path / "x.ppm"
    counts = scene.astype(np.uint16) * 16
    text = b"# by rows\n" + " ".join(map(str, counts.ravel())).encode()
    path.write_bytes(head + (text if is_text else counts.astype(">u2").tobytes()))
    expected = scene if scene.ndim == 3 else np.repeat(scene[..., None], 3, axis=2)
    assert np.array_equal(load_image(path, (0, 4080)), expected)
    assert len(np.unique(load_image(path))) > 150
    assert remarks(path) == (STRETCHED,)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="truncated"):
        load_image(path)
    small = Image.fromarray(scene)
    small.save(tmp_path / "y.ppm")
    assert np.array_equal(load_image(tmp_path / "y.ppm"), expected)


def test_a_text_map_of_other_values_than_its_header_says_is_refused(tmp_path):
    for most, value, said in (
        (4095, "4096", "Channel value too large"), (65535, "65536", "Channel value too large"),
        (65535, "-5", "Channel value is negative: -5"), (4095, "x", "x"), (4095, "9" * 40, "9"),
    ):  # fmt: skip
        (tmp_path / "x.pgm").write_text(f"P2\n2 1\n{most}\n7 {value}\n")
        with pytest.raises(DataError, match=rf"x\.pgm.*{said}"):
            load_image(tmp_path / "x.pgm")


def test_signed_8_bits_are_in_the_order_of_their_values(tmp_path):
    path = write_tiff(tmp_path / "x.tif", (SCENE.astype(int) - 128).astype(np.int8), turned=3)
    assert np.array_equal(load_image(path, (-128, 127))[..., 0], SCENE[::-1, ::-1])
    assert remarks(path) == (STRETCHED,)
    path = write_tiff(tmp_path / "y.tif", (SCENE // 2).astype(np.int8))
    assert np.array_equal(load_image(path)[..., 0], SCENE // 2)


def test_premultiplied_alpha_has_darkened_the_values_already(tmp_path):
    half = np.dstack([COLOUR / 510, np.full(SCENE.shape, 0.5)]).astype(np.float32)
    found = {
        kind: load_image(write_tiff(tmp_path / "x.tif", half, extra=(kind,), photometric=2))
        for kind in (1, 2)
    }
    assert np.abs(found[1].astype(int) - COLOUR // 2).max() <= 1
    assert np.abs(found[2].astype(int) - COLOUR // 4).max() <= 1
    grey = np.dstack([SCENE // 2, np.full_like(SCENE, 128)])
    for kind, expected in ((1, SCENE // 2), (2, SCENE // 4)):
        found = load_image(write_tiff(tmp_path / "x.tif", grey, extra=(kind,), photometric=1))
        assert np.abs(found[..., 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_a_deep_image_takes_little_more_memory_than_its_values_in_float64(dtype):
    values = np.random.default_rng(0).integers(1000, 30000, (1000, 1000)).astype(dtype)
    tracemalloc.start()
    eight_bits(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.6 * 8 * values.size


def test_bits_in_reverse_order_are_refused_where_pillow_does_not_turn_them(tmp_path):
    bits = np.unpackbits(SCENE[..., None], axis=-1)
    turned = np.packbits(bits[..., ::-1], axis=-1)[..., 0]
    assert np.array_equal(load_image(write_tiff(tmp_path / "x.tif", turned, more={266: 2}))[..., 0], SCENE)
    with pytest.raises(DataError, match=r"reverse order \(FillOrder 2\): save it anew"):
        load_image(write_tiff(tmp_path / "x.tif", SCENE.astype(np.uint16) * 257, more={266: 2}))


def test_degrees_are_stretched_and_told_or_mapped_by_a_range(tmp_path):
    path = write_tiff(tmp_path / "x.tif", (15 + SCENE / 255 * 25).astype(np.float32))
    assert len(np.unique(load_image(path))) > 200
    assert remarks(path) == (STRETCHED,)
    assert np.array_equal(load_image(path, (15, 40))[..., 0], SCENE)
    cold = write_tiff(tmp_path / "cold.tif", (5 + SCENE / 255 * 10).astype(np.float32))
    warm = write_tiff(tmp_path / "warm.tif", (25 + SCENE / 255 * 10).astype(np.float32))
    assert load_image(cold, (0, 40)).mean() < load_image(warm, (0, 40)).mean() - 100
    assert np.array_equal(load_image(cold), load_image(warm))


def test_further_channels(tmp_path):
    pair = np.stack([SCENE, SCENE[::-1]], axis=-1)
    two = write_tiff(tmp_path / "two.tif", pair)
    assert np.array_equal(load_image(two)[..., 0], SCENE)
    assert remarks(two) == (DROPPED,)
    deep = write_tiff(tmp_path / "deep.tif", (pair / 255).astype(np.float32), deflate=True)
    assert np.array_equal(load_image(deep)[..., 0], SCENE)
    masked = pair.copy()
    masked[:32, :, 1], masked[32:, :, 1] = 0, 255
    alpha = write_tiff(tmp_path / "alpha.tif", masked.astype(np.uint16) * 257, extra=(2,))
    assert load_image(alpha)[:32].max() == 0
    assert np.array_equal(load_image(alpha)[32:, :, 0], SCENE[32:])
    five = np.concatenate([COLOUR, pair], axis=2).astype(np.float32) / 255
    assert np.array_equal(load_image(write_tiff(tmp_path / "five.tif", five, photometric=2)), COLOUR)


def test_white_is_zero(tmp_path):
    path = write_tiff(tmp_path / "x.tif", (255 - SCENE).astype(np.uint16) * 257, photometric=0)
    assert np.array_equal(load_image(path)[..., 0], SCENE)
    path = write_tiff(tmp_path / "y.tif", (1 - SCENE / 255), photometric=0)
    assert np.array_equal(load_image(path)[..., 0], SCENE)


def test_unsigned_32_bits_beyond_2_to_31(tmp_path):
    for order in "<>":
        values = SCENE.astype(np.uint32) * np.uint32(2**24)
        path = write_tiff(tmp_path / "x.tif", values, order=order)
        assert np.array_equal(load_image(path, (0, 255 * 2**24))[..., 0], SCENE)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((8, 8), 9000, np.uint16), "nearly constant.* 9000 to 9000"),
        (np.full((8, 8), 0.5, np.float32), "nearly constant"),
        (20 + np.random.default_rng(0).random((8, 8), np.float32) / 100, "nearly constant.* 20.0"),
        (np.random.default_rng(0).integers(8000, 8004, (8, 8)).astype(np.uint16), "nearly constant"),
        (np.full((8, 8), np.nan, np.float32), "NaN"),
        (np.full((8, 8, 3), np.inf, np.float32), "NaN or infinite"),
    ],
)
def test_what_shows_nothing_is_refused(tmp_path, values, said):
    with pytest.raises(DataError, match=rf"cannot read the image .*x.tif: .*{said}"):
        load_image(write_tiff(tmp_path / "x.tif", values))


@pytest.mark.parametrize(("missing", "share"), [(-9999, 6), (-32768, 30), (65535, 2)])
def test_values_far_from_the_others_leave_no_black_and_white_image(tmp_path, missing, share):
    values = (15 + SCENE / 255 * 25).astype(np.float32)
    values.ravel()[:: share + 3] = missing
    path = write_tiff(tmp_path / "x.tif", values)
    with pytest.raises(DataError, match="shows nothing beside values far from the others"):
        load_image(path)
    assert len(np.unique(load_image(path, (15, 40)))) > 60


def test_a_range_is_advised_only_where_one_can_be_given(tmp_path):
    values = 1000 + SCENE.astype(np.uint16)
    values.ravel()[::5] = 65535
    path = tmp_path / "x.png"
    Image.fromarray(values).save(path)
    with pytest.raises(DataError, match=r"replace these, or give --range LOW:HIGH$"):
        load_image(path)
    table = Table.from_records("csv", tmp_path, [Record("x.png", 1, Modality.INFRARED)])
    ((_, reason),) = unreadable_images(table)
    assert reason.endswith("replace these")
    with pytest.raises(UploadError) as caught:
        decode(path.read_bytes(), "x.png", 10**6)
    assert "replace these, or give the field range as LOW:HIGH" in caught.value.what


def test_a_range_far_too_wide_is_told(tmp_path):
    path = write_tiff(tmp_path / "x.tif", (7000 + SCENE.astype(np.uint16) * 4))
    assert remarks(path, (0, 65535)) == (COARSE,)
    assert remarks(path, (6000, 9000)) == ()
    path = write_tiff(tmp_path / "y.tif", (0.4 + SCENE / 255 * 0.03).astype(np.float32))
    assert remarks(path) == (COARSE,)


def test_a_range_that_does_not_fit(tmp_path):
    path = write_tiff(tmp_path / "x.tif", (288 + SCENE / 255 * 25).astype(np.float32))  # kelvin
    with pytest.raises(DataError, match="no pixel is in the range 15:40: its values are 288 to 313"):
        load_image(path, (15, 40))
    assert remarks(path, (312, 400)) == (OUTSIDE,)
    for wrong in ("15", "a:b", "40:15", "1:1", "nan:2", "0:inf", "-1e308:1e308", ":", ""):
        with pytest.raises(DataError):
            parse_range(wrong)
    assert parse_range("-10:40.5") == (-10.0, 40.5)


def test_8_bit_images_ignore_a_range(tmp_path):
    Image.fromarray(SCENE).save(tmp_path / "x.png")
    assert np.array_equal(load_image(tmp_path / "x.png", (15, 40))[..., 0], SCENE)


def test_a_tiff_that_nobody_reads_says_what_it_is(tmp_path):
    path = write_tiff(tmp_path / "x.tif", np.zeros((8, 8, 2), np.float32))
    path.write_bytes(
        path.read_bytes().replace(
            struct.pack("<HHI", 259, 3, 1) + b"\1\0", struct.pack("<HHI", 259, 3, 1) + b"\5\0"
        )
    )
    with pytest.raises(DataError, match=r"a TIFF of 2 channels of 32-bit float values, .* save it as"):
        load_image(path)
    whole = write_tiff(tmp_path / "y.tif", np.zeros((8, 8, 2), np.float32)).read_bytes()
    (tmp_path / "y.tif").write_bytes(whole[:-9])
    with pytest.raises(DataError, match="truncated"):
        load_image(tmp_path / "y.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_pixels_become_black(tmp_path, mode):
    base = Image.fromarray(COLOUR if mode == "RGBA" else SCENE)
    if mode == "P":
        base = Image.fromarray(np.repeat([[1], [0]], 32, axis=0).repeat(32, axis=1).astype(np.uint8), "P")
        base.putpalette([255, 255, 255, 90, 80, 70])
        base.save(tmp_path / "x.png", transparency=0)
    elif mode == "PA":
        base = Image.fromarray(COLOUR).quantize(64)
        base.save(tmp_path / "x.png", transparency=bytes([0] * 32 + [255] * 32))
        hidden = np.asarray(base) < 32
        assert load_image(tmp_path / "x.png")[hidden].max() == 0
        assert load_image(tmp_path / "x.png")[~hidden].max() > 0
        return
    else:
        mask = np.full((64, 32), 255, np.uint8)
        mask[32:] = 0
        base.putalpha(Image.fromarray(mask))
        base.save(tmp_path / "x.png")
    found = load_image(tmp_path / "x.png")
    assert found[32:].max() == 0
    expected = np.full((32, 32, 3), (90, 80, 70)) if mode == "P" else np.asarray(base.convert("RGB"))[:32]
    assert np.array_equal(found[:32], expected)


@pytest.mark.parametrize("scene", [SCENE, COLOUR], ids=["grey", "colour"])
def test_the_transparent_colour_of_a_16_bit_png_becomes_black(tmp_path, scene):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    deep = (scene.astype(np.uint16) * 257).astype(">u2")
    header = struct.pack(">IIBBBBB", 32, 64, 16, 2 if scene.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    chunks = [
        (b"IHDR", header),
        (b"tRNS", deep[5, 7].tobytes()),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks))
    hidden = (scene == scene[5, 7]).reshape(64, 32, -1).all(-1)
    expected = np.where(hidden[..., None], 0, scene.reshape(64, 32, -1))
    assert hidden.any()
    assert np.array_equal(load_image(path), np.broadcast_to(expected, (64, 32, 3)))


def test_wholly_transparent_images_are_refused(tmp_path):
    Image.new("RGBA", (8, 8), (200, 10, 10, 0)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="every pixel is transparent"):
        load_image(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
def test_the_first_of_several_pages_is_read_and_told(tmp_path, suffix):
    first, second = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 250))
    extra = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"x.{suffix}"
    first.save(path, save_all=True, append_images=[second], **extra)
    assert (load_image(path) == (250, 0, 0)).all()
    assert remarks(path) == (PAGES,)
    first.save(path, **extra)
    assert remarks(path) == ()


def test_the_rule_takes_lists_of_channels_together():
    values = np.stack([np.full((9, 9), 1000), np.full((9, 9), 3000), np.full((9, 9), 2000)], axis=-1)
    mapped, remark = eight_bits(values.astype(np.uint16))
    assert remark == STRETCHED
    assert mapped[0, 0].tolist() == [0, 255, 128]


@pytest.mark.parametrize("hidden", [0, 60_000])
@pytest.mark.parametrize("kind", [np.float32, np.uint16])
def test_hidden_pixels_do_not_stretch_the_visible_ones(tmp_path, hidden, kind):
    shown = (1000 + 4 * SCENE.astype(np.float64)).astype(kind)
    opaque = 1 if kind is np.float32 else 65535
    values = np.hstack([shown, np.full_like(shown, hidden)])
    alpha = np.hstack([np.full_like(shown, opaque), np.zeros_like(shown)])
    alone = load_image(write_tiff(tmp_path / "alone.tif", shown))
    half = load_image(write_tiff(tmp_path / "half.tif", np.stack([values, alpha], axis=-1), extra=(2,)))
    assert np.abs(half[:, : shown.shape[1]].astype(int) - alone).max() <= 1
    assert not half[:, shown.shape[1] :].any()
