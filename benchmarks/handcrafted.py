"""A handcrafted matcher, to say honestly how hard a generated benchmark is without learning."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
STRIPES = 8
COLOUR_BINS = 8
CELLS = (16, 8)
ORIENTATIONS = 9


def handcrafted_features(images: NDArray[np.uint8]) -> Float:
    """Colour and gradient histograms, the classical pair of person re-identification before networks.

    Colour: in each of 8 horizontal stripes an 8-bin histogram of each of R, G, B and of the two opponent colours.
    Gradients: 16 x 8 cells of 9 unsigned orientations, blocks of 2 x 2 cells normalised (HOG). Each histogram is
    square-rooted (Hellinger), the two parts weigh the same, rows have unit length, so a dot product compares them.

    Args:
        images: (N, H, W, 3) uint8 RGB, 0 to 255; grey images with three equal channels. H a multiple of 16, W of 8.

    Returns:
        (N, D) float32 of unit length.
    """
    parts = [np.concatenate([_colour(image), _gradient(image)]) for image in images]
    return np.stack(parts).astype(np.float32)


def _unit(vector: Float) -> Float:
    return np.asarray(vector / (np.linalg.norm(vector) + 1e-8) * np.sqrt(0.5), dtype=np.float32)


def _colour(image: NDArray[np.uint8]) -> Float:
    height, width = image.shape[:2]
    pixels = image.astype(np.int32)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    first = np.clip((red - green) + 128, 0, 255)
    second = np.clip((2 * blue - red - green) // 2 + 128, 0, 255)
    stripe = (np.arange(height) * STRIPES // height)[:, None] * COLOUR_BINS
    centre = slice(width // 6, width - width // 6)  # the person rather than the wall
    histograms = []
    for channel in (red, green, blue, first, second):
        index = stripe + channel * COLOUR_BINS // 256
        histograms.append(np.bincount(index[:, centre].reshape(-1), minlength=STRIPES * COLOUR_BINS))
    return _unit(np.sqrt(np.concatenate(histograms).astype(np.float32)))


def _gradient(image: NDArray[np.uint8]) -> Float:
    grey = image.astype(np.float32).mean(axis=2)
    dy, dx = np.gradient(grey)
    size = np.hypot(dx, dy)
    angle = (np.arctan2(dy, dx) % np.pi) * (ORIENTATIONS / np.pi)
    height, width = grey.shape
    rows, cols = CELLS
    cell = (np.arange(height) * rows // height)[:, None] * cols + (np.arange(width) * cols // width)[None, :]
    index = cell * ORIENTATIONS + np.minimum(angle.astype(np.int64), ORIENTATIONS - 1)
    histogram = np.bincount(index.reshape(-1), weights=size.reshape(-1), minlength=rows * cols * ORIENTATIONS)
    cells = histogram.reshape(rows, cols, ORIENTATIONS)
    blocks = np.concatenate([cells[:-1, :-1], cells[1:, :-1], cells[:-1, 1:], cells[1:, 1:]], axis=2)
    blocks /= np.linalg.norm(blocks, axis=2, keepdims=True) + 1e-3
    return _unit(np.sqrt(blocks.reshape(-1)).astype(np.float32))


def rank1(
    query: Float,
    gallery: Float,
    query_pid: NDArray[np.int64],
    gallery_pid: NDArray[np.int64],
    query_cam: NDArray[np.int64],
    gallery_cam: NDArray[np.int64],
    *,
    draws: int = 10,
    seed: int = 0,
) -> tuple[float, float]:
    """Single-shot Rank-1 of a matcher and of chance, means over random galleries, in percent.

    Each draw takes one image per gallery identity. A query never meets an image of its own camera (within a modality
    that would compare backgrounds, not persons); one whose identity is then absent does not count.

    Args:
        query: (Q, D) unit rows.
        gallery: (G, D) unit rows.
        query_pid: (Q,) identities; `gallery_pid` (G,), `query_cam` (Q,), `gallery_cam` (G,) alike.
        gallery_pid: see above.
        query_cam: see above.
        gallery_cam: see above.
        draws: random galleries.
        seed: seed of the draws.

    Returns:
        (Rank-1, chance), both 0 to 100.
    """
    similarity = query @ gallery.T
    hits, chances = [], []
    rng = np.random.default_rng([7601, seed])
    for _ in range(draws):
        for cam in np.unique(query_cam):
            allowed = np.flatnonzero(gallery_cam != cam)
            order = allowed[rng.permutation(len(allowed))]
            pids, first = np.unique(gallery_pid[order], return_index=True)
            chosen = order[first]
            rows = np.flatnonzero((query_cam == cam) & np.isin(query_pid, pids))
            if not len(rows) or not len(chosen):
                continue
            best = chosen[similarity[np.ix_(rows, chosen)].argmax(axis=1)]
            hits.append(gallery_pid[best] == query_pid[rows])
            chances.append(np.full(len(rows), 1.0 / len(chosen)))
    return 100.0 * float(np.concatenate(hits).mean()), 100.0 * float(np.concatenate(chances).mean())
