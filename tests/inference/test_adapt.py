"""`fmcnet adapt`: statistics change, weights do not; what it refuses, in one clear line each."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from fmcnet.config import load_config
from fmcnet.data.readers import read_dataset
from fmcnet.errors import CheckpointError, DataError, FmcnetError, GalleryError
from fmcnet.inference import adapt
from fmcnet.inference.adapt import Crops, adapt_model, moments
from fmcnet.inference.encoder import Encoder, load
from fmcnet.inference.fit_projection import project_model
from fmcnet.models.card import WEIGHTS
from fmcnet.retrieval import Gallery, Searcher
from fmcnet.training.trainer import train
from fmcnet.types import NO_CAMERA, Modality
from tests.cli import run_command

NAME = "fmcnet-lite"
MIN_IMAGES = 6
"""Fewer than the 16 that are asked for: embedding them takes most of the time."""


@pytest.fixture(scope="module", autouse=True)
def _few_will_do():
    with pytest.MonkeyPatch.context() as patch:
        assert adapt.MIN_IMAGES == 16  # as docs/guides/cameras.md says
        patch.setattr(adapt, "MIN_IMAGES", MIN_IMAGES)
        yield


@pytest.fixture(scope="module")
def folders(tiny_sysu, tmp_path_factory):
    """The tiny world's images in two folders, by modality."""
    root = tmp_path_factory.mktemp("crops")
    table = read_dataset(tiny_sysu)
    for modality in Modality:
        (root / str(modality)).mkdir()
        for at, path in enumerate(table.select(modality=modality).full_paths()[: 2 * MIN_IMAGES]):
            shutil.copy(path, root / str(modality) / f"{at:03}{path.suffix}")
    return root


@pytest.fixture(scope="module")
def adapted(folders, tmp_path_factory):
    crops = Crops.of(folders / "visible", folders / "infrared")
    return adapt_model(NAME, crops, tmp_path_factory.mktemp("adapted") / "lite", device="cpu", progress=False)


def told(*words, code=2):
    done = run_command(*words, code=None)
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def changed(source, folder):
    before, after = (load_file(load(one, "cpu").folder / WEIGHTS) for one in (source, folder))
    return {name for name in after if name not in before or not np.array_equal(before[name], after[name])}


STATISTICS = {"standard.mean", "standard.std"} | {
    f"decomposition.norm_shared.statistics.{modality}.running_{what}"
    for modality in (0, 1)
    for what in ("mean", "var")
}


def test_only_statistics_change_and_they_are_those_of_the_crops(adapted, folders):
    assert changed(NAME, adapted.folder) == STATISTICS
    encoder = load(adapted.folder, "cpu")
    encoder.model.standard.stripes = 0  # the values before the parts get unit length
    assert encoder.digest == adapted.digest != load(NAME, "cpu").digest == adapted.source
    assert adapted.images == {"visible": 2 * MIN_IMAGES, "infrared": 2 * MIN_IMAGES}
    for modality in Modality:
        found = encoder.encode(folders / str(modality), modality, normalize=False).features
        assert found.mean(axis=0) == pytest.approx(0, abs=1e-3)
        assert found.std(axis=0) == pytest.approx(1, abs=1e-2)
    assert adapted.source in told("info", adapted.folder, code=0)


def test_adapting_again_gives_what_adapting_once_gives(adapted, folders, tmp_path):
    crops = Crops.of(folders / "visible", folders / "infrared")
    again = adapt_model(adapted.folder, crops, tmp_path / "again", device="cpu", progress=False)
    assert again.digest == adapted.digest


def test_a_trained_model_gets_statistics_of_its_normalisation_too(tiny_sysu, tmp_path):
    settings = ["model.normalization=modality", "training.epochs=1"]
    train(load_config("tiny", settings), tiny_sysu, tmp_path / "run", progress=False)
    crops = Crops.of_table(read_dataset(tiny_sysu))
    found = adapt_model(tmp_path / "run", crops, tmp_path / "adapted", device="cpu", progress=False)
    names = changed(tmp_path / "run", found.folder)
    assert {"standard.mean", "standard.std"} < names
    assert all(name.startswith(("standard.", "decomposition.norm_")) for name in names)
    assert any("norm_shared.statistics.1.running_mean" in name for name in names)
    assert found.cameras == {"visible": 4, "infrared": 2}


def test_cameras_count_alike():
    values = np.array([[0.0], [2.0], [2.0], [2.0], [2.0], [2.0]], dtype=np.float32)
    mean, variance = moments(values, np.array([1, 2, 2, 2, 2, 2]))
    assert (mean[0], variance[0]) == (1.0, 1.0)
    mean, _ = moments(values, np.full(6, NO_CAMERA))
    assert mean[0] == pytest.approx(10 / 6)


def test_mistakes_are_one_line_each(folders, tmp_path):
    out = ("--out", tmp_path / "out")
    both = ("--visible", folders / "visible", "--infrared", folders / "infrared")
    assert "give either a dataset or CSV, or --visible and --infrared" in told("adapt", NAME, *out)
    assert "give --infrared, too" in told("adapt", NAME, "--visible", folders / "visible", *out)
    (tmp_path / "few").mkdir()
    shutil.copy(folders / "infrared" / "000.jpg", tmp_path / "few")
    few = told("adapt", NAME, *both[:2], "--infrared", tmp_path / "few", *out)
    assert f"1 infrared image: adapting needs at least {MIN_IMAGES} of each modality" in few
    same = told("adapt", NAME, "--visible", folders / "visible", "--infrared", folders / "visible", *out)
    assert "files are given as visible and as infrared" in same
    assert "is no adapted model" in told("adapt", NAME, *both, "--out", folders, "--overwrite")
    assert not (tmp_path / "out").exists()


def test_what_is_no_image_is_counted_and_named(folders, tmp_path):
    night = tmp_path / "night"
    shutil.copytree(folders / "infrared", night)
    (night / "notes.txt").write_text("rain")
    (night / "link.jpg").symlink_to(night / "000.jpg")
    (night / "hard.jpg").hardlink_to(night / "001.jpg")
    words = ("adapt", NAME, "--visible", folders / "visible", "--infrared", night, "--device", "cpu")
    said = told(*words, "--out", tmp_path / "a", code=0)
    assert "ignored 1: " in said
    assert "notes.txt" in said
    assert f"2 of {2 * MIN_IMAGES + 2} images are files given before, or links to them: left out" in said
    assert f"{2 * MIN_IMAGES} visible and {2 * MIN_IMAGES} infrared images" in said
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(folders / "infrared" / "000.jpg", few)
    (few / "night.raw").write_bytes(b"1")
    said = told("adapt", NAME, "--visible", folders / "visible", "--infrared", few, "--out", tmp_path / "b")
    assert "night.raw" in said
    assert "adapting needs at least" in said


def test_a_range_is_that_of_the_gallery(folders, tmp_path, caplog):
    """Deep crops, mapped by a range, give the model of the same crops in 8 bits."""
    for kind in ("grey", "deep"):
        (tmp_path / kind).mkdir()
    for path in (folders / "infrared").iterdir():
        grey = np.asarray(Image.open(path).convert("L")) // 2 + 40
        Image.fromarray(grey).save(tmp_path / "grey" / f"{path.stem}.png")
        Image.fromarray(grey.astype(np.uint16) * 10).save(tmp_path / "deep" / f"{path.stem}.png")
    words = ("adapt", NAME, "--visible", folders / "visible", "--device", "cpu", "--json")
    digests, said = [], {}
    for kind, others in (
        ("grey", ()),
        ("grey", ("--range", "0:2550")),
        ("deep", ("--range", "0:2550")),
        ("deep", ()),
    ):
        out = tmp_path / f"out{len(digests)}"
        caplog.clear()
        done = run_command(*words, "--infrared", tmp_path / kind, "--out", out, *others)
        digests.append(load(out, "cpu").digest)
        said[kind, bool(others)] = caplog.text + done.output
    assert digests[0] == digests[1] == digests[2] != digests[3]
    assert "give --range LOW:HIGH" in said["deep", False]  # and adapt has it
    assert "--range" not in said["deep", True] + said["grey", False]
    assert "the range has no effect" in said["grey", True]
    assert "give two numbers as LOW:HIGH" in told(
        *words, "--infrared", tmp_path / "deep", "--out", tmp_path / "x", "--range", "warm"
    )


def test_broken_images_are_left_out_and_named_or_refused_if_too_few_are_left(folders, tmp_path, caplog):
    mixed = tmp_path / "night"
    shutil.copytree(folders / "infrared", mixed)
    (mixed / "broken.jpg").write_bytes(b"no image")
    shutil.copy(sorted((folders / "visible").iterdir())[0], mixed / "day.jpg")
    found = adapt_model(
        NAME, Crops.of(folders / "visible", mixed), tmp_path / "a", device="cpu", progress=False
    )
    assert [fault.name for fault in found.left_out] == [str(mixed / "broken.jpg")]
    assert "broken.jpg" in caplog.text
    assert caplog.text.count("1 image with colours, given as infrared") == 1
    assert found.images["infrared"] == 2 * MIN_IMAGES + 1
    for path in sorted(mixed.glob("0*"))[: MIN_IMAGES + 2]:
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"{MIN_IMAGES - 1} infrared images(.|\n)*broken\.jpg"):
        adapt_model(NAME, Crops.of(folders / "visible", mixed), tmp_path / "b", device="cpu", progress=False)
    assert not (tmp_path / "b").exists()


def test_images_that_do_not_differ_are_refused(folders, tmp_path):
    photo = sorted((folders / "infrared").iterdir())[0]
    copies = [shutil.copy(photo, tmp_path / f"{number}.jpg") for number in range(MIN_IMAGES)]
    for same in ([Image.new("RGB", (48, 96), (90, 90, 90))] * MIN_IMAGES, copies):
        crops = Crops.of(folders / "visible", same)
        with pytest.raises(DataError, match="the infrared images do not differ"):
            adapt_model(NAME, crops, tmp_path / "a", device="cpu", progress=False)


def test_calibration_and_gallery_of_the_source_are_refused(adapted, folders, tmp_path):
    with pytest.raises(CheckpointError, match="make one with fmcnet calibrate"):
        load(adapted.folder, "cpu").calibration  # noqa: B018
    other = load(NAME, "cpu").folder / "calibration.json"
    with pytest.raises(CheckpointError, match=r"was made for another model(.|\n)*fmcnet calibrate"):
        Encoder.from_pretrained(adapted.folder, device="cpu", calibration=other).calibration  # noqa: B018
    with Gallery(tmp_path / "g") as gallery:
        Searcher(load(NAME, "cpu"), gallery).add(folders / "visible", "visible")
    with Gallery(tmp_path / "g") as gallery, pytest.raises(GalleryError, match=adapted.digest):
        Searcher(load(adapted.folder, "cpu"), gallery)


def test_an_adapted_model_is_replaced_only_when_asked(adapted, folders):
    crops = Crops.of(folders / "visible", folders / "infrared")
    with pytest.raises(CheckpointError, match="replace it with --overwrite"):
        adapt_model(NAME, crops, adapted.folder, device="cpu", progress=False)
    again = adapt_model(NAME, crops, adapted.folder, overwrite=True, device="cpu", progress=False)
    assert again.digest == adapted.digest


def test_a_projected_model_is_refused_and_an_adapted_one_can_be_projected(
    adapted, tiny_sysu, folders, tmp_path
):
    _, small = project_model(
        adapted.folder, tiny_sysu, dim=8, method="pca", out=tmp_path / "p", device="cpu", progress=False
    )
    assert load(small, "cpu").encode(folders / "visible", "visible").features.shape[1] == 8
    with pytest.raises(FmcnetError, match="adapt the model that it was made from"):
        adapt_model(small, Crops.of(folders / "visible", folders / "infrared"), tmp_path / "a", device="cpu")
