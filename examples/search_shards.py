"""Search several galleries, one a site and month, and merge the answers.

    python examples/search_shards.py north-2026-11.gallery south-2026-11.gallery --query person.jpg

All galleries must be of one model: then their similarities compare. Give only the folders that the search needs.
"""

from __future__ import annotations

import argparse
from heapq import nlargest
from pathlib import Path

import fmcnet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("galleries", type=Path, nargs="+")
    parser.add_argument("--query", type=Path, required=True)
    parser.add_argument("--modality", default="infrared", help="of the query")
    parser.add_argument("--model", default="fmcnet-lite")
    parser.add_argument("--top", type=int, default=10)
    args = parser.parse_args()

    encoder = fmcnet.load(args.model)
    query = encoder.encode(args.query, args.modality).features[0]
    found = []
    for folder in args.galleries:
        with fmcnet.Gallery(folder, model=encoder.digest, read_only=True) as gallery:
            found += [(hit.similarity, folder.name, hit.source) for hit in gallery.search(query, args.top)]
    for similarity, folder, source in nlargest(args.top, found, key=lambda one: one[0]):
        print(f"{similarity:.3f}  {folder}  {source}")


if __name__ == "__main__":
    main()
