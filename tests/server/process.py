"""The real server process, over the fake network."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from pathlib import Path

import httpx2 as httpx

from tests import forked


def run(folder, seconds, limits, settings):
    """Serve until a signal; a forward pass takes `seconds` longer."""
    from fmcnet.inference.encoder import Encoder
    from fmcnet.server.limits import Limits
    from fmcnet.server.run import ServeOptions, serve
    from tests.server.service import encoder

    folder = Path(folder)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    made = encoder(folder)
    made.backend.before = lambda: time.sleep(seconds)
    Encoder.from_pretrained = staticmethod(lambda *arguments, **options: made)
    serve(
        ServeOptions(
            str(folder / "people.gallery"), "fake", port=0, audit=folder / "audit.jsonl",
            limits=Limits(**limits), **{"keep_images": folder / "kept", **settings},
        )
    )  # fmt: skip


@contextlib.contextmanager
def started(folder, seconds=0.0, keys=None, settings=None, **limits):
    """(process, address) of a server that listens.

    `keys` are secrets by scope, `limits` as `Limits` has them, `settings` as `ServeOptions` has them.
    """
    known = ";".join(f"{scope}:{scope}:{secret}" for scope, secret in (keys or {}).items())
    given = {"folder": folder, "seconds": seconds, "limits": limits, "settings": settings or {}}
    cwd = folder.with_name(f"{folder.name}-cwd")
    cwd.mkdir(exist_ok=True)
    if sys.version_info >= (3, 11):
        (cwd / "random.py").write_text("raise SystemExit('a module of the working folder was imported')")
    process = forked.Running(
        call=["tests.server.process", "run", given],
        cwd=cwd,
        environment={**os.environ, "FMCNET_API_KEYS": known},
    )
    try:
        while not (found := re.search(r"page: (http://\S+)/", "".join(process.said))):
            assert process.poll() is None, "".join(process.said)
            time.sleep(0.02)
        yield process, found[1]
    finally:
        process.kill()
        process.wait(60)


def until_it_answers(address):
    """It takes requests."""
    for _ in range(1200):
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError("not ready")


def resident_mib(pid, forget_peak=False):
    """(now, at most so far) of a process's memory; `forget_peak` lets the second start anew."""
    if forget_peak:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    text = Path(f"/proc/{pid}/status").read_text()
    return tuple(int(re.search(rf"{name}:\s+(\d+)", text)[1]) / 1024 for name in ("VmRSS", "VmHWM"))
