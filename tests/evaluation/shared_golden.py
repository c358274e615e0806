"""What the golden tests read; ../shared may be absent, the small case is carried along."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from fmcnet.types import Embeddings

SHARED = Path(__file__).parents[3] / "shared" / "golden"
CARRIED = Path(__file__).parent / "data-golden"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
PERMUTATION = SHARED / "rand_perm_cam.mat"


def embeddings(features, pid, camid, modality, index=None):
    """Embeddings from plain arrays."""
    n = len(features)
    return Embeddings(
        np.asarray(features, dtype=np.float32),
        np.asarray(pid, dtype=np.int64),
        np.asarray(camid, dtype=np.int64),
        np.asarray(modality, dtype=np.uint8),
        np.zeros(n, dtype=np.int64) if index is None else np.asarray(index, dtype=np.int64),
        np.full(n, "", dtype="<U1"),
    )


@lru_cache(maxsize=1)
def sysu_embeddings() -> Embeddings:
    with np.load(SHARED / "sysu_features.npz") as stored:
        return embeddings(
            stored["features"], stored["pid"], stored["cam"], np.isin(stored["cam"], (3, 6)), stored["index"]
        )


@lru_cache(maxsize=4)
def read_json(name: str):
    return json.loads((SHARED / name).read_text())
