"""What pooling the crops of a track changes: Rank-1 and mAP of tracks ranked by their best crop, or by all pooled.

    python benchmarks/tracks.py --run RUN --data DATA [--json FILE]

RUN is a run folder or a shipped model's name; people are DATA's test identities. The gallery holds all crops of one
modality; those of one person before one camera are a track. Queries of the other modality: each crop by itself, or
each track's crops pooled. All tracks are ranked; a query's right ones are all tracks of its person. Percent.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path

import numpy as np

from fmcnet.data.readers import read_dataset
from fmcnet.inference.encoder import Encoder
from fmcnet.retrieval import Gallery, pool
from fmcnet.types import Modality


def ranked(gallery, queries, pooled, tracks):
    """Rank-1 and mAP of (pid, embedding) queries."""
    first, precision = [], []
    for pid, query in queries:
        groups = gallery.search_groups(query, "track", top=tracks, pooled=pooled)
        assert len(groups) == tracks
        right = np.array([group.hits[0].pid == pid for group in groups])
        if not right.any():
            continue
        first.append(right[0])
        places = np.flatnonzero(right) + 1
        precision.append(np.mean(np.arange(1, len(places) + 1) / places))
    return {
        "queries": len(first),
        "rank1": round(100 * float(np.mean(first)), 2),
        "mAP": round(100 * float(np.mean(precision)), 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    encoder = Encoder.from_pretrained(given.run, device="cpu")
    config = encoder.card.config
    table = read_dataset(given.data, layout=config.data.layout).select(split="test")
    found = encoder.embed_table(table, progress=False).features
    track = np.array([f"{pid}/{camera}" for pid, camera in zip(table.pid, table.camid, strict=True)])
    rows = []
    for asked in (Modality.INFRARED, Modality.VISIBLE):
        of_query = table.modality == asked.code
        kept = np.flatnonzero(~of_query)
        crops = [(int(table.pid[i]), found[i]) for i in np.flatnonzero(of_query)]
        together = [
            (int(table.pid[track == name][0]), pool(found[track == name]))
            for name in np.unique(track[of_query])
        ]
        tracks = len(np.unique(track[kept]))
        with (
            tempfile.TemporaryDirectory() as folder,
            Gallery(Path(folder) / "g", model="benchmark") as gallery,
        ):
            gallery.add(
                found[kept],
                modality=Modality.VISIBLE if asked is Modality.INFRARED else Modality.INFRARED,
                pid=table.pid[kept].tolist(),
                track=track[kept].tolist(),
            )
            for (name, queries), pooled in product((("crop", crops), ("track", together)), (False, True)):
                row = {
                    "asked": str(asked),
                    "query": name,
                    "tracks are": "pooled" if pooled else "their best crop",
                }
                row |= {"tracks": tracks, "crops": len(kept), **ranked(gallery, queries, pooled, tracks)}
                rows.append(row)
                print(json.dumps(row), flush=True)
    if given.json:
        report = {"run": given.run, "people": len(np.unique(table.pid)), "rows": rows}
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
