"""The baseline of the training benchmark does what it says; nothing here is timed."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from fmcnet.config import load_config
from fmcnet.losses.criterion import TERMS
from fmcnet.models.fmcnet import IMAGENET_MEAN, IMAGENET_STD

FILE = Path(__file__).parents[1] / "benchmarks" / "public_recipe.py"
PEOPLE, EACH, P, K, H, W = 5, 3, 3, 2, 20, 12
LABELS = np.repeat(np.arange(PEOPLE), EACH)


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("public_recipe", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (len(LABELS), H, W, 3)
    return tuple(rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(2))


def loader(recipe, images, **options):
    settings = {"identities": P, "images": K, "height": H, "width": W, "workers": 0}
    pinned = {"pad": 0, "flip": 0.0, "erase": False, "channel": False}
    return recipe.PublicLoader(*images, LABELS, LABELS, **{**settings, **pinned, **options})


def normalised(images):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


def rows_of(batch, known):
    """Which of the known images each one of a batch is, exactly."""
    rows = [[row for row, one in enumerate(known) if torch.equal(image, one)] for image in batch]
    assert all(len(found) == 1 for found in rows)
    return [found[0] for found in rows]


def test_batches_are_exact_images_identity_by_identity(recipe, images):
    known = [normalised(half) for half in images]
    batches = list(loader(recipe, images, batches=7))  # more than one epoch of 3
    assert len(batches) == 7
    for visible, infrared, labels in batches:
        assert visible.dtype == infrared.dtype == torch.float32
        assert visible.shape == infrared.shape == (P * K, 3, H, W)
        assert visible.is_contiguous()
        assert labels.dtype == torch.int64
        blocks = labels.view(P, K)
        assert (blocks == blocks[:, :1]).all()
        assert len(set(labels.tolist())) == P
        for half, images_of in zip((visible, infrared), known, strict=True):
            assert LABELS[rows_of(half, images_of)].tolist() == labels.tolist()


def test_same_seed_same_batches_other_seed_others(recipe, images):
    first, again, other = (
        torch.cat([labels for _, _, labels in loader(recipe, images, batches=6, seed=seed)])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_decoding_gives_what_the_arrays_hold(recipe, images, tmp_path):
    paths = []
    for half, name in zip(images, "vi", strict=True):
        paths.append([tmp_path / f"{name}{row}.png" for row in range(len(half))])
        for path, image in zip(paths[-1], half, strict=True):
            Image.fromarray(image).save(path)
    held = next(iter(loader(recipe, images)))
    decoded = next(iter(loader(recipe, (None, None), decode_paths=tuple(paths))))
    for one, other in zip(held, decoded, strict=True):
        assert torch.equal(one, other)
    large = tmp_path / "large.png"
    Image.new("L", (3 * W, 2 * H), 100).save(large)
    assert np.unique(np.asarray(recipe.Decode(H, W)(large))).tolist() == [100]


def test_crops_and_flips_are_windows_of_the_padded_image(recipe, images):
    torch.manual_seed(0)
    padded = np.pad(images[0], ((0, 0), (2, 2), (2, 2), (0, 0)))
    windows = {
        padded[row, y : y + H, x : x + W][:, ::turn].tobytes(): (y, x, turn)
        for row in range(len(padded))
        for y in range(5)
        for x in range(5)
        for turn in (1, -1)
    }
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    seen = set()
    for visible, _, _ in loader(recipe, images, pad=2, flip=0.5, batches=20, **plain):
        for image in visible:
            seen.add(windows[(image * 255).round().byte().permute(1, 2, 0).contiguous().numpy().tobytes()])
    assert {turn for *_, turn in seen} == {1, -1}
    assert {y for y, *_ in seen} == {x for _, x, _ in seen} == set(range(5))


def test_erasing_is_for_both_and_exchange_for_visible_images_only(recipe, images):
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    visible, infrared, _ = next(iter(loader(recipe, images, channel=True, channel_chance=1.0, **plain)))
    assert torch.equal(visible, visible[:, :1].expand_as(visible))
    rows_of(infrared, torch.from_numpy(images[1]).permute(0, 3, 1, 2) / 255)
    fill = torch.tensor(recipe.ERASE_FILL).view(3, 1, 1)
    for half in next(iter(loader(recipe, images, erase=True, erase_chance=1.0, **plain)))[:2]:
        share = (half == fill).all(dim=1).float().mean(dim=(1, 2))
        assert ((share > 0) & (share < 0.5)).all()


def test_identities_without_a_modality_and_no_images_are_refused(recipe, images):
    with pytest.raises(ValueError, match="both modalities"):
        loader(recipe, (images[0], None))
    options = {"identities": P, "images": K, "height": H, "width": W, "workers": 0}
    with pytest.raises(ValueError, match="every identity"):
        recipe.PublicLoader(*images, LABELS, LABELS % 4, erase=False, channel=False, **options)


def test_a_step_trains_everything_and_names_its_terms(recipe, images):
    torch.manual_seed(0)
    config = load_config("tiny", ["data.identities=3", "data.height=20", "data.width=12"])
    public = recipe.PublicStep(config, PEOPLE, "cpu")
    before = {name: value.detach().clone() for name, value in public.model.named_parameters()}
    batch = next(iter(loader(recipe, images)))
    found = [public.step(*batch) for _ in range(2)]
    for terms in found:
        assert terms.keys() == {*TERMS, "loss"}
        assert all(math.isfinite(value) for value in terms.values())
        parts = sum(value for name, value in terms.items() if name not in ("loss", "discriminator"))
        assert terms["loss"] == pytest.approx(parts, rel=1e-5)
    assert found[0] != found[1]
    assert public.meters["loss"].average == pytest.approx((found[0]["loss"] + found[1]["loss"]) / 2)
    for name, value in public.model.named_parameters():
        assert torch.equal(value, before[name]) != value.requires_grad, name
    sizes = [len(group["params"]) for group in public.optimizer.param_groups]
    discriminators = len(public.discriminator_optimizer.param_groups[0]["params"])
    assert sum(sizes) + discriminators == len(before)
    assert torch.equal(public.model.preprocess(batch[0]), batch[0])
