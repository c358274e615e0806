"""Images per second from files to embeddings: `Encoder.encode` against the public recipe's test loop.

    python benchmarks/encoding.py --run RUN --data DATA --device cuda [--workers 8] [--repeats 5]

The baseline is how the public VI-ReID code embeds a test set (AGW's `test.py`, in our own words): a `Dataset` that
opens a file, resizes it, makes a normalised float tensor, in a `DataLoader` of 4 workers (its default) and batches of
64; the network in float32, the mirrored image's descriptor added as there, each batch's result copied to the host. It
is given the same weights and `--workers` workers; ours decodes with as many threads. Both embed the same files of one
modality and take turns (A B A B ...) in one process; the result is the ratio of the medians, and the least cosine
between the two sides' descriptors. "memory" leaves the files out: both start from decoded uint8 images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from evaluation import machine
from public_recipe import Compose, Decode, Normalize, ToPillow, ToTensor
from torch.utils.data import DataLoader, Dataset

from fmcnet.data.readers import read_dataset
from fmcnet.inference.encoder import Encoder
from fmcnet.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from fmcnet.types import Modality

HERE = Path(__file__).parent


class TestImages(Dataset[torch.Tensor]):
    """Item i: image i, normalised, (3, H, W) float32."""

    def __init__(self, images: list[Path] | np.ndarray, height: int, width: int) -> None:
        first = Decode(height, width) if isinstance(images, list) else ToPillow()
        self.images = images
        self.transform = Compose([first, ToTensor(), Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.images[index])


def public_features(encoder: Encoder, images: list[Path] | np.ndarray, workers: int) -> np.ndarray:
    """As the public test loop does it: (N, E) float32."""
    model, device = encoder.model, encoder.device
    mean, std = model.mean.clone(), model.std.clone()
    model.mean.zero_(), model.std.fill_(1)
    try:
        loader = DataLoader(
            TestImages(images, encoder.height, encoder.width), batch_size=64, num_workers=workers
        )
        parts = []
        with torch.no_grad(), patch("fmcnet.models.fmcnet._check_range", new=lambda _: None):
            # which would refuse normalised images
            for batch in loader:
                there = batch.to(device)
                found = model.embed(there, Modality.VISIBLE) + model.embed(there.flip(-1), Modality.VISIBLE)
                parts.append(found.cpu().numpy())
        features = np.concatenate(parts)
    finally:
        model.mean.copy_(mean), model.std.copy_(std)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds, and what was made."""
    started = time.perf_counter()
    made = work()
    return time.perf_counter() - started, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "encoding.json")
    args = parser.parse_args()
    here = machine()
    encoder = Encoder.from_pretrained(args.run, device=args.device)
    table = read_dataset(args.data)
    paths = [Path(p) for p, m in zip(table.full_paths(), table.modality, strict=True) if m == 0]
    paths = [paths[n % len(paths)] for n in range(args.images)]
    decode = Decode(encoder.height, encoder.width)
    memory = np.stack([np.asarray(decode(path)) for path in paths[:1024]])
    memory = np.concatenate([memory] * -(-len(paths) // len(memory)))[: len(paths)]
    results = {}
    for case, images in (("files", paths), ("memory", memory)):
        rates: dict[str, list[float]] = {"public": [], "ours": []}
        for turn in range(args.repeats + 1):  # the first pays for first calls and is not counted
            before, theirs = timed(lambda images=images: public_features(encoder, images, args.workers))
            after, ours = timed(
                lambda images=images: (
                    encoder.encode(
                        images, "visible", flip=True, workers=args.workers, progress=False
                    ).features
                )
            )
            if turn:
                rates["public"].append(len(images) / before)
                rates["ours"].append(len(images) / after)
        results[case] = {
            "images": len(images),
            "size": f"{encoder.height}x{encoder.width}",
            "workers": args.workers,
            **{f"{side}_images_per_s": [round(rate, 1) for rate in found] for side, found in rates.items()},
            "ratio": round(statistics.median(rates["ours"]) / statistics.median(rates["public"]), 2),
            "least_cosine": round(float((theirs * ours).sum(1).min()), 6),
        }
        print(json.dumps({case: results[case]}, indent=1), flush=True)
    if encoder.device.type == "cuda":
        here["device"] = torch.cuda.get_device_name(encoder.device)
    args.out.write_text(json.dumps({**results, "run": args.run, "machine": here}, indent=1) + "\n")


if __name__ == "__main__":
    main()
