"""The generated benchmark: same seed same pixels, whole layouts, spectra that are related and not equal."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from fmcnet.data.readers import read_dataset
from fmcnet.data.table import SPLITS
from fmcnet.errors import ConfigError, DataError
from fmcnet.synthetic import GeneratedSummary, generate
from fmcnet.synthetic.cameras import WILD, _motion_blurred, camera, develop_thermal
from fmcnet.synthetic.identity import LOWER, SKIN, UPPER, draw_identity, luminance
from fmcnet.synthetic.image import ImageKey, render_image
from fmcnet.synthetic.plan import make_plan, resolve_preset

SMALL = {"train_ids": 3, "val_ids": 1, "test_ids": 2}


def tree(root: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file but the manifest."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name != "generated.json")
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def sysu(tmp_path_factory: pytest.TempPathFactory, tiny_sysu: Path) -> tuple[Path, GeneratedSummary]:
    """A copy of the preset tiny, and what a call that finds it whole says of it."""
    root = shutil.copytree(tiny_sysu, tmp_path_factory.mktemp("sysu") / "data")
    return root, generate("sysu", "tiny", 0, root, workers=1)


# -- determinism ----------------------------------------------------------------------------------------------


def test_pixels_are_a_function_of_the_address() -> None:
    key = ImageKey(5, "sysu", 7, 4, False, 2)
    first = render_image(key, 64, 32)
    render_image(ImageKey(5, "sysu", 8, 4, False, 1), 64, 32)
    assert np.array_equal(first, render_image(key, 64, 32))
    for other in (replace(key, seed=6), replace(key, pid=8), replace(key, camid=5), replace(key, index=3)):
        assert not np.array_equal(first, render_image(other, 64, 32))


def test_pixels_are_the_recorded_ones() -> None:
    """Block means of six images, so that the last bit of a sine on another CPU does not matter.

    When the generator changes on purpose: raise `generate.VERSION` and record `blocks` anew.
    """
    recorded = json.loads((Path(__file__).parent / "test_generated_pixels.json").read_text())
    for name, expected in recorded["blocks"].items():
        layout, pid, cam, infrared = name.split("/")
        pixels = render_image(ImageKey(0, layout, int(pid), int(cam), infrared == "1", 1), 64, 32)
        grey = pixels.astype(np.float64).reshape(64, 32, -1).mean(axis=2)
        blocks = grey.reshape(8, 8, 4, 8).mean(axis=(1, 3))
        assert np.abs(blocks - np.array(expected)).max() < 0.5, name


def test_same_seed_same_world_other_seed_other_world(tmp_path: Path) -> None:
    once, again, other = (
        generate("sysu", "tiny", seed, tmp_path / name, workers=1, **SMALL)
        for name, seed in (("once", 3), ("again", 3), ("other", 4))
    )
    assert again.digest == once.digest
    assert tree(tmp_path / "again") == tree(tmp_path / "once")
    assert other.digest != once.digest


def test_files_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    one, two = (
        generate("regdb", "tiny", 1, tmp_path / name, workers=workers, train_ids=3, test_ids=3)
        for workers, name in ((1, "one"), (2, "two"))
    )
    assert (one.workers, two.workers) == (1, 2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


# -- layouts --------------------------------------------------------------------------------------------------


def test_sysu_layout(sysu: tuple[Path, GeneratedSummary]) -> None:
    root, summary = sysu
    ids = {}
    for name in ("train", "val", "test"):
        text = (root / f"exp/{name}_id.txt").read_text()
        assert len(text.splitlines()) == 1
        ids[name] = [int(part) for part in text.splitlines()[0].split(",")]
        stored = loadmat(root / f"exp/{name}_id.mat")["id"]
        assert stored.dtype == np.uint16
        assert stored.shape == (1, len(ids[name]))
        assert stored[0].tolist() == ids[name]
    assert [len(ids[name]) for name in ids] == [12, 4, 8]
    assert len(set().union(*ids.values())) == 24 == summary.identities
    images = sorted(root.glob("cam*/*/*.jpg"))
    assert len(images) == summary.images
    for pid in set().union(*ids.values()):
        visible = [c for c in (1, 2, 4, 5) if (root / f"cam{c}/{pid:04d}").is_dir()]
        infrared = [c for c in (3, 6) if (root / f"cam{c}/{pid:04d}").is_dir()]
        assert len(visible) >= 2
        assert infrared
    absent = sum(not (root / f"cam{c}/{pid:04d}").is_dir() for c in range(1, 7) for pid in range(1, 25))
    assert absent > 0
    names = sorted(p.name for p in (root / f"cam{visible[0]}/{pid:04d}").iterdir())
    assert names == [f"{i:04d}.jpg" for i in range(1, len(names) + 1)]
    assert not list(root.rglob(".part*"))


def test_gallery_draw_reads_like_the_official_file(sysu: tuple[Path, GeneratedSummary]) -> None:
    root, _ = sysu
    draw = loadmat(root / "exp/rand_perm_cam.mat")["rand_perm_cam"]
    assert draw.shape == (6, 1)
    assert draw.dtype == object
    for cam in range(1, 7):
        cell = draw[cam - 1][0]
        assert cell.ndim == 2
        assert cell.shape[1] == 1
        for pid in range(1, len(cell) + 1):
            rows = cell[pid - 1][0]
            count = len(list((root / f"cam{cam}/{pid:04d}").glob("*.jpg")))
            assert rows.shape == (10, count)
            assert rows.dtype == np.uint8
            assert all(sorted(row) == list(range(1, count + 1)) for row in rows)


def test_regdb_layout(tmp_path: Path) -> None:
    summary = generate("regdb", "tiny", 2, tmp_path / "r", workers=1)
    root = tmp_path / "r"
    assert summary.images == 16 * 6
    for trial in range(1, 11):
        sets = {}
        for split in ("train", "test"):
            for kind in ("visible", "thermal"):
                lines = [
                    s.split(" ") for s in (root / f"idx/{split}_{kind}_{trial}.txt").read_text().splitlines()
                ]
                assert sorted({int(label) for _, label in lines}) == list(range(8))
                assert all((root / path).is_file() for path, _ in lines)
                sets[split, kind] = {(path.split("/")[1], label) for path, label in lines}
        assert sets["train", "visible"] == sets["train", "thermal"]
        assert not {p for p, _ in sets["train", "visible"]} & {p for p, _ in sets["test", "visible"]}
    with Image.open(next(iter((root / "Thermal/1").iterdir()))) as image:
        assert (image.format, image.size) == ("BMP", (32, 64))


def test_llcm_layout(tmp_path: Path) -> None:
    root = tmp_path / "l"
    summary = generate("llcm", "tiny", 2, root, workers=1)
    seen = 0
    for kind in ("vis", "nir"):
        lines = [line.split(" ") for line in (root / f"idx/train_{kind}.txt").read_text().splitlines()]
        assert sorted({int(label) for _, label in lines}) == list(range(12))
        assert sorted(p.relative_to(root).as_posix() for p in root.glob(f"{kind}/*/*.jpg")) == sorted(
            p for p, _ in lines
        )
        assert all(f"_{kind}.jpg" in path and "_c0" in path for path, _ in lines)
        seen += len(lines)
    tests = [int(part) for part in (root / "idx/test_id.txt").read_text().strip().split(",")]
    assert len(tests) == 8
    for kind in ("vis", "nir"):
        found = list(root.glob(f"test_{kind}/cam*/*/*.jpg"))
        assert {int(p.parent.name) for p in found} == set(tests)
        seen += len(found)
    assert seen == summary.images
    assert not (root / "test_nir/cam3").exists()


def test_full_plans_have_the_real_numbers() -> None:
    plan = make_plan("sysu", resolve_preset("sysu", "full"), 0)
    test = set(plan.test)
    assert (len(plan.train), len(plan.val), len(plan.test)) == (296, 99, 96)
    counts = {
        (part, infrared): sum(
            (j.pid in test) == (part == "test") and j.infrared == infrared for j in plan.images.values()
        )
        for part in ("train", "test")
        for infrared in (False, True)
    }
    assert counts == {
        ("train", False): 22258,
        ("train", True): 11909,
        ("test", False): 6775,
        ("test", True): 3803,
    }
    assert sum(j.camid == 3 and j.pid in test for j in plan.images.values()) == 1883
    pairs = {(j.pid, j.camid) for j in plan.images.values() if j.pid in test and not j.infrared}
    assert len(pairs) == 301
    assert sum(cam in (1, 2) for _, cam in pairs) == 112
    shown = Counter((j.pid, j.camid) for j in plan.images.values())
    assert min(shown[pair] for pair in pairs) >= 10
    kinds = {(j.pid, j.infrared) for j in plan.images.values()}
    assert kinds == {(pid, infrared) for pid in plan.pids for infrared in (False, True)}

    plan = make_plan("llcm", resolve_preset("llcm", "full"), 0)
    test = set(plan.test)
    assert sum(not j.infrared and j.pid not in test for j in plan.images.values()) == 16946
    assert sum(j.infrared and j.pid not in test for j in plan.images.values()) == 13975
    assert sum(not j.infrared and j.pid in test for j in plan.images.values()) == 8680
    assert sum(j.infrared and j.pid in test for j in plan.images.values()) == 7166
    assert len(make_plan("regdb", resolve_preset("regdb", "full"), 0).images) == 412 * 20


def test_wild_shows_every_identity_in_three_spectra_to_cameras_that_differ(tmp_path: Path) -> None:
    plan = make_plan("wild", resolve_preset("wild", "tiny"), 1)
    assert (len(plan.train), len(plan.val), len(plan.test), len(plan.images)) == (12, 4, 8, 24 * 8)
    summary = generate("wild", "tiny", 1, tmp_path / "wild", workers=1, **SMALL)
    table = read_dataset(tmp_path / "wild")
    assert (table.name, len(table), summary.images) == ("csv", 6 * 8, 6 * 8)
    assert {name: len(set(table.pid[table.split == name])) for name in SPLITS} == {
        "train": 3,
        "val": 1,
        "test": 2,
    }
    for pid in set(table.pid):
        names = [str(path) for path in table.path[table.pid == pid]]
        assert [sum(kind in name for name in names) for kind in ("visible", "nir", "thermal")] == [4, 2, 2]
    assert (table.modality == ["visible" not in path for path in table.path]).all()
    cameras = [camera("wild", 1, number, kind != "visible") for kind, own in WILD.items() for number in own]
    assert 5 <= sum(cam.quality == 0 for cam in cameras) <= 60
    assert any(cam.inverted for cam in cameras if cam.spectrum == "thermal")
    assert any(cam.glare and cam.shade for cam in cameras)
    levels = [np.asarray(Image.open(tmp_path / "wild" / path)).mean() for path in table.path]
    assert np.percentile(levels, 90) > 2 * np.percentile(levels, 10)


def test_a_thermal_camera_of_the_other_polarity_shows_the_negative() -> None:
    cams = [replace(camera("regdb", 0, 2, True), noise=0.0, inverted=inverted) for inverted in (False, True)]
    celsius = np.linspace(20, 30, 64, dtype=np.float32)[:, None].repeat(32, axis=1)
    warm, cold = (
        develop_thermal(celsius, cam, (32, 64), np.random.default_rng(0)).astype(float) for cam in cams
    )
    assert warm[-1].mean() > warm[0].mean() + 50
    assert (
        np.abs(warm + cold - 251).max() < 12
    )  # 8..243 either way; the halo of local contrast changes its sign


def test_motion_blur_keeps_the_mean_and_takes_the_edges() -> None:
    stripes = np.zeros((64, 32), dtype=np.uint8)
    stripes[:, 8:16] = 200
    out = np.asarray(_motion_blurred(Image.fromarray(stripes), 5))
    assert abs(float(out.mean()) - float(stripes.mean())) < 0.5
    assert out.max() == 200
    assert np.abs(np.diff(out[10].astype(int))).max() == 40


def test_small_preset_fits_the_demo() -> None:
    plan = make_plan("sysu", resolve_preset("sysu", "small"), 0)
    assert (len(plan.train), len(plan.val), len(plan.test)) == (700, 20, 200)
    assert 9000 < len(plan.images) <= 10000


@pytest.mark.parametrize("size", [(128, 64), (288, 144)])
def test_image_sizes(size: tuple[int, int]) -> None:
    assert render_image(ImageKey(0, "sysu", 1, 1, False, 1), *size).shape == (*size, 3)
    assert render_image(ImageKey(0, "sysu", 1, 6, True, 1), *size).shape == size


# -- resuming and refusing ------------------------------------------------------------------------------------


def test_continues_where_it_was(tmp_path: Path) -> None:
    root = tmp_path / "d"
    first = generate("sysu", "tiny", 1, root, workers=1, **SMALL)
    before = tree(root)
    lost = sorted(root.glob("cam*/*/*.jpg"))[::3]
    stamp = {p: p.stat().st_mtime_ns for p in root.glob("cam*/*/*.jpg") if p not in lost}
    for path in lost[1:]:
        path.unlink()
    lost[0].write_text("no image")
    cut = lost.pop(1)  # as by a copy that was cut off
    shutil.copy(next(iter(stamp)), cut)
    os.truncate(cut, cut.stat().st_size - 300)
    lost.append(cut)
    second = generate("sysu", "tiny", 1, root, workers=1, **SMALL)
    assert (second.written, second.reused) == (len(lost), first.images - len(lost))
    assert tree(root) == before
    assert second.digest == first.digest
    assert all(p.stat().st_mtime_ns == t for p, t in stamp.items())
    assert generate("sysu", "tiny", 1, root, workers=1, **SMALL).written == 0


@pytest.mark.slow
def test_killed_it_leaves_no_process(tmp_path: Path) -> None:
    """A pipe ends when the last process that holds it has ended."""
    root = tmp_path / "killed"
    command = [sys.executable, "-m", "fmcnet", "data", "generate", "--out", str(root), "--preset", "small"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    end = time.monotonic() + 60
    while not list(root.rglob("*.jpg")):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=30)


def test_continues_after_a_kill(tmp_path: Path) -> None:
    root = tmp_path / "killed"
    amounts = {"train_ids": 6, "val_ids": 2, "test_ids": 2}
    call = f"generate('sysu', 'tiny', 1, {str(root)!r}, workers=1, **{amounts})"
    code = f"from fmcnet.synthetic import generate; {call}"
    process = subprocess.Popen([sys.executable, "-c", code])
    limit = time.monotonic() + 20
    while len(list(root.glob("cam*/*/*.jpg"))) < 5 and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((root / "generated.json").read_text())["complete"] is False
    there = len(list(root.glob("cam*/*/*.jpg")))
    summary = generate("sysu", "tiny", 1, root, workers=1, **amounts)
    assert 5 <= there == summary.reused < summary.images
    assert json.loads((root / "generated.json").read_text())["complete"] is True
    for path in root.glob("cam*/*/*.jpg"):
        with Image.open(path) as image:
            image.load()


SCRIPT = """
from fmcnet.__main__ import main
if __name__ == "__main__":
    import sys
    import fmcnet.synthetic
    sys.modules["fmcnet.synthetic.generate"]._CHUNK = 8  # the end waits for five of them
    main()
"""


@pytest.mark.parametrize("presses", [1, 3])
def test_ctrl_c_is_one_line_and_half_a_dataset_is_no_dataset(tmp_path: Path, presses: int) -> None:
    root = tmp_path / "wild"
    script = (
        tmp_path / "bin" / "fmcnet"
    )  # as the installed one: Python's path does not begin with the working folder
    script.parent.mkdir()
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), "data", "generate", "--layout", "wild", "--preset", "small"]
    command += ["--workers", "2", "--out", str(root)]
    if sys.version_info >= (3, 11):
        (tmp_path / "socket.py").write_text("raise SystemExit('a module of the working folder was imported')")
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    limit = time.monotonic() + 60
    while not list(root.glob("images/*/*.jpg")) and time.monotonic() < limit:
        time.sleep(0.01)
    for _ in range(presses):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
        time.sleep(0.1)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.splitlines()[-1] == "fmcnet: interrupted: the same command continues it"
    assert "Traceback" not in told
    assert "was imported" not in told
    assert 0 < len(list(root.glob("images/*/*.jpg"))) < 850 * 8
    for source, layout in ((root, "auto"), (root / "people.csv", "csv")):
        for training in (True, False):
            with pytest.raises(
                DataError, match="generation was interrupted: call the same fmcnet data generate"
            ):
                read_dataset(source, layout=layout, training=training)


def test_a_dataset_that_lost_images_is_not_whole_until_they_are_there_again(tmp_path: Path) -> None:
    root = tmp_path / "d"
    few = {"train_ids": 2, "test_ids": 2, "train_images": 1}
    generate("regdb", "tiny", 1, root, workers=1, **few)
    whole = (root / "generated.json").read_bytes()
    next(root.glob("Visible/*/*.bmp")).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["fmcnet.synthetic.generate"], "write_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate("regdb", "tiny", 1, root, workers=1, **few)
    with pytest.raises(DataError, match="was interrupted"):
        read_dataset(root)
    generate("regdb", "tiny", 1, root, workers=1, **few)
    assert (root / "generated.json").read_bytes() == whole


def interrupted(*_: object) -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_manifest_holds_is_refused(seed: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"the seed must lie in .*, got {seed}"):
        generate("wild", "tiny", seed, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_refuses_other_arguments_and_other_folders(
    sysu: tuple[Path, GeneratedSummary], tmp_path: Path
) -> None:
    root, _ = sysu
    with pytest.raises(
        DataError, match=r"holds a generated benchmark with seed 0; asked for seed 4.*another folder"
    ):
        generate("sysu", "tiny", 4, root)
    with pytest.raises(DataError, match="layout sysu"):
        generate("llcm", "tiny", 0, root)
    (tmp_path / "mine.txt").write_text("hello")
    with pytest.raises(DataError, match=r"not empty.*mine\.txt"):
        generate("sysu", "tiny", 0, tmp_path)
    with pytest.raises(DataError, match="is a file"):
        generate("sysu", "tiny", 0, tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "hello"


@pytest.mark.parametrize(
    ("layout", "preset", "overrides", "words"),
    [
        ("market", "tiny", {}, "layout 'market'"),
        ("sysu", "huge", {}, "preset 'huge'"),
        ("sysu", "tiny", {"colour": 3}, "'colour' is no number"),
        ("sysu", "tiny", {"height": 5}, "height = 5"),
        ("regdb", "tiny", {"train_ids": 5}, "halves"),
        ("sysu", "full", {"train_ids": 5}, "real_counts"),
        ("Wild", "tiny", {}, "layout 'Wild' is not one of sysu, regdb, llcm, wild"),
        ("wild", "tiny", {"val_ids": 0}, "val_ids = 0 must lie in 1..1000"),
        ("wild", "tiny", {"real_counts": 1}, "real_counts"),
    ],
)
def test_bad_arguments(
    layout: str, preset: str, overrides: dict[str, int], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        generate(layout, preset, 0, tmp_path / "x", **overrides)
    assert not (tmp_path / "x").exists()


# -- spectra --------------------------------------------------------------------------------------------------


def test_materials_are_related_and_not_equal() -> None:
    people = [draw_identity(0, pid) for pid in range(1, 601)]
    for slot in (UPPER, LOWER):
        light = np.sqrt([luminance(p.materials[slot].visible[0]) for p in people])
        nir = np.array([p.materials[slot].nir[0] for p in people])
        warm = np.array([p.materials[slot].temperature for p in people])
        assert 0.5 < np.corrcoef(light, nir)[0, 1] < 0.85
        assert abs(np.corrcoef(light, warm)[0, 1]) < 0.15
        assert nir.std() > 0.12
    patterned = [p.materials[UPPER] for p in people if p.materials[UPPER].pattern != "plain"]
    step = np.array([m.nir[1] - m.nir[0] for m in patterned])
    assert 0.15 < np.mean(np.abs(step) < 0.05) < 0.45  # vanishes in the near infrared
    assert all(0.0 <= v <= 1.0 for m in patterned for v in (*m.nir, *m.visible[0], *m.visible[1]))


def test_near_infrared_files_have_no_hue(sysu: tuple[Path, GeneratedSummary]) -> None:
    root, _ = sysu
    spread = {}
    for cam in range(1, 7):
        images = [np.asarray(Image.open(p)).astype(int) for p in sorted(root.glob(f"cam{cam}/*/*.jpg"))[:10]]
        assert all(image.shape == (64, 32, 3) for image in images)
        spread[cam] = max(np.ptp(image, axis=2).max() for image in images)
    assert spread[3] == spread[6] == 0
    assert min(spread[c] for c in (1, 2, 4, 5)) > 40


def test_skin_is_warmer_than_clothes_and_clothes_than_the_background() -> None:
    people = [draw_identity(0, pid) for pid in range(1, 301)]
    skin = np.array([p.materials[SKIN].temperature for p in people])
    cloth = np.array([p.materials[UPPER].temperature for p in people])
    assert np.mean(skin - cloth) > 3.0
    assert np.mean(skin > cloth) > 0.97
    images = np.stack([render_image(ImageKey(0, "regdb", pid, 2, True, 1), 128, 64) for pid in range(1, 25)])
    middle = images[:, 40:80, 26:38].mean()
    rim = np.concatenate([images[:, :30, :6], images[:, :30, -6:]], axis=2).mean()
    assert middle > rim + 60


def test_an_identity_is_one_person_in_every_layout() -> None:
    assert draw_identity(4, 9) == draw_identity(4, 9)
    assert draw_identity(4, 9) != draw_identity(4, 10)
    people = [draw_identity(1, pid) for pid in range(1, 201)]
    assert {p.bag for p in people} == {"none", "backpack", "shoulder", "tote"}
    assert {p.bottom for p in people} == {"trousers", "shorts", "skirt", "dress"}
    assert {p.sleeves for p in people} == {"long", "short", "none"}
    assert {p.materials[UPPER].pattern for p in people} >= {
        "plain",
        "hstripes",
        "vstripes",
        "checks",
        "print",
    }


def test_the_whole_world_moves_with_the_camera() -> None:
    """Two cameras of one room share the scene; yaw covers front and back."""
    from fmcnet.synthetic.cameras import camera

    assert camera("sysu", 0, 2, False).place == camera("sysu", 0, 3, True).place
    assert {camera("sysu", 0, c, c in (3, 6)).spectrum for c in (3, 6)} == {"nir"}
    assert camera("regdb", 0, 2, True).spectrum == "thermal"
