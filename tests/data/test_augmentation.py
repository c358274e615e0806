"""Augmentation: ranges, determinism, and what each part does, against a loop over images."""

from __future__ import annotations

import pytest
import torch

from fmcnet.config import AugmentConfig
from fmcnet.data.augmentation import augment_image, draw_params
from fmcnet.distributed import seeded_generator
from fmcnet.types import Modality

CPU = torch.device("cpu")
OFF = {"pad": 0, "flip": 0.0, "erase": 0.0, "channel": "none"}


def images(n=64, h=24, w=12):
    return torch.randint(0, 256, (n, 3, h, w), dtype=torch.uint8, generator=seeded_generator(CPU, 9))


def run(batch, modality=Modality.VISIBLE, seed=0, **settings):
    config, (count, _, height, width) = AugmentConfig(**{**OFF, **settings}), batch.shape
    params = draw_params(count, height, width, modality, config, seeded_generator(CPU, seed))
    return applied(batch, params, config.pad)


def applied(batch, params, pad):
    pixels = batch.permute(0, 2, 3, 1).numpy()
    out = [torch.from_numpy(augment_image(image, params, i, pad)) for i, image in enumerate(pixels)]
    return torch.stack(out).permute(0, 3, 1, 2)


def test_nothing_on_changes_nothing():
    assert torch.equal(run(images()), images())


def test_same_generator_same_result():
    full = {"pad": 4, "flip": 0.5, "erase": 0.5, "channel": "mix"}
    a, b, c = (run(images(), seed=s, **full) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == (64, 3, 24, 12)
    assert a.dtype == torch.uint8


def test_photometric_changes_values_alone_and_leaves_the_other_draws_as_they_are():
    plain = {"pad": 4, "flip": 0.5, "erase": 0.5}
    draw = [
        draw_params(
            64, 24, 12, Modality.VISIBLE, AugmentConfig(**plain, photometric=p), seeded_generator(CPU, 3)
        )
        for p in (0.0, 0.5)
    ]
    assert draw[0].photometric is None
    assert all((a == b).all() for a, b in zip(draw[0][:5], draw[1][:5], strict=True))
    assert 20 < draw[1].photometric.hit.sum() < 44
    flat = torch.full((64, 3, 24, 12), 128, dtype=torch.uint8)
    out = run(flat, photometric=1.0).float()
    assert out.mean(dim=(1, 2, 3)).std() > 20  # exposure and gamma: bright and dark images
    assert 3 < out.std(dim=(2, 3)).mean() < 5  # the noise: 12 u^2 with u in 0..1, on average 4
    assert torch.equal(run(flat, photometric=1.0).float(), out)


def test_photometric_keeps_infrared_images_grey_and_casts_visible_ones():
    grey = images(32)[:, :1].expand(-1, 3, -1, -1).contiguous()
    night, day = (run(grey, modality, photometric=1.0) for modality in (Modality.INFRARED, Modality.VISIBLE))
    assert torch.equal(night[:, 0], night[:, 1])
    assert torch.equal(night[:, 0], night[:, 2])
    assert (day[:, 0].float().mean(dim=(1, 2)) - day[:, 2].float().mean(dim=(1, 2))).abs().mean() > 5


def test_photometric_takes_sharpness_from_some_images():
    edges = torch.zeros(64, 3, 24, 12, dtype=torch.uint8)
    edges[..., ::2] = 255
    out = run(edges, Modality.INFRARED, photometric=1.0).float()
    contrast = (out[..., ::2] - out[..., 1::2]).mean(dim=(1, 2, 3))
    assert 16 <= (contrast > 60).sum() <= 48  # half keep every column
    assert (contrast < 30).sum() >= 8


@pytest.mark.parametrize("channel", ["none", "exchange", "mix"])
@pytest.mark.parametrize("modality", list(Modality))
def test_slices_agree_with_a_loop_over_pixels(channel, modality):
    config = AugmentConfig(pad=3, flip=0.5, erase=0.5, channel=channel, channel_probability=0.7)
    batch = images(40, 14, 9)
    params = draw_params(40, 14, 9, modality, config, seeded_generator(CPU, 5))
    pixels = batch.permute(0, 2, 3, 1)
    slow = torch.stack([slowly(pixels[i], [column[i] for column in params[:5]], 3) for i in range(40)])
    # A mixture on the edge between two numbers may be rounded either way; a fill follows from such pixels.
    found = applied(batch, params, 3).permute(0, 2, 3, 1)
    assert (found.int() - slow.int()).abs().max() <= (1 if channel == "mix" else 0)


@pytest.mark.parametrize(("pad", "channel"), [(9, "none"), (10, "mix"), (40, "mix")])
def test_a_pad_above_the_images_size_leaves_black_images(pad, channel):
    config = AugmentConfig(pad=pad, flip=0.5, erase=0.0, channel=channel, channel_probability=1.0)
    batch, params = (
        images(40, 14, 8),
        draw_params(40, 14, 8, Modality.VISIBLE, config, seeded_generator(CPU, 5)),
    )
    pixels = batch.permute(0, 2, 3, 1)
    slow = torch.stack([slowly(pixels[i], [column[i] for column in params[:5]], pad) for i in range(40)])
    found = applied(batch, params, pad).permute(0, 2, 3, 1)
    assert (found.int() - slow.int()).abs().max() <= 1
    assert 0 < sum(not image.any() for image in found) < 40


def slowly(image, params, pad):
    height, width, _ = image.shape
    (top, left), flip, mix, grey, box = (column.tolist() for column in params)
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_y, from_x = y + top - pad, (width - 1 - x if flip else x) + left - pad
            if 0 <= from_y < height and 0 <= from_x < width:
                pixel = image[from_y, from_x].tolist()
                if grey:
                    pixel = [round(sum(w * p for w, p in zip(mix, pixel, strict=True)))] * 3
                out[y, x] = torch.tensor(pixel)
    y0, x0, y1, x1 = box
    out[y0:y1, x0:x1] = round(out.double().mean().item())
    return out


def test_crops_are_shifts_of_the_padded_image_and_all_shifts_occur():
    batch, pad = images(300, 8, 6), 2
    out = run(batch, pad=pad)
    seen = set()
    for before, after in zip(batch, out, strict=True):
        padded = torch.nn.functional.pad(before, (pad,) * 4)
        hits = [
            (y, x)
            for y in range(2 * pad + 1)
            for x in range(2 * pad + 1)
            if torch.equal(padded[:, y : y + 8, x : x + 6], after)
        ]
        assert len(hits) == 1
        seen.add(hits[0])
    assert len(seen) == 25


def test_flips_mirror_whole_images_half_of_the_time():
    batch = images(400)
    out, plain = run(batch, flip=0.5), batch
    mirrored = [torch.equal(o, p.flip(2)) for o, p in zip(out, plain, strict=True)]
    kept = [torch.equal(o, p) for o, p in zip(out, plain, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 140 < sum(mirrored) < 260


def test_channel_exchange_takes_one_of_the_three_channels():
    out, plain = run(images(90), channel="exchange", channel_probability=1.0), images(90)
    which = [
        [torch.equal(o, p[c].expand(3, -1, -1)) for c in range(3)] for o, p in zip(out, plain, strict=True)
    ]
    assert all(sum(w) == 1 for w in which)
    assert {w.index(True) for w in which} == {0, 1, 2}


def test_channel_mixing_is_a_convex_combination():
    out, plain = run(images(), channel="mix", channel_probability=1.0), images()
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(out[:, 0], out[:, 2])
    assert (out[:, 0] <= plain.max(dim=1).values).all()
    assert (out[:, 0] >= plain.min(dim=1).values).all()
    for o, p in zip(out[:8].float(), plain[:8].float(), strict=True):
        weights = torch.linalg.lstsq(p.flatten(1).T, o[0].flatten()[:, None]).solution.flatten()
        assert float(weights.sum()) == pytest.approx(1, abs=5e-3)


def test_infrared_channels_stay_equal():
    grey = images()[:, :1].expand(-1, 3, -1, -1).contiguous()
    full = {"pad": 4, "flip": 0.5, "erase": 0.5, "channel": "mix", "channel_probability": 1.0}
    out = run(grey, Modality.INFRARED, **full)
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(out[:, 0], out[:, 2])
    coloured = run(images(), Modality.INFRARED, channel="mix", channel_probability=1.0)
    assert torch.equal(coloured, images())


def test_erasing_fills_one_box_with_the_images_mean():
    out, plain = run(images(200), erase=1.0), images(200)
    for o, p in zip(out, plain, strict=True):
        changed = (o != p).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
        assert len(rows), "an image was not erased"
        box = o[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (box == round(p.double().mean().item())).all()
        assert changed.float().mean() < 0.42
