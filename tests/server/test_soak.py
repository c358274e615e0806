"""The benchmark's soak, for seconds: nothing fails, memory stays flat. The long one is benchmarks/service.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import httpx2 as httpx

from tests.server.process import resident_mib, started, until_it_answers
from tests.server.service import files

FILE = Path(__file__).parents[2] / "benchmarks" / "service.py"
ALLOWED = 12.0
"""MiB between the middle and the last third of the soak: an image or a batch kept for each search is more."""


def benchmark():
    spec = importlib.util.spec_from_file_location("service_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_memory_is_flat_while_it_searches_adds_and_removes(tmp_path):
    bench = benchmark()
    with started(tmp_path, wait=0.0005) as (process, address):
        until_it_answers(address)
        data = {"modality": "visible", "id": ["a", "b", "c"]}
        assert httpx.post(f"{address}/v1/entries", files=files(1, 2, 3), data=data).status_code == 201
        told = bench.soak(address, bench.random_images(8, 480, 240), 4, 6.0, process.pid, readings=30)
        entries = httpx.get(f"{address}/v1/gallery").json()["entries"]
        now, _ = resident_mib(process.pid)
    assert told["failed"] == 0
    assert told["searches"] > 20
    assert told["added_and_removed"] > 0
    assert entries == 3
    assert len(told["resident_mib"]) == len(told["at_seconds"]) == 30
    assert abs(told["resident_mib"][-1] - now) < ALLOWED
    assert told["growth_mib"] < ALLOWED, told["resident_mib"]
