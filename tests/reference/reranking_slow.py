"""k-reciprocal re-ranking written from the paper with full matrices and loops, to be read, not to be fast."""

from __future__ import annotations

import numpy as np


def rerank_slow(query, gallery, k1=20, k2=6, weight=0.3):
    """(Q, G) final distances (Zhong et al., CVPR 2017, equations 1 to 12)."""
    images = np.concatenate([query, gallery])
    n, q = len(images), len(query)
    squared = np.array([[((a - b) ** 2).sum() for b in images] for a in images])
    original = squared / np.maximum(squared.max(axis=1, keepdims=True), 1e-300)
    order = []
    for i in range(n):
        key = squared[i].copy()
        key[i] = -1.0
        order.append(np.argsort(key, kind="stable"))

    def reciprocal(i, k):  # R(i, k): neighbours that have i among theirs
        return [j for j in order[i][: k + 1] if i in order[j][: k + 1]]

    encoding = np.zeros((n, n))
    for i in range(n):
        base = reciprocal(i, k1)
        expanded = set(base)
        for j in base:
            group = reciprocal(j, int(np.around(k1 / 2)))
            if len(set(group) & set(base)) > 2 / 3 * len(group):
                expanded |= set(group)
        for j in expanded:
            encoding[i, j] = np.exp(-original[i, j])
        encoding[i] /= encoding[i].sum()
    if k2 > 1:
        encoding = np.array([encoding[order[i][:k2]].mean(axis=0) for i in range(n)])
    final = np.zeros((q, n - q))
    for i in range(q):
        for g in range(n - q):
            a, b = encoding[i], encoding[q + g]
            jaccard = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
            final[i, g] = (1 - weight) * jaccard + weight * original[i, q + g]
    return final
