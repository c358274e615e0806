"""Evaluation written from shared/protocols.md, section 2, query by query, to be read, not to be fast."""

from __future__ import annotations

import numpy as np


def similarity_slow(a, b, distance):
    """Of two embeddings, larger is more alike."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if distance == "cosine":
        return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))
    return -float(np.sqrt(((a - b) ** 2).sum()))


def skips(rule, query_pid, query_cam, gallery_pid, gallery_cam):
    """Whether a query skips a gallery image; `rule` is a fmcnet SkipRule."""
    if query_cam == -1 or gallery_cam == -1:
        return False
    if rule.kind == "same_camera":
        return query_cam == gallery_cam
    if rule.kind == "same_identity_and_camera":
        return query_cam == gallery_cam and query_pid == gallery_pid
    return (query_cam, gallery_cam) in rule.pairs


def evaluate_slow(similarity, query_pid, gallery_pid, query_cam, gallery_cam, rule, cmc, self_pairs=()):
    """The figures from a (Q, G) matrix; None when no query counts. Ties put wrong answers first."""
    firsts, precisions, penalties = [], [], []
    for q in range(len(query_pid)):
        left = [
            g
            for g in range(len(gallery_pid))
            if not skips(rule, query_pid[q], query_cam[q], gallery_pid[g], gallery_cam[g])
            and (q, g) not in self_pairs
        ]
        left.sort(key=lambda g: (-similarity[q][g], gallery_pid[g] == query_pid[q], g))
        hits = [position for position, g in enumerate(left, 1) if gallery_pid[g] == query_pid[q]]
        if not hits:
            continue
        precisions.append(np.mean([k / rank for k, rank in enumerate(hits, 1)]))
        penalties.append(len(hits) / hits[-1])
        if cmc == "image":
            firsts.append(hits[0])
        else:
            seen = []
            for g in left:
                if gallery_pid[g] not in seen:
                    seen.append(gallery_pid[g])
            firsts.append(seen.index(query_pid[q]) + 1)
    if not firsts:
        return None
    found = {f"rank{k}": float(np.mean([f <= k for f in firsts])) for k in (1, 5, 10, 20)}
    return {
        **found,
        "mAP": float(np.mean(precisions)),
        "mINP": float(np.mean(penalties)),
        "queries": len(firsts),
    }
