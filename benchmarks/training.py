"""Training throughput in images per second: our feeding and our step against the public recipe's.

    python benchmarks/training.py                     # all cases on all cores, some minutes
    python benchmarks/training.py data both           # some cases
    python benchmarks/training.py --device cuda --arch resnet50 --height 288 --width 144 --workers 8

The baseline is `public_recipe.py`: read there what it renders and where it deviates. Each side lives in a process of
its own (ours keeps freed memory, which would help the other), asleep while the other is measured; turn about (A B A B
...), each turn with a warm-up that is not counted. The median of a side's turns is its rate, and the ratio of the
medians the result. Every image of a batch counts, visible and infrared: 2 P K a batch. Results go to
benchmarks/training.json, with machine and date.

"wait" is the share of our step in which it waits for data, "of the matrix rate" how much of the rate of one large
matrix product (in the type that the network computes in) a step's arithmetic reaches; both in the case "both".

Images come from the generated benchmark (made once, into fmcnet's cache folder), 288x144 on disk and, unless said
otherwise, 128x64 in the batch; the model is FMCNet in full over ResNet-18, P = 8, K = 4.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from evaluation import log, machine
from public_recipe import PublicLoader, PublicStep

from fmcnet.config import Config, load_config
from fmcnet.data.cache import ImageCache, default_folder
from fmcnet.data.loader import TrainingBatch, TrainingImages, load_batches, make_sampler
from fmcnet.data.readers import read_dataset
from fmcnet.data.table import Table
from fmcnet.distributed import DistributedContext, keep_freed_memory
from fmcnet.models.build import build_model
from fmcnet.synthetic import generate
from fmcnet.training.train_step import TrainStep, precision
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


@dataclass(frozen=True, eq=False)
class Setting:
    """What every side of every case is given. Equal only to itself: a configuration has no hash."""

    config: Config
    device: torch.device
    workers: int
    threads: int


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: on the command line and in the results.
        what: in words.
        baseline: starts a turn of the public recipe.
        ours: starts a turn of ours.
        warm: batches at the start of a turn that are not counted: at least those that workers hold ready.
    """

    name: str
    what: str
    baseline: Callable[[Setting], Turn]
    ours: Callable[[Setting], Turn]
    warm: int = 8


@cache
def train_table() -> Table:
    """The training images of the generated benchmark, made where they are not there yet."""
    folder = default_folder() / "benchmarks" / "training"
    generate("sysu", "tiny", SEED, folder, **WORLD)  # type: ignore[arg-type]
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
        decode_paths=(files[0], files[1]) if decode else None,
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


def our_batches(setting: Setting, plain: bool = False) -> Iterator[TrainingBatch]:
    """Our loading of the same images, with the same augmentation (plain: crops and flips only)."""
    config, table = setting.config, train_table()
    labels, _ = table.labels()
    augment = config.augment
    if plain:
        augment = augment.model_copy(update={"erase": 0.0, "channel": "none"})
    images = image_cache(config.data.height, config.data.width).images
    draws = config.data.identities * config.data.images
    dataset = TrainingImages(images, labels, table.modality, augment, seed=SEED, draws=draws)
    sampler = make_sampler(config, table, labels, 0, 1)
    return load_batches(dataset, sampler, setting.device, 0, 10**9)


@cache
def our_train_step(setting: Setting) -> TrainStep:
    """Our model and optimisers; one for all turns."""
    torch.manual_seed(SEED)
    config, classes = setting.config, len(train_table().labels()[1])
    return TrainStep(
        config,
        build_model(config.model, classes),
        DistributedContext(setting.device),
        config.data.identities,
        10**9,
    )


def our_data(**options: bool) -> Callable[[Setting], Turn]:
    """The data alone, up to normalised float images on the device."""

    def turn(setting: Setting) -> Turn:
        model = our_train_step(setting).model
        for visible, infrared, _ in our_batches(setting, **options):
            with torch.no_grad():
                model.preprocess(visible), model.preprocess(infrared)
            yield len(visible) + len(infrared)

    return turn


def our_step(setting: Setting, stream: Iterator[TrainingBatch]) -> Turn:
    """Training as `fmcnet train` does it, reading the losses every `log_every` steps."""
    train_step = our_train_step(setting)
    for number, batch in enumerate(stream):
        train_step.step([batch], number)
        if number % setting.config.training.log_every == 0:
            train_step.read()
        yield 2 * len(batch.visible)


def our_step_alone(setting: Setting) -> Turn:
    """The step alone, on one batch that lies on the device."""
    yield from our_step(setting, repeat(next(our_batches(setting))))


def our_both(setting: Setting) -> Turn:
    """Data and step; notes how long it waited for data."""
    waited, started = 0.0, time.perf_counter()

    def timed() -> Iterator[TrainingBatch]:
        nonlocal waited
        batches = our_batches(setting)
        while True:
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            yield batch

    for count in our_step(setting, timed()):
        WAITED["share"] = waited / (time.perf_counter() - started)
        yield count


WAITED: dict[str, float] = {}

CASES = [
    Case("data", "data alone, images in memory, CAJ's augmentation", public_data(), our_data()),
    Case(
        "data-plain",
        "data alone, images in memory, AGW's augmentation",
        public_data(plain=True),
        our_data(plain=True),
    ),
    Case(
        "data-decode", "data alone, files decoded at each access, CAJ's", public_data(decode=True), our_data()
    ),
    Case("step", "step alone, one batch in memory", public_step_alone, our_step_alone, warm=2),
    Case("both", "data and step, images in memory, CAJ's augmentation", public_both(), our_both, warm=3),
    Case(
        "both-decode",
        "data and step, files decoded at each access",
        public_both(decode=True),
        our_both,
        warm=3,
    ),
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


class Side:
    """One side in a process of its own, which sleeps while it is not asked."""

    def __init__(self, name: str, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, setting, theirs))
        self._process.start()
        theirs.close()  # so that a side that dies ends the benchmark

    def ask(self, case: str, seconds: float) -> dict[str, float]:
        """A turn: "rate" in images/s, and what else the side has to say."""
        try:
            self._pipe.send((case, seconds))
            answer: dict[str, float] = self._pipe.recv()
        except (EOFError, OSError):
            raise SystemExit(f"{case}: a side ended early; if it raised, its traceback is above") from None
        return answer

    def close(self) -> None:
        with suppress(OSError):  # it has ended already
            self._pipe.send(None)
        self._process.join()


def _serve(name: str, setting: Setting, pipe: Any) -> None:
    torch.set_num_threads(setting.threads)
    if name == "ours" and setting.device.type == "cpu":
        keep_freed_memory()
    known = {case.name: case for case in CASES}
    while (asked := pipe.recv()) is not None:
        case, seconds = known[asked[0]], asked[1]
        start = case.ours if name == "ours" else case.baseline
        WAITED.clear()
        pipe.send({"rate": turn_rate(start(setting), seconds, case.warm, setting.device), **WAITED})


def measure(
    case: Case, sides: dict[str, Side], setting: Setting, seconds: float, repeats: int
) -> dict[str, Any]:
    """Both sides turn about in one run (A B A B ...), and what came of it."""
    answers: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            answers[name].append(side.ask(case.name, seconds))
    rates = {side: [a["rate"] for a in found] for side, found in answers.items()}
    data = setting.config.data
    result: dict[str, Any] = {
        "what": case.what,
        "images_in_a_batch": 2 * data.identities * data.images,
        "size": f"{data.height}x{data.width}",
        "threads": setting.threads,
        "workers_of_public": setting.workers,
        "turns": repeats,
        "seconds_a_turn": seconds,
    }
    for name, found in rates.items():
        result[f"{name}_images_per_s"] = round(statistics.median(found), 1)
        result[f"{name}_range"] = [round(min(found), 1), round(max(found), 1)]
    result["ratio"] = round(statistics.median(rates["ours"]) / statistics.median(rates["public"]), 2)
    if "share" in answers["ours"][0]:
        result["wait"] = round(statistics.median(a["share"] for a in answers["ours"]), 4)
        work = step_flops(setting) / (2 * data.identities * data.images) * statistics.median(rates["ours"])
        peak = matrix_rate(setting)
        result["tflops"] = {"step": round(work / 1e12, 3), "matrix_product": round(peak / 1e12, 3)}
        result["of_the_matrix_rate"] = round(work / peak, 3)
    return result


def step_flops(setting: Setting) -> float:
    """Floating-point operations of one step, by PyTorch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    train_step = our_train_step(setting)
    with FlopCounterMode(display=False) as counter:
        train_step.step([next(our_batches(setting))], 0)
    return float(counter.get_total_flops())


def matrix_rate(setting: Setting) -> float:
    """Operations per second of one large matrix product in the type that the network computes in."""
    size = 8192 if setting.device.type == "cuda" else 2048
    kind = precision(setting.config.training.precision, setting.device)
    a, b = (torch.randn(size, size, device=setting.device).to(kind) for _ in range(2))
    best = 0.0
    for _ in range(12):
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(c.name for c in CASES)}")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--workers", type=int, default=4, help="of the public loader; 4 is its own default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch, both sides")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--identities", type=int, default=8)
    parser.add_argument(
        "--set", nargs="*", default=[], help="more settings, of both sides: training.compile=true"
    )
    parser.add_argument("--out", type=Path, default=HERE / "training.json")
    args = parser.parse_args()
    known = {case.name: case for case in CASES}
    if unknown := set(args.cases) - set(known):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    size = [f"data.height={args.height}", f"data.width={args.width}", f"data.identities={args.identities}"]
    config = load_config(CONFIG.model_dump(mode="json"), [*size, f"model.arch={args.arch}", *args.set])
    setting = Setting(config, torch.device(args.device), args.workers, args.threads)
    torch.set_num_threads(args.threads)
    here = machine()  # before the images are made, so that the load is not our own
    if setting.device.type == "cuda":
        here["device"] = torch.cuda.get_device_name(setting.device)
    image_cache(config.data.height, config.data.width)
    results = json.loads(args.out.read_text()) if args.out.is_file() else {}
    sides = {name: Side(name, setting) for name in ("public", "ours")}
    try:
        for name in args.cases or known:
            log(f"{name}...")
            found = measure(known[name], sides, setting, args.seconds, args.repeats)
            results[name] = {**found, "machine": here}
            log(json.dumps(found, indent=1))
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    finally:
        for side in sides.values():
            side.close()


if __name__ == "__main__":
    main()
