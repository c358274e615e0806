"""Training throughput in images per second: our feeding and our step against the public recipe's.

    OMP_NUM_THREADS=1 python benchmarks/training.py                 # all cases, some minutes
    OMP_NUM_THREADS=1 python benchmarks/training.py data both       # some cases
    OMP_NUM_THREADS=2 python benchmarks/training.py --out benchmarks/training-2-threads.json
    python benchmarks/training.py --device cuda --workers 4 --out benchmarks/training-cuda.json

The baseline is `public_recipe.py`: read there what it renders and where it deviates. Both sides run in this one
process, turn about (A B A B ...), each turn with a warm-up that is not counted; the median of a side's turns is its
rate, and the ratio of the medians the result. Every image of a batch counts, visible and infrared: 2 P K a batch.
Results go to benchmarks/training.json, with machine and date.

Images come from the generated benchmark (made once, into fmcnet's cache folder), 288x144 on disk and 128x64 in the
batch; the model is FMCNet in full over ResNet-18, P = 8, K = 4.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from evaluation import log, machine
from public_recipe import PublicLoader, PublicStep

from fmcnet.config import Config, load_config
from fmcnet.data.benchmarks import read_dataset
from fmcnet.data.cache import ImageCache, default_folder
from fmcnet.data.generated import generate
from fmcnet.data.table import Table
from fmcnet.types import Modality

HERE = Path(__file__).parent
SEED = 0
WORLD = {"train_ids": 64, "val_ids": 2, "test_ids": 2, "train_images": 4, "height": 288, "width": 144}
EPOCH = 696  # batches an epoch of SYSU-MM01 at P = 8, K = 4, so that workers start as rarely as they do there
CONFIG = load_config(
    "generated",
    [
        "data.height=128",
        "data.width=64",
        "data.identities=8",
        "data.images=4",
        "augment.pad=10",
        "augment.flip=0.5",
        "augment.erase=0.5",
        "augment.channel=exchange",
        "augment.channel_probability=0.5",
        "model.variant=full",
        "model.arch=resnet18",
        "model.width=64",
    ],
)

Turn = Generator[int, None, None]
"""Every `next` does one batch's work and gives its number of images; closing it ends its workers."""


@dataclass(frozen=True)
class Setting:
    """What every side of every case is given."""

    config: Config
    device: torch.device
    workers: int


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: on the command line and in the results.
        what: in words.
        baseline: starts a turn of the public recipe.
        ours: starts a turn of ours; None: the baseline is measured alone.
        warm: batches at the start of a turn that are not counted: at least those that workers hold ready.
    """

    name: str
    what: str
    baseline: Callable[[Setting], Turn]
    ours: Callable[[Setting], Turn] | None = None
    warm: int = 8


@cache
def train_table() -> Table:
    """The training images of the generated benchmark, made where they are not there yet."""
    folder = default_folder() / "benchmarks" / "training"
    generate("sysu", "tiny", SEED, folder, **WORLD)
    return read_dataset(folder).select(split="train")


@cache
def image_cache(height: int, width: int) -> ImageCache:
    """Those images, decoded and resized."""
    return ImageCache(train_table(), height, width)


def public_loader(setting: Setting, *, plain: bool = False, decode: bool = False) -> PublicLoader:
    """The baseline's loader. plain: AGW's transforms, without CAJ's. decode: from files at each access."""
    table, data, augment = train_table(), setting.config.data, setting.config.augment
    labels, _ = table.labels()
    halves = [table.modality == modality.code for modality in (Modality.VISIBLE, Modality.INFRARED)]
    paths = table.full_paths()
    files = tuple([paths[row] for row in half.nonzero()[0]] for half in halves)
    images = image_cache(data.height, data.width).images
    held = (None, None) if decode else tuple(images[half] for half in halves)  # copies, in memory
    return PublicLoader(
        *held,
        *(labels[half] for half in halves),
        identities=data.identities,
        images=data.images,
        height=data.height,
        width=data.width,
        workers=setting.workers,
        erase=not plain,
        channel=not plain,
        decode_paths=files if decode else None,
        seed=SEED,
        steps=EPOCH,
        pad=augment.pad,
        flip=augment.flip,
        erase_chance=augment.erase,
        channel_chance=augment.channel_probability,
    )


@cache
def public_step(setting: Setting) -> PublicStep:
    """The baseline's model and optimisers; one for all turns, so that only a turn's warm-up pays for first calls."""
    torch.manual_seed(SEED)
    return PublicStep(setting.config, len(train_table().labels()[1]), setting.device)


def public_data(**options: bool) -> Callable[[Setting], Turn]:
    """The data alone, up to the device."""

    def turn(setting: Setting) -> Turn:
        for batch in public_loader(setting, **options):
            visible, infrared, _ = (part.to(setting.device) for part in batch)
            yield len(visible) + len(infrared)

    return turn


def public_step_alone(setting: Setting) -> Turn:
    """The step alone, on one batch that lies in memory."""
    step = public_step(setting)
    batch = next(iter(public_loader(replace(setting, workers=0))))
    while True:
        step.step(*batch)
        yield len(batch[0]) + len(batch[1])


def public_both(**options: bool) -> Callable[[Setting], Turn]:
    """Data and step: training as it runs."""

    def turn(setting: Setting) -> Turn:
        step = public_step(setting)
        for batch in public_loader(setting, **options):
            step.step(*batch)
            yield len(batch[0]) + len(batch[1])

    return turn


CASES = [
    Case("data", "data alone, images in memory, CAJ's augmentation", public_data()),
    Case("data-plain", "data alone, images in memory, AGW's augmentation", public_data(plain=True)),
    Case("data-decode", "data alone, files decoded at each access, CAJ's", public_data(decode=True)),
    Case("step", "step alone, one batch in memory", public_step_alone, warm=1),
    Case("both", "data and step, images in memory, CAJ's augmentation", public_both(), warm=2),
    Case("both-decode", "data and step, files decoded at each access", public_both(decode=True), warm=2),
]


def turn_rate(turn: Turn, seconds: float, warm: int, device: torch.device) -> float:
    """Images per second of one turn that lasts at least so many seconds after its warm-up; ends the turn."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with closing(turn):
        for _ in range(warm):
            next(turn)
        wait()
        images, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            images += next(turn)
        wait()
        return images / (time.perf_counter() - start)


def measure(case: Case, setting: Setting, seconds: float, repeats: int) -> dict[str, Any]:
    """Both sides turn about in one run (A B A B ...), and what came of it."""
    sides = {"public": case.baseline} | ({} if case.ours is None else {"ours": case.ours})
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, start in sides.items():
            rates[side].append(turn_rate(start(setting), seconds, case.warm, setting.device))
    data = setting.config.data
    result: dict[str, Any] = {
        "what": case.what,
        "images_in_a_batch": 2 * data.identities * data.images,
        "workers_of_public": setting.workers,
        "turns": repeats,
        "seconds_a_turn": seconds,
    }
    for side, found in rates.items():
        result[f"{side}_images_per_s"] = round(statistics.median(found), 1)
        result[f"{side}_range"] = [round(min(found), 1), round(max(found), 1)]
    if case.ours is not None:
        result["ratio"] = round(statistics.median(rates["ours"]) / statistics.median(rates["public"]), 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(c.name for c in CASES)}")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--workers", type=int, default=2, help="of the public loader; its own default is 4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=HERE / "training.json")
    args = parser.parse_args()
    known = {case.name: case for case in CASES}
    if unknown := set(args.cases) - set(known):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    setting = Setting(CONFIG, torch.device(args.device), args.workers)
    here = machine()  # before the images are made, so that the load is not our own
    if setting.device.type == "cuda":
        here["device"] = torch.cuda.get_device_name(setting.device)
    image_cache(CONFIG.data.height, CONFIG.data.width)
    results = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for name in args.cases or known:
        log(f"{name}...")
        found = measure(known[name], setting, args.seconds, args.repeats)
        results[name] = {**found, "machine": here}
        log(json.dumps(found, indent=1))
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
