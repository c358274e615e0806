"""A writer to be killed: `python -m tests.retrieval.writer FOLDER` forks one for each line it reads, a seed.

A writer notes each operation before it begins and after it is acknowledged, in FOLDER.notes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta

import numpy as np

from fmcnet.retrieval import Gallery, Where
from tests.retrieval.people import NOON, add, crops, entries

OPTIONS = {"flush_rows": 30, "index": "hnsw"}


def operations(seed):
    """Endless operations that do not need to know what is in the gallery."""
    random = np.random.default_rng(seed)
    while True:
        first, n = int(random.integers(400)), int(random.integers(1, 40))
        kind = str(random.choice(["add", "add", "add", "add", "remove", "remove", "update", "compact"]))
        yield {"kind": kind, "first": first, "n": n, "seed": int(random.integers(10**6))}


def apply(gallery, operation):
    """Do an operation to a gallery, or to the dictionary."""
    first, n, seed = operation["first"], operation["n"], operation["seed"]
    names = [f"crop-{i:05d}" for i in range(first, first + n)]
    plain = not isinstance(gallery, Gallery)
    if operation["kind"] == "add":
        vectors, rows = crops(n, seed=seed), entries(n, seed=seed, first=first)
        gallery.add(vectors, rows) if plain else add(gallery, vectors, rows, on_duplicate="replace")
    elif operation["kind"] == "remove":
        gallery.remove(Where(ids=names))
    elif operation["kind"] == "update":
        known = [name for name in names if name in (gallery.rows if plain else gallery)]
        change = {"camera": f"moved {seed}", "time": NOON + timedelta(seconds=seed)}
        if known:
            gallery.update(known, **change)
    elif not plain:
        gallery.compact()


def write(folder, seed):
    """Until killed."""
    notes = os.open(f"{folder}.notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    gallery = Gallery(folder, **OPTIONS)
    for operation in operations(seed):
        os.write(notes, (json.dumps(["begun", operation]) + "\n").encode())
        apply(gallery, operation)
        os.write(notes, (json.dumps(["done", operation]) + "\n").encode())


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that were killed vanish
    with Gallery(f"{sys.argv[1]}.warm") as warm:  # all is imported once
        add(warm, crops(3), entries(3))
        warm.search(crops(1)[0])
    for line in sys.stdin:
        child = os.fork()
        if not child:
            write(sys.argv[1], int(line))
        print(child, flush=True)
