"""A profile of a few steps of a training: where the time of a step goes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from fmcnet.errors import DataError
from fmcnet.files import write_json, write_text

logger = logging.getLogger(__name__)

WARM, STEPS = 3, 8
"""Number of steps before the profiled ones, and of profiled steps."""

PHASES = ("data", "forward", "discriminators", "losses", "backward", "optimizer")
"""Parts of a step in a profile."""


class StepProfile(profile):
    """Profiles `STEPS` steps (fewer if the training ends earlier) after `WARM` others, then writes `RUN/profile/`.

    The files are trace.json (chrome://tracing, Perfetto), where.md (PyTorch's table) and where.json. `cuda`: the
    training runs on a GPU.

    Raises:
        DataError: when the folder cannot be made.
    """

    def __init__(self, run: Path, cuda: bool) -> None:
        self.folder, self._cuda = run / "profile", cuda
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror}") from error
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
        steps = schedule(wait=0, warmup=WARM, active=STEPS, repeat=1)
        super().__init__(activities=activities, schedule=steps, on_trace_ready=StepProfile._write)
        self.table = ""  # for the terminal; empty until it is written

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        if self.table:
            logger.info("%s\nthe profile: %s", self.table, self.folder)
        else:
            logger.warning("no profile: it takes more than %d steps", WARM)

    def _write(self) -> None:
        steps = self.step_num - WARM
        if steps < 1:
            return
        events, time_field = self.key_averages(), f"self_{'device' if self._cuda else 'cpu'}_time_total"
        phases = _phases(events, self._cuda, steps)
        kernels = [event for event in events if not event.key.startswith(("fmcnet:", "Profiler"))]
        kernels.sort(key=lambda event: -getattr(event, time_field))  # slowest first
        facts = {
            "steps": steps,
            "device": torch.cuda.get_device_name(torch.cuda.current_device()) if self._cuda else "cpu",
            "threads": torch.get_num_threads(),
            "phases_ms": phases,
            "kernels_ms": {e.key: round(getattr(e, time_field) / 1e3 / steps, 3) for e in kernels[:15]},
        }
        columns = events.table(sort_by=time_field, row_limit=15, max_name_column_width=80)
        self.table = (
            f"# Where a step's time goes ({steps} steps, {facts['device']})\n\n"
            f"{_phase_table(phases)}\n\n```text\n{columns.rstrip()}\n```\n"
        )
        try:
            write_text(self.folder / "where.md", self.table)
            write_json(self.folder / "where.json", facts)
            self.export_chrome_trace(str(self.folder / "trace.json"))
        except (OSError, RuntimeError) as error:  # a full disk does not end a training
            logger.warning("the profile in %s is not whole: %s", self.folder, error)


def _phases(events: Any, cuda: bool, steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds a step of each named part: of the host, and of the GPU's kernels launched in it."""
    time_fields = {"host": "cpu_time_total"} | ({"device": "device_time_total"} if cuda else {})
    phases = {}
    for name in PHASES:
        matching = [event for event in events if event.key == f"fmcnet: {name}"]
        if matching:
            totals = {
                side: max(getattr(event, field) for event in matching) for side, field in time_fields.items()
            }
            phases[name] = {side: round(total / 1e3 / steps, 3) for side, total in totals.items()}
    return phases


def _phase_table(phases: dict[str, dict[str, float]]) -> str:
    sides = list(next(iter(phases.values()), {"host": 0.0}))
    totals = {side: sum(row[side] for row in phases.values()) or 1.0 for side in sides}
    lines = ["| part | " + " | ".join(f"{side} ms | share" for side in sides) + " |"]
    lines.append("|---|" + "---:|" * (2 * len(sides)))
    for name, row in phases.items():
        cells = " | ".join(f"{row[side]:.2f} | {100 * row[side] / totals[side]:.1f} %" for side in sides)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)
