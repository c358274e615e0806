"""One thread a process: two OpenMP threads on a busy machine are slower than one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gc
import logging
import shutil
import signal
from pathlib import Path

import pytest
import torch
from filelock import FileLock

torch.set_num_threads(1)
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # of a shell's background job; programs started here inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
logging.getLogger("matplotlib").setLevel(logging.WARNING)

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items):
    """Slow tests first: the quick ones fill both processes to the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    """The collector need not visit PyTorch's and the tests' own objects again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 20, 50)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's image cache."""
    monkeypatch.setenv("FMCNET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def made_once(tmp_path_factory, name, make):
    """What `make(folder)` makes, once for all processes of the tests."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(shared / f"{name}.lock"):
        if not (shared / name).exists():
            part = shared / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)  # of a process that failed
            make(part)
            part.rename(shared / name)
    return shared / name


@pytest.fixture
def no_plots(monkeypatch):
    """A report's plots are empty files, where a test does not look at them: they take most of its time."""

    def touch(*arguments):
        path = arguments[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    for name in ("cmc_curves", "training_curves", "ranked_lists", "similarity_histogram"):
        monkeypatch.setattr(f"fmcnet.experiments.plots.{name}", touch)
    monkeypatch.setattr("fmcnet.experiments.report.feature_map", touch)


@pytest.fixture(scope="session")
def tiny_sysu(tmp_path_factory):
    """The generated benchmark, preset tiny, in SYSU-MM01's layout. Do not change it: copy it first."""
    from fmcnet.synthetic import generate

    def make(folder):
        generate("sysu", "tiny", 0, folder / "sysu", workers=1)

    return made_once(tmp_path_factory, "tiny-data", make) / "sysu"


@pytest.fixture(scope="session")
def tiny_regdb(tmp_path_factory):
    """The same in RegDB's layout. Do not change it: copy it first."""
    from fmcnet.synthetic import generate

    return made_once(tmp_path_factory, "tiny-regdb", lambda out: generate("regdb", "tiny", 0, out, workers=1))


@pytest.fixture(scope="session")
def tiny_llcm(tmp_path_factory):
    """The same in LLCM's layout. Do not change it: copy it first."""
    from fmcnet.synthetic import generate

    return made_once(tmp_path_factory, "tiny-llcm", lambda out: generate("llcm", "tiny", 0, out, workers=1))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_sysu):
    """A run of the full model trained for a few steps on `tiny_sysu`. Do not change it: copy it first.

    A copy for each process of the tests: an evaluation keeps embeddings in it.
    """
    from fmcnet.config import load_config
    from fmcnet.training.trainer import train

    made = made_once(
        tmp_path_factory,
        "tiny-run",
        lambda out: train(load_config("tiny"), tiny_sysu, out, progress=False),
    )
    return shutil.copytree(made, tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory, tiny_run):
    """`tiny_run` exported in float32. Do not change it: copy it first."""
    from fmcnet.inference.export.write import export

    return made_once(
        tmp_path_factory,
        "tiny-onnx",
        lambda out: export(tiny_run, out=out, seconds=0.001, progress=False),
    )


@pytest.fixture(scope="session")
def lite_onnx(tmp_path_factory):
    """The shipped fmcnet-lite exported in float32. Do not change it."""
    from fmcnet.inference.export.write import export

    return made_once(
        tmp_path_factory,
        "lite-onnx",
        lambda out: export("fmcnet-lite", images=64, out=out, seconds=0.001, progress=False),
    )
