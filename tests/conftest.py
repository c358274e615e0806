"""One thread a process: two OpenMP threads on a busy machine are slower than one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import logging
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
logging.getLogger("matplotlib").setLevel(logging.WARNING)

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's image cache."""
    monkeypatch.setenv("FMCNET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
