"""A service over a fake network, quick to start: the embedding of an image is its colours."""

from __future__ import annotations

import contextlib
import io
import json
from unittest import mock

import numpy as np
from pebble import ProcessPool
from PIL import Image
from starlette.testclient import TestClient

from fmcnet.config import load_config
from fmcnet.inference.calibration import Calibration, Curve
from fmcnet.inference.encoder import Encoder
from fmcnet.models.card import ModelCard
from fmcnet.retrieval import Gallery, Searcher
from fmcnet.server.app import create_app
from fmcnet.server.audit import AuditLog
from fmcnet.server.keys import Key, Keys, hash_secret
from fmcnet.server.limits import Limits
from fmcnet.server.service import Service
from fmcnet.server.thumbnails import KeptThumbnails, SourceFolder
from fmcnet.types import Modality

DIGEST = "0123456789abcdef"
SECRETS = {scope: f"{scope}-secret-of-twenty-letters" for scope in ("read", "write", "admin")}
KEYS = Keys(Key(scope, frozenset([scope]), hash_secret(secret)) for scope, secret in SECRETS.items())
DAY, NIGHT = Modality.VISIBLE, Modality.INFRARED


class ColourBackend:
    """Mean colours of four bands, centred: (N, H, W, 3) uint8 to (N, 12); remembers the batches it got."""

    name, device = "fake", "cpu"

    def __init__(self):
        self.sizes = []
        self.before = lambda: None

    def __call__(self, images, modality):
        self.before()
        self.sizes.append(len(images))
        bands = np.array_split(images.astype(np.float32), 4, axis=1)
        return np.concatenate([band.mean(axis=(1, 2)) for band in bands], axis=1) / 127.5 - 1.03


def calibration():
    curve = Curve(
        same=1000,
        different=100_000,
        similarity=np.array([-1.0, 1.0]),
        evidence=np.array([-8.0, 8.0]),
        false_match_rate=np.array([1.0, 0.1, 0.01, 0.001]),
        threshold=np.array([-1.0, 0.8, 0.98, 0.998]),
        true_match_rate=np.array([1.0, 0.9, 0.8, 0.7]),
    )
    return Calibration(DIGEST, {(NIGHT, DAY): curve, (DAY, DAY): curve})


def encoder(folder, calibrated=True):
    path = calibration().save(folder / "calibration.json") if calibrated else None
    card = ModelCard(load_config("tiny"), (1, 2), "colours", 0)
    return Encoder(ColourBackend(), card, DIGEST, None, path)


def colours(seed):
    return tuple(int(v) for v in np.random.default_rng(seed).integers(0, 256, 3))


def bands(seed, size=(24, 48)):
    """Four bands of colours."""
    image = Image.new("RGB", size)
    for band in range(4):
        image.paste(colours(seed * 4 + band), (0, band * size[1] // 4, size[0], (band + 1) * size[1] // 4))
    return image


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(seed, size=(24, 48)):
    return encoded(bands(seed, size))


def files(*seeds):
    """As httpx takes uploads."""
    return [("images", (f"{seed}.png", png(seed), "image/png")) for seed in seeds]


class Running:
    """A service that runs, and what the tests look at."""

    def __init__(self, client, service, folder):
        self.client, self.service, self.folder = client, service, folder

    def add(self, *seeds, modality="visible", **data):
        sent = {"modality": modality, "id": [f"crop-{seed}" for seed in seeds], **data}
        return self.client.post("/v1/entries", files=files(*seeds), data=sent)

    def search(self, *seeds, modality="infrared", **data):
        return self.client.post("/v1/search", files=files(*seeds), data={"modality": modality, **data})

    def log(self):
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]


class SharedPool(ProcessPool):
    """Decoder processes that outlive a service: the next one in this process takes them over."""

    def stop(self):
        pass

    def join(self, timeout=None):
        pass


_pools = {}


def shared_pool(processes, recycle, initializer, context):
    """As `ProcessPool(...)`; to start its processes for each test would cost seconds."""
    pool = _pools.get((processes, initializer))
    if pool is None or not pool.active:
        pool = SharedPool(processes, recycle, initializer, context=context)
        _pools[processes, initializer] = pool
    return pool


def end_shared_pools():
    for pool in _pools.values():
        ProcessPool.stop(pool)
        ProcessPool.join(pool)
    _pools.clear()


@contextlib.contextmanager
def running(
    folder,
    *,
    keys=None,
    limits=None,
    calibrated=True,
    keep=False,
    sources=None,
    read_only=False,
    peer="testclient",
    own_decoders=False,
    **app,
):
    """A service in this process; `own_decoders`: with decoder processes that it starts and ends itself."""
    made = encoder(folder, calibrated)
    gallery = Gallery(folder / "people.gallery", read_only=read_only)
    bounds = limits or Limits(wait=0.001)
    kept = KeptThumbnails(folder / "kept", "people.gallery") if keep else None
    shown = SourceFolder(sources) if sources else None
    pool = ProcessPool if own_decoders else shared_pool
    with mock.patch("fmcnet.server.decoding.ProcessPool", pool):
        service = Service(
            Searcher(made, gallery), AuditLog(folder / "audit.jsonl"), bounds, kept, shown, read_only
        )
    made_app = create_app(service, keys, **app)
    with TestClient(
        made_app, "http://localhost", raise_server_exceptions=False, client=(peer, 50000)
    ) as client:
        yield Running(client, service, folder)


def bearer(scope):
    return {"Authorization": f"Bearer {SECRETS[scope]}"}
