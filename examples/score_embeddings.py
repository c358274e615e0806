"""Score your own embeddings with a protocol of the field.

    python examples/score_embeddings.py

Replace `random_embeddings` by the output of your network: one row per image.
"""

from __future__ import annotations

import numpy as np

import fmcnet


def random_embeddings(identities: int = 20, images: int = 4, dim: int = 64) -> fmcnet.Embeddings:
    """Visible and infrared images of each identity: a common vector plus noise."""
    random = np.random.default_rng(0)
    pid = np.repeat(np.arange(identities), 2 * images)
    modality = np.tile(np.repeat([0, 1], images), identities)  # 0 visible, 1 infrared
    center = random.normal(size=(identities, dim))
    features = center[pid] + 2 * random.normal(size=(len(pid), dim))
    return fmcnet.Embeddings(
        features=features.astype(np.float32),  # (N, D)
        pid=pid,  # (N,)
        camid=np.where(modality == 0, 1, 3),  # (N,); -1 where unknown
        modality=modality.astype(np.uint8),  # (N,)
        index=np.tile(np.arange(1, images + 1), 2 * identities),  # 1-based, within identity and camera
        name=np.array([f"image-{row}" for row in range(len(pid))]),
    )


def main() -> None:
    embeddings = random_embeddings()
    for protocol in (
        fmcnet.protocols.custom(query="infrared", gallery="visible"),
        fmcnet.protocols.custom(query="visible", gallery="infrared", cmc="identity"),
        fmcnet.protocols.sysu(draw="seeded"),
    ):
        evaluation = fmcnet.evaluate(embeddings, protocol)
        print(evaluation.summary())
        print(f"Rank-1 {100 * evaluation.mean['rank1']:.1f} %, mAP {100 * evaluation.mean['mAP']:.1f} %\n")


if __name__ == "__main__":
    main()
