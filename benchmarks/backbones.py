"""Images per second of one training step by backbone, memory format, precision and frozen blocks, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/backbones.py                       # about two minutes
    OMP_NUM_THREADS=1 python benchmarks/backbones.py --repeats 5 --beside "nothing"

A step is forward, backward and AdamW of FMCNet in full, on 64 random images (32 of each modality), with
cross-entropy on the shared scores and the mean square of every other feature. The forms of one network take turns,
round after round, so that a busy moment hits all alike. The ratio is the median over the rounds of a form's rate over
that of contiguous float32 without frozen blocks, same network and same round. Results go to
benchmarks/backbones.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import processor

from fmcnet.config import ModelConfig
from fmcnet.models.build import build_model

OUT = Path(__file__).parent / "backbones.json"
BATCH, CLASSES = 64, 100
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Form = tuple[str, str, int]
ALL = [
    (layout, precision, frozen) for precision in ("fp32", "bf16") for layout in LAYOUTS for frozen in (0, 2)
]
BOTH = [(layout, "fp32", 0) for layout in LAYOUTS]
NETWORKS: dict[str, tuple[dict[str, Any], int, int, list[Form]]] = {
    "efficientnet_lite0": ({"arch": "efficientnet_lite0", "tail_blocks": 2, "dim": 512}, 128, 64, ALL),
    "resnet18 width 16": ({"arch": "resnet18", "width": 16}, 96, 48, BOTH),
    "resnet18 width 64": ({"arch": "resnet18", "width": 64}, 96, 48, BOTH),
}
"""Name to settings, height, width, and forms: memory format, precision, frozen blocks. The first is the baseline."""


def make_step(settings: dict[str, Any], height: int, width: int, form: Form) -> Callable[[], None]:
    torch.manual_seed(0)
    layout = LAYOUTS[form[0]]
    model = build_model(ModelConfig(**settings, frozen_blocks=form[2]), CLASSES)
    model = model.to(memory_format=layout).train()  # type: ignore[call-overload]
    images = [torch.rand(BATCH // 2, 3, height, width).to(memory_format=layout) for _ in range(2)]
    labels = torch.arange(BATCH // 2)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=form[1] == "bf16"):
            out = model(*images)
            loss = torch.zeros(())
            for half in out:
                loss = loss + F.cross_entropy(half.shared_scores.float(), labels)
                for feature in (half.specific, half.generated, half.fused):
                    loss = loss + feature.float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="rounds, one step of each form a round")
    parser.add_argument("--beside", default="nothing", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (settings, height, width, forms) in NETWORKS.items():
        steps = [make_step(settings, height, width, form) for form in forms]
        rates: list[list[float]] = [[] for _ in forms]
        for turn in range(arguments.repeats + 1):  # the first round warms up
            for step, found in zip(steps, rates, strict=True):
                begun = time.perf_counter()
                step()
                if turn:
                    found.append(BATCH / (time.perf_counter() - begun))
        for (layout, precision, frozen), found in zip(forms, rates, strict=True):
            ratio = statistics.median(a / b for a, b in zip(found, rates[0], strict=True))
            row: dict[str, Any] = {
                "network": name,
                "size": f"{height}x{width}",
                "memory_format": layout,
                "precision": precision,
            }
            row |= {"frozen_blocks": frozen, "ratio": round(ratio, 2)}
            rows.append({**row, "images_per_s": [round(rate, 1) for rate in found]})
            print(rows[-1], flush=True)
    facts = {
        "machine": processor(),
        "torch": torch.__version__,
        "threads": 1,
        "date": date.today().isoformat(),
    }
    facts |= {"batch": BATCH, "repeats": arguments.repeats, "beside": arguments.beside}
    listed = ",\n  ".join(json.dumps(row) for row in rows)
    arguments.out.write_text(f'{json.dumps(facts)[:-1]},\n "rows": [\n  {listed}\n ]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
