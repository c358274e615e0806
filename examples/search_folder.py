"""Index a folder of images, then search it with one image of the other modality.

python examples/search_folder.py --visible day --query night.jpg --model adapted
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fmcnet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visible", type=Path, required=True, help="folder of visible crops")
    parser.add_argument("--query", type=Path, required=True, help="one infrared crop")
    parser.add_argument("--model", default="fmcnet-lite", help="a run, an export or a shipped model")
    parser.add_argument("--gallery", default="people.gallery", help="folder of the gallery")
    parser.add_argument("--top", type=int, default=5)
    args = parser.parse_args()

    images = sorted(path for path in args.visible.rglob("*") if path.suffix.lower() in {".jpg", ".png"})
    with fmcnet.Gallery(args.gallery) as gallery:
        searcher = fmcnet.Searcher(fmcnet.load(args.model), gallery)
        ids = [path.relative_to(args.visible).as_posix() for path in images]
        searcher.add(images, "visible", ids=ids, on_duplicate="skip")
        answer = searcher.search(args.query, "infrared", top=args.top)
    for rank, hit in enumerate(answer.hits, 1):
        probability = "" if hit.probability is None else f", probability {hit.probability:.3f}"
        print(f"{rank}. {hit.id}: similarity {hit.similarity:.3f}{probability}")
    print(*answer.notes, sep="\n")


if __name__ == "__main__":
    main()
