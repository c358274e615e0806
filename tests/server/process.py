"""`python -m tests.server.process FOLDER SECONDS LIMITS SETTINGS`: the real server process, over the fake network."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2 as httpx

ROOT = Path(__file__).parents[2]


def main() -> None:
    from fmcnet.inference.encoder import Encoder
    from fmcnet.server.limits import Limits
    from fmcnet.server.run import ServeOptions, serve
    from tests.server.service import encoder

    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    made = encoder(folder)
    made.backend.before = lambda: time.sleep(seconds)
    Encoder.from_pretrained = staticmethod(lambda *arguments, **options: made)
    serve(
        ServeOptions(
            str(folder / "people.gallery"), "fake", port=0, audit=folder / "audit.jsonl",
            limits=Limits(**json.loads(sys.argv[3])), **{"keep_images": folder / "kept", **json.loads(sys.argv[4])},
        )
    )  # fmt: skip


@contextlib.contextmanager
def started(folder, seconds=0.0, keys=None, settings=None, **limits):
    """(process, address) of a server that listens.

    `keys` are secrets by scope, `limits` as `Limits` has them, `settings` as `ServeOptions` has them.
    """
    options = [str(seconds), json.dumps(limits), json.dumps(settings or {})]
    command = [sys.executable, __file__, str(folder), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "src")))}
    cwd = folder.with_name(f"{folder.name}-cwd")
    cwd.mkdir(exist_ok=True)
    if sys.version_info >= (3, 11):
        (cwd / "random.py").write_text("raise SystemExit('a module of the working folder was imported')")
    known = ";".join(f"{scope}:{scope}:{secret}" for scope, secret in (keys or {}).items())
    process = subprocess.Popen(
        command, cwd=cwd, stderr=subprocess.PIPE, text=True, env={**environment, "FMCNET_API_KEYS": known}
    )
    try:
        lines, address = [], None
        for line in process.stderr:
            lines.append(line)
            found = re.search(r"page: (http://\S+)/", line)
            if found:
                address = found[1]
                break
        assert address, "".join(lines)
        process.said = lines
        reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
        reader.start()
        process.reader = reader
        yield process, address
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)
        process.reader.join(60) if hasattr(process, "reader") else None
        process.stderr.close()


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


if __name__ == "__main__":
    main()
