"""Every reader of files, a good file of each, and how it is broken: by a seed, so each input can be made again.

`python -m tests.fuzz.readers SECONDS` breaks files until the time is over and keeps what a reader did not refuse well
in the folder `broken`.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from fmcnet.errors import FmcnetError

ROOT = Path(__file__).parents[1]
OLD = ROOT / "fixtures/v0.1.0"
SLOW = 10.0
"""Seconds that no small file may take."""
WORDS = [
    b"[" * 3000, b"{" * 3000, b"{\"a\":" * 2000, b"!!bool x", b"../../x", b"\x1b[2J",
    b"9" * 5000, b"-1", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}",
    b'""', b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\t", b"\n", b"\r", b'"', b"'", b",", b";", b":", b"2026-13-45",
    b"&a [*a]", b"*a", b"<<: *a", b"!!python/object:os.system x", b"0", b"18446744073709551616", b"1" * 400,
    b"\xff" * 8, b"\x00" * 8, b"\xff\xff\xff\x7f", b"NUMPY", b"PK\x03\x04", b"'|O'", b"(9999999999,)", b"\x80\x04",
    "\u202e".encode(), b"x" * 70_000,
]  # fmt: skip


def image(kind):
    """A small image file."""
    shown = Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 24, 3), dtype=np.uint8))
    out = io.BytesIO()
    if kind == "tiff16":
        deep = np.arange(48 * 24, dtype=np.uint16).reshape(48, 24) * 50
        Image.fromarray(deep).save(out, "TIFF", compression="tiff_deflate")
    else:
        shown.save(out, kind)
    return out.getvalue()


def make(root):
    """The good files, a folder for each reader."""
    import torch

    from fmcnet.inference.projection import Projection
    from fmcnet.server.keys import new_key
    from fmcnet.types import Embeddings

    for name in ("run", "export", "gallery"):
        shutil.copytree(OLD / name, root / name)
    rng = np.random.default_rng(0)
    matrix = np.linalg.qr(rng.normal(size=(24, 4)))[0].astype(np.float32)
    Projection(np.zeros(24, np.float32), matrix, "pca", "x").save(root / "projection.safetensors")
    torch.save({"a.weight": torch.ones(3, 2)}, root / "weights.pt")
    new_key(root / "keys.json", "desk", ["read"])
    n = 12
    Embeddings(
        rng.normal(size=(n, 8)).astype(np.float32), np.arange(n) % 3, np.arange(n) % 2 + 1,
        (np.arange(n) % 2).astype(np.uint8), np.zeros(n, np.int64), np.array([f"{i}.jpg" for i in range(n)]),
    ).save(root / "embeddings.npz")  # fmt: skip
    with np.load(root / "embeddings.npz") as stored:
        np.savez_compressed(root / "packed.npz", **stored)
    for name in ("0.jpg", "1.jpg"):
        (root / name).write_bytes(image("JPEG"))
    (root / "table.csv").write_text("path,pid,modality,camid\n0.jpg,1,visible,1\n1.jpg,1,infrared,3\n")
    (root / "mot.txt").write_text("1,1,10,20,30,60,1,-1,-1,-1\n2,1,11,20,30,60,1,-1,-1,-1\n")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 60]}
    coco = {"images": [{"id": 1, "file_name": "0.jpg"}], "annotations": [box]}
    coco["categories"] = [{"id": 1, "name": "person"}]
    (root / "coco.json").write_text(json.dumps(coco))
    header = "x_min,y_min,x_max,y_max,class_id,confidence,tracker_id,frame_index"
    (root / "boxes.csv").write_text(f"{header}\n1,2,31,62,0,0.9,4,0\n")
    (root / "ids.txt").write_text("1,2,5\n")
    camera, cells = np.empty((3, 1), object), np.empty((1, 2), object)
    camera.fill(np.tile([1, 2], (10, 1)))
    cells.fill(camera)
    savemat(root / "draw.mat", {"rand_perm_cam": cells}, do_compression=True)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "tiff16", "WEBP", "PPM"):
        (root / f"image-{kind}").write_bytes(image(kind))
    (root / "report").mkdir()
    report = {"dataset": {"name": "csv"}, "runs": {"a": {"evaluations": [], "selected_on": "last"}}}
    (root / "report" / "report.json").write_text(json.dumps(report))
    (root / "kept").mkdir()
    (root / "kept" / "gallery.txt").write_text("people\n")
    plan = {"layout": "sysu", "preset": "tiny", "seed": 0, "complete": True}
    (root / "generated.json").write_text(json.dumps(plan))


def search(folder):
    from fmcnet.retrieval import Gallery

    with Gallery(folder, read_only=True) as gallery:
        for _, vector in list(gallery.scan())[:1]:
            gallery.search(vector, 5)
        gallery.check()


def readers():
    """What each reader is called, its file below the folder of `make`, and how it is read."""
    from fmcnet.config import load_config
    from fmcnet.data.boxes import read_boxes
    from fmcnet.data.images import load_image
    from fmcnet.data.readers.common import read_ids
    from fmcnet.data.readers.csv import read_csv
    from fmcnet.evaluation.draws import read_permutation
    from fmcnet.evaluation.score import score_file
    from fmcnet.experiments.compare import compare
    from fmcnet.inference.calibration import Calibration
    from fmcnet.inference.encoder import Encoder
    from fmcnet.inference.info import model_info
    from fmcnet.inference.projection import Projection
    from fmcnet.models.pretrained import _read_state_dict as read_weights
    from fmcnet.retrieval.sqlite_store import noted_ranges
    from fmcnet.server.keys import list_keys
    from fmcnet.server.thumbnails import KeptThumbnails
    from fmcnet.server.uploads import UploadError, decode
    from fmcnet.synthetic.generate import generate
    from fmcnet.training.loggers import read_log
    from fmcnet.training.run_folder import check_folder
    from fmcnet.types import Embeddings

    def upload(path):
        with contextlib.suppress(UploadError):
            decode(path.read_bytes(), "a", 1_000_000)

    def numbers(path):
        Embeddings.load(path)
        score_file(path, "regdb")

    tree = load_config("tiny")
    images = {
        f"{how}-{kind}": (f"image-{kind}", read)
        for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "tiff16", "WEBP", "PPM")
        for how, read in (("image", load_image), ("upload", upload))
    }
    gallery = {
        f"gallery-{path.name.split('-')[0]}": (f"gallery/{path.name}", lambda at: search(at.parent))
        for path in sorted((OLD / "gallery").iterdir())
        if path.suffix not in (".sqlite-shm", ".sqlite-wal")
    }
    return {
        "yaml": ("run/config.yaml", load_config),
        "run-yaml": ("run/config.yaml", lambda at: check_folder(at.parent, tree, resume=True)),
        "card": ("run/model.json", lambda at: model_info(at.parent)),
        "weights": ("run/model.safetensors", lambda at: Encoder.from_pretrained(at.parent, device="cpu")),
        "log": ("run/log.jsonl", lambda at: read_log(at.parent)),
        "calibration": ("run/calibration.json", Calibration.load),
        "export": ("export/export.json", lambda at: model_info(at.parent)),
        "graph": (
            "export/model-visible.onnx",
            lambda at: Encoder.from_pretrained(at.parent, device="cpu"),
        ),
        "projection": ("projection.safetensors", Projection.load),
        "torch": ("weights.pt", lambda at: read_weights(str(at))),
        "keys": ("keys.json", list_keys),
        "npz": ("embeddings.npz", numbers),
        "npz-packed": ("packed.npz", numbers),
        "csv": ("table.csv", read_csv),
        "mot": ("mot.txt", read_boxes),
        "coco": ("coco.json", read_boxes),
        "boxes": ("boxes.csv", read_boxes),
        "ids": ("ids.txt", read_ids),
        "mat": ("draw.mat", read_permutation),
        "report": ("report/report.json", lambda at: compare([at.parent])),
        "crops": ("kept/gallery.txt", lambda at: KeptThumbnails(at.parent, "people")),
        "note": ("gallery/made-with.json", lambda at: noted_ranges(at.parent)),
        "generated": (
            "generated.json",
            lambda at: generate("sysu", "tiny", 1, at.parent, progress=False),
        ),
        **gallery,
        **images,
    }


def broken(good, seed):
    """A good file with one to four faults."""
    rng = np.random.default_rng(seed)
    data = bytearray(good)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(data) + 1))
        kind = int(rng.integers(7))
        if kind == 0:
            del data[at:]
        elif kind == 1:
            for place in rng.integers(0, max(len(data), 1), int(rng.integers(1, 9))):
                data[place : place + 1] = bytes([int(rng.integers(256))])
        elif kind == 2:
            data[at:at] = WORDS[int(rng.integers(len(WORDS)))]
        elif kind == 3:
            word = WORDS[int(rng.integers(len(WORDS)))]
            data[at : at + len(word)] = word
        elif kind == 4:
            del data[at : at + int(rng.integers(1, 40))]
        elif kind == 5:
            data[at:at] = data[at : at + int(rng.integers(1, 200))]
        else:  # a value, between two signs, becomes another
            ends = [i for i, byte in enumerate(data[:20_000]) if byte in b':,[]{}"\n ']
            if len(ends) > 1:
                first = int(rng.integers(len(ends) - 1))
                data[ends[first] + 1 : ends[first + 1]] = WORDS[int(rng.integers(len(WORDS)))]
    return bytes(data)


def fault(read, path):
    """What a reader did that it must not; "" where it read the file or refused it in one short message."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
    except FmcnetError as error:
        if len(str(error)) > 4000 or "Traceback" in str(error):
            return f"a message of {len(str(error))} characters"
    except Exception:
        return traceback.format_exc()
    took = time.perf_counter() - start
    return f"{took:.1f} s" if took > SLOW else ""


def run(seconds, first, root):
    """Break files of all readers by turns; (inputs a reader, faults)."""
    make(root)
    table = readers()
    good = {name: (root / place).read_bytes() for name, (place, _) in table.items()}
    counts, found, seed, end = dict.fromkeys(table, 0), [], first, time.monotonic() + seconds
    while time.monotonic() < end:
        for name, (place, read) in table.items():
            path, data = root / place, broken(good[name], seed)
            path.write_bytes(data)
            said = fault(read, path)
            path.write_bytes(good[name])
            counts[name] += 1
            if said:
                found.append((name, seed, data, said))
        seed += 1
    return counts, found


def main():
    """Print what was found."""
    logging.disable(logging.CRITICAL)
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 120.0
    first = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time()) % 10**6 * 1000
    with tempfile.TemporaryDirectory() as room:
        counts, found = run(seconds, first, Path(room))
    kept = Path("broken")
    for name, seed, data, said in found:
        kept.mkdir(exist_ok=True)
        (kept / f"{name}--{seed}").write_bytes(data)
        print(f"{name}, seed {seed}: {said.strip().splitlines()[-1]:.300}\n{said}")
    print(f"{sum(counts.values())} inputs, seeds from {first}, {len(counts)} readers; {len(found)} faults")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
