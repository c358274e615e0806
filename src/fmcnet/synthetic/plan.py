"""Plans a generated benchmark: presets, the images of each layout, and the files beside them."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

from fmcnet.errors import ConfigError
from fmcnet.synthetic.cameras import WILD
from fmcnet.synthetic.image import ImageKey

LAYOUTS = ("sysu", "regdb", "llcm", "wild")
PRESET_NAMES = ("tiny", "small", "full")


@dataclass(frozen=True)
class Preset:
    """Numbers of identities and images of a benchmark, and the image size."""

    train_ids: int  # identities for training (RegDB: half of all, as its splits are halves)
    val_ids: int  # identities for validation; 0 in the layouts of RegDB and LLCM, which have none
    test_ids: int  # identities for testing
    height: int  # rows of an image in pixels
    width: int  # columns of an image in pixels
    train_images: int  # images per identity and camera in training; RegDB: per identity and modality
    test_images: int  # the same in testing, at most one more for some; unused by RegDB
    real_counts: int = 0  # 1: exactly the real dataset's numbers of images, in place of the two above


_PRESETS: dict[tuple[str, str], Preset] = {
    ("sysu", "tiny"): Preset(12, 4, 8, 64, 32, 2, 2),
    ("sysu", "small"): Preset(700, 20, 200, 128, 64, 2, 2),
    ("sysu", "full"): Preset(296, 99, 96, 288, 144, 0, 0, 1),
    ("regdb", "tiny"): Preset(8, 0, 8, 64, 32, 3, 3),
    ("regdb", "small"): Preset(100, 0, 100, 128, 64, 10, 10),
    ("regdb", "full"): Preset(206, 0, 206, 128, 64, 10, 10),
    ("llcm", "tiny"): Preset(12, 0, 8, 64, 32, 1, 1),
    ("llcm", "small"): Preset(250, 0, 100, 128, 64, 2, 2),
    ("llcm", "full"): Preset(713, 0, 351, 288, 144, 0, 0, 1),
    ("wild", "tiny"): Preset(12, 4, 8, 64, 32, 1, 1),
    ("wild", "small"): Preset(700, 50, 100, 192, 96, 1, 1),
    ("wild", "full"): Preset(3000, 200, 400, 192, 96, 1, 1),
}


def resolve_preset(layout: str, name: str, overrides: dict[str, int] | None = None) -> Preset:
    """The preset of a layout with single numbers replaced: `overrides`, by field of `Preset`.

    Raises:
        ConfigError: an unknown layout, preset or field, or a number out of range; all faults are listed.
    """
    overrides, faults = overrides or {}, list[str]()
    if layout not in LAYOUTS:
        faults.append(f"layout '{layout}' is not one of {', '.join(LAYOUTS)}")
    if name not in PRESET_NAMES:
        faults.append(f"preset '{name}' is not one of {', '.join(PRESET_NAMES)}")
    known = [field.name for field in fields(Preset)]
    for key, value in overrides.items():
        if key not in known:
            faults.append(f"'{key}' is no number of a preset; known: {', '.join(known)}")
        elif type(value) is not int:
            faults.append(f"{key} must be a whole number, got {value!r}")
    if not faults:
        chosen = replace(_PRESETS[layout, name], **overrides)
        faults = _preset_faults(layout, chosen)
    if faults:
        raise ConfigError("; ".join(faults))
    return chosen


def _preset_faults(layout: str, preset: Preset) -> list[str]:
    limits = {"train_ids": (2, 4000), "test_ids": (2, 4000), "height": (32, 1024), "width": (16, 512)}
    if layout in ("sysu", "wild"):
        limits["val_ids"] = (1, 1000)
    if not preset.real_counts:
        limits |= {"train_images": (1, 500), "test_images": (1, 500)}
    faults = [
        f"{key} = {getattr(preset, key)} must lie in {low}..{high}"
        for key, (low, high) in limits.items()
        if not low <= getattr(preset, key) <= high
    ]
    if layout in ("regdb", "llcm") and preset.val_ids:
        faults.append(f"{layout} has no validation identities: val_ids must be 0")
    if layout == "regdb" and preset.train_ids != preset.test_ids:
        faults.append("regdb's splits are halves: train_ids and test_ids must be equal")
    full = _PRESETS[layout, "full"]
    ids = [(p.train_ids, p.val_ids, p.test_ids) for p in (preset, full)]
    if preset.real_counts and (not full.real_counts or ids[0] != ids[1]):
        faults.append(
            "the real dataset's numbers of images need its numbers of identities: set real_counts to 0 too"
        )
    return faults


@dataclass(frozen=True)
class BenchmarkPlan:
    """All images of a benchmark and its identity lists (sorted)."""

    layout: str  # "sysu", "regdb", "llcm" or "wild"
    images: dict[str, ImageKey]  # by path below the root, in order of path within a camera and identity
    train: tuple[int, ...]  # training identities; empty for RegDB, whose ten splits are drawn by the writer
    val: tuple[int, ...]  # validation identities
    test: tuple[int, ...]  # test identities; for RegDB empty as well

    @property
    def pids(self) -> tuple[int, ...]:
        """All identities, sorted."""
        return tuple(sorted({key.pid for key in self.images.values()}))


Counts = dict[tuple[int, int], int]
"""(pid, camid) -> number of images."""

_SYSU_VISIBLE, _SYSU_INFRARED = (1, 2, 4, 5), (3, 6)
_SYSU_TRAIN_IDS = {1: 203, 2: 203, 3: 390, 4: 388, 5: 392, 6: 205}
_SYSU_TEST_IDS = {1: 56, 2: 56, 3: 93, 4: 94, 5: 95, 6: 96}
_SYSU_TEST_IMAGES = {1: 1374, 2: 1565, 3: 1883, 4: 1918, 5: 1918, 6: 1920}
_LLCM_TOTALS = {"train": (16946, 13975), "test": (8680, 7166)}


def make_plan(layout: str, amounts: Preset, seed: int) -> BenchmarkPlan:
    """The plan of a layout: a pure function of its arguments."""
    plans = {"sysu": _plan_sysu, "regdb": _plan_regdb, "llcm": _plan_llcm, "wild": _plan_wild}
    return plans[layout](amounts, seed)


def _split_identities(
    rng: np.random.Generator, amounts: Preset
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Split identities 1..N at random into train, val and test; each sorted."""
    total = amounts.train_ids + amounts.val_ids + amounts.test_ids
    order = [int(p) + 1 for p in rng.permutation(total)]
    first, second = amounts.train_ids, amounts.train_ids + amounts.val_ids
    return tuple(sorted(order[:first])), tuple(sorted(order[first:second])), tuple(sorted(order[second:]))


def _share_images(rng: np.random.Generator, keys: list[tuple[int, int]], total: int) -> Counts:
    """Share `total` images among the keys, unevenly (about 0.75 to 1.25 of the mean), exactly."""
    weights = rng.uniform(0.75, 1.25, len(keys))
    exact: NDArray[np.float64] = weights / weights.sum() * total
    counts = np.floor(exact).astype(int)
    rest = np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]
    counts[rest] += 1
    return {key: int(n) for key, n in zip(keys, counts, strict=True)}


def _identities_by_camera(order: list[int], counts: dict[int, int]) -> dict[int, list[int]]:
    """The identities seen by each camera, in the given numbers; every identity is in both modalities.

    Cameras that miss many see the same first part of the order; the few missing from others are in that part, too.
    """
    result, start = {}, 0
    for cam, count in counts.items():
        missing = len(order) - count
        if count < 0.7 * len(order):
            result[cam] = sorted(order[:count])
        else:
            result[cam] = sorted(order[:start] + order[start + missing :])
            start += missing
    return result


def _sysu_real(rng: np.random.Generator, ids: tuple[int, ...], test: bool) -> Counts:
    order = [ids[int(i)] for i in rng.permutation(len(ids))]
    present = _identities_by_camera(order, _SYSU_TEST_IDS if test else _SYSU_TRAIN_IDS)
    groups: list[tuple[tuple[int, ...], int]] = [(_SYSU_VISIBLE, 22258), (_SYSU_INFRARED, 11909)]
    if test:
        groups = [((cam,), total) for cam, total in _SYSU_TEST_IMAGES.items()]
    counts: Counts = {}
    for cams, total in groups:
        counts |= _share_images(rng, [(pid, cam) for cam in cams for pid in present[cam]], total)
    return counts


def _sysu_even(rng: np.random.Generator, ids: tuple[int, ...], images: int, extra: bool) -> Counts:
    """Each camera misses some identities; each identity keeps two visible cameras and one infrared at least."""
    counts: Counts = {}
    for pid in ids:
        visible = [c for c in _SYSU_VISIBLE if rng.random() < 0.80]
        infrared = [c for c in _SYSU_INFRARED if rng.random() < 0.90]
        if len(visible) < 2:
            visible = [int(rng.choice([1, 2])), int(rng.choice([4, 5]))]
        if not infrared:
            infrared = [int(rng.choice(_SYSU_INFRARED))]
        for cam in visible + infrared:
            counts[pid, cam] = images + (int(rng.integers(0, 2)) if extra else 0)
    return counts


def _plan_sysu(amounts: Preset, seed: int) -> BenchmarkPlan:
    rng = np.random.default_rng([7401, seed, 1])
    train, val, test = _split_identities(rng, amounts)
    if amounts.real_counts:
        counts = _sysu_real(rng, tuple(sorted(train + val)), test=False) | _sysu_real(rng, test, test=True)
    else:
        counts = _sysu_even(rng, tuple(sorted(train + val)), amounts.train_images, extra=False)
        counts |= _sysu_even(rng, test, amounts.test_images, extra=True)
    images = {
        f"cam{cam}/{pid:04d}/{i:04d}.jpg": ImageKey(seed, "sysu", pid, cam, cam in _SYSU_INFRARED, i)
        for pid, cam in sorted(counts)
        for i in range(1, counts[pid, cam] + 1)
    }
    return BenchmarkPlan("sysu", images, train, val, test)


def _plan_regdb(amounts: Preset, seed: int) -> BenchmarkPlan:
    images = {
        f"{folder}/{pid}/person_{letter}_{i:05d}_{pid}.bmp": ImageKey(seed, "regdb", pid, cam, cam == 2, i)
        for pid in range(1, amounts.train_ids + amounts.test_ids + 1)
        for cam, folder, letter in ((1, "Visible", "v"), (2, "Thermal", "t"))
        for i in range(1, amounts.train_images + 1)
    }
    return BenchmarkPlan("regdb", images, (), (), ())


def _plan_llcm(amounts: Preset, seed: int) -> BenchmarkPlan:
    rng = np.random.default_rng([7401, seed, 3])
    train, _, test = _split_identities(rng, amounts)
    images = {}
    for split, ids, amount in (("train", train, amounts.train_images), ("test", test, amounts.test_images)):
        # Four to six visible cameras of nine, and the infrared ones of the same places (there is no infrared 3).
        cameras_of = {
            pid: sorted(rng.choice(np.arange(1, 10), rng.integers(4, 7), False).tolist()) for pid in ids
        }
        for infrared, spectrum in ((False, "vis"), (True, "nir")):
            keys = [(pid, cam) for pid in ids for cam in cameras_of[pid] if not (infrared and cam == 3)]
            if amounts.real_counts:
                counts = _share_images(rng, keys, _LLCM_TOTALS[split][int(infrared)])
            else:
                counts = dict.fromkeys(keys, amount)
            for pid, cam in keys:
                folder = spectrum if split == "train" else f"test_{spectrum}/cam{cam}"
                for i in range(1, counts[pid, cam] + 1):
                    name = f"{pid:04d}_c{cam:02d}_s{200000 + pid}_f{40 * i}_{spectrum}.jpg"
                    path = f"{folder}/{pid:04d}/{name}"
                    images[path] = ImageKey(seed, "llcm", pid, cam, infrared, i)
    return BenchmarkPlan("llcm", images, train, (), test)


WILD_SEEN = {"visible": 4, "nir": 2, "thermal": 2}
"""Cameras of each spectrum that see an identity of the layout wild."""


def _plan_wild(amounts: Preset, seed: int) -> BenchmarkPlan:
    rng = np.random.default_rng([7401, seed, 4])
    train, val, test = _split_identities(rng, amounts)
    images = {}
    for ids, count in ((train, amounts.train_images), (val + test, amounts.test_images)):
        for pid in ids:
            for spectrum, cameras in WILD.items():
                for cam in sorted(rng.choice(cameras, WILD_SEEN[spectrum], replace=False).tolist()):
                    for i in range(1, count + 1):
                        key = ImageKey(seed, "wild", pid, cam, spectrum != "visible", i)
                        images[f"images/{pid:04d}/c{cam:02d}_{i:04d}_{spectrum}.jpg"] = key
    # Sorted by camera: a process caches the scenes of a few cameras.
    images = dict(sorted(images.items(), key=lambda item: (item[1].camid, item[0])))
    return BenchmarkPlan("wild", images, train, val, test)


def _mat_file(**variables: object) -> bytes:
    stream = io.BytesIO()
    savemat(stream, variables)
    data = bytearray(stream.getvalue())
    note = b"MATLAB 5.0 MAT-file, written by fmcnet's generated benchmark"  # scipy's own header contains the date
    data[:116] = note.ljust(116)
    return bytes(data)


def _id_line(ids: tuple[int, ...]) -> bytes:
    return (",".join(str(pid) for pid in ids) + "\n").encode()


def _sysu_files(plan: BenchmarkPlan, seed: int) -> dict[str, bytes]:
    files = {}
    for name, ids in (("train", plan.train), ("val", plan.val), ("test", plan.test)):
        files[f"exp/{name}_id.txt"] = _id_line(ids)
        files[f"exp/{name}_id.mat"] = _mat_file(id=np.array([ids], dtype=np.uint16))
    counts = Counter((key.pid, key.camid) for key in plan.images.values())
    rng = np.random.default_rng([7501, seed])
    cameras = np.empty((6, 1), dtype=object)
    for cam in range(1, 7):
        last = max((pid for pid, c in counts if c == cam), default=1)
        cell = np.empty((last, 1), dtype=object)
        for pid in range(1, last + 1):
            n = counts[pid, cam]
            rows = [rng.permutation(n) + 1 for _ in range(10)]
            cell[pid - 1, 0] = np.array(rows, dtype=np.uint8 if n < 256 else np.uint16).reshape(10, n)
        cameras[cam - 1, 0] = cell
    files["exp/rand_perm_cam.mat"] = _mat_file(rand_perm_cam=cameras)
    return files


def _regdb_files(plan: BenchmarkPlan, seed: int) -> dict[str, bytes]:
    files = {}
    paths = defaultdict[tuple[int, bool], list[str]](list)
    for path, key in plan.images.items():
        paths[key.pid, key.infrared].append(path)
    half = len(plan.pids) // 2
    for trial in range(1, 11):
        order = np.random.default_rng([7502, seed, trial]).permutation(plan.pids).tolist()
        for split, ids in (("train", sorted(order[:half])), ("test", sorted(order[half:]))):
            for infrared, spectrum in ((False, "visible"), (True, "thermal")):
                lines = [
                    f"{path} {label}\n" for label, pid in enumerate(ids) for path in paths[pid, infrared]
                ]
                files[f"idx/{split}_{spectrum}_{trial}.txt"] = "".join(lines).encode()
    return files


def _llcm_files(plan: BenchmarkPlan, seed: int) -> dict[str, bytes]:
    label = {pid: i for i, pid in enumerate(plan.train)}
    files = {"idx/test_id.txt": _id_line(plan.test)}
    for infrared, spectrum in ((False, "vis"), (True, "nir")):
        for split in ("train", "test"):
            lines = [
                f"{path} {label.get(key.pid, key.pid)}\n"
                for path, key in plan.images.items()
                if key.infrared == infrared and (key.pid in label) == (split == "train")
            ]
            files[f"idx/{split}_{spectrum}.txt"] = "".join(lines).encode()
    return files


def _wild_files(plan: BenchmarkPlan, seed: int) -> dict[str, bytes]:
    split = {pid: name for name in ("train", "val", "test") for pid in getattr(plan, name)}
    rows = [
        f"{path},{key.pid},{'infrared' if key.infrared else 'visible'},{key.camid},{split[key.pid]}\n"
        for path, key in plan.images.items()
    ]
    return {"people.csv": ("path,pid,modality,camera,split\n" + "".join(rows)).encode()}


def side_files(plan: BenchmarkPlan, seed: int) -> dict[str, bytes]:
    """All files of a layout that are not images: relative path -> content."""
    files = {"sysu": _sysu_files, "regdb": _regdb_files, "llcm": _llcm_files, "wild": _wild_files}
    return files[plan.layout](plan, seed)
