"""Where the time of a step goes: a trace for a viewer and a table for a person, from steps of a real training."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from fmcnet.errors import DataError

WARM, STEPS = 3, 8

logger = logging.getLogger(__name__)

PHASES = ("data", "forward", "discriminators", "losses", "backward", "optimizer")


class StepProfile:
    """Watches `STEPS` steps (fewer where the training ends before) after `WARM` others, then writes `RUN/profile/`:
    trace.json (chrome://tracing, Perfetto), where.md and where.json.

    Args:
        run: the run folder. cuda: watch the GPU, too.
    """

    def __init__(self, run: Path, cuda: bool) -> None:
        self.folder, self._cuda = run / "profile", cuda
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror}") from error
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=WARM, active=STEPS, repeat=1),
            on_trace_ready=self._write,
        )
        self.table = ""
        self._done = 0

    def __enter__(self) -> StepProfile:
        self._profile.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._profile.__exit__(None, None, None)
        if not self.table:
            logger.warning("no profile: it takes more than %d steps", WARM)

    def step(self) -> None:
        """A step is done."""
        if not self.table:
            self._done += 1
            self._profile.step()

    def _write(self, done: Any) -> None:
        steps = self._done - WARM
        if steps < 1:
            return
        events = done.key_averages()
        phases = _phases(events, self._cuda, steps)
        kernels = _kernels(events, self._cuda, steps)
        facts = {
            "steps": steps,
            "device": torch.cuda.get_device_name(torch.cuda.current_device()) if self._cuda else "cpu",
            "threads": torch.get_num_threads(),
            "phases_ms": phases,
            "kernels_ms": kernels,
        }
        self.table = _table(phases, kernels, f"{steps} steps, {facts['device']}")
        try:
            (self.folder / "where.md").write_text(self.table, encoding="utf-8")
            (self.folder / "where.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            done.export_chrome_trace(str(self.folder / "trace.json"))
        except (OSError, RuntimeError) as error:  # a full disk does not end a training
            logger.warning("the profile in %s is not whole: %s", self.folder, error)


def _phases(events: Any, cuda: bool, steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds a step of each named part: of the host, and of the GPU's kernels launched in it."""
    phases = {}
    for name in PHASES:
        mine = [event for event in events if event.key == f"fmcnet: {name}"]
        if mine:
            row = {"host": max(event.cpu_time_total for event in mine) / 1e3 / steps}
            if cuda:
                row["device"] = max(event.device_time_total for event in mine) / 1e3 / steps
            phases[name] = {key: round(value, 3) for key, value in row.items()}
    return phases


def _kernels(events: Any, cuda: bool, steps: int, count: int = 15) -> dict[str, float]:
    """Milliseconds a step of the operations that take longest by themselves."""
    kind = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = [
        (e.key, getattr(e, kind) / 1e3 / steps)
        for e in events
        if not e.key.startswith(("fmcnet:", "Profiler"))
    ]
    rows.sort(key=lambda row: -row[1])
    return {name: round(value, 3) for name, value in rows[:count]}


def _table(phases: dict[str, dict[str, float]], kernels: dict[str, float], what: str) -> str:
    kinds = list(next(iter(phases.values()), {"host": 0.0}))
    whole = {kind: sum(row[kind] for row in phases.values()) or 1.0 for kind in kinds}
    lines = [
        f"# Where a step's time goes ({what})",
        "",
        "| part | " + " | ".join(f"{kind} ms | share" for kind in kinds) + " |",
        "|---|" + "---:|" * (2 * len(kinds)),
    ]
    for name, row in phases.items():
        cells = " | ".join(f"{row[kind]:.2f} | {100 * row[kind] / whole[kind]:.1f} %" for kind in kinds)
        lines.append(f"| {name} | {cells} |")
    lines += ["", "| operation (by itself) | ms a step |", "|---|---:|"]
    lines += [f"| `{name[:80]}` | {value:.2f} |" for name, value in kernels.items()]
    return "\n".join(lines) + "\n"
