"""Evaluators as the public repositories write them, for timing: one Python loop over the probes per trial.

Written here in our own words after the shape of two of them, with the same work at the same places:

- `agw_like`: AGW and its descendants (CAJ, DEEN, PMT): similarity of float64 arrays per trial (they collect features
  in `np.zeros`, which is float64), one argsort, then per probe a camera mask, a unique over the ranked identities,
  cumulative sums, and precision by a list comprehension;
- `mpanet_like`: MPANet and its descendants, which also do ten shots: Euclidean distance in float32 per trial,
  one argsort, then two loops over the probes (CMC, mAP), each rebuilding the ranked identities without the skipped
  ones by a list comprehension.

Both get a trial's rows ready made; drawing galleries and choosing rows is not timed.
"""

from __future__ import annotations

import numpy as np
import torch


def agw_like(query, gallery, query_pid, gallery_pid, query_cam, gallery_cam, depth=20):
    """CMC (first `depth`), mAP, mINP of one trial; features are float64 of unit length."""
    distance = -np.matmul(query, np.transpose(gallery))
    return agw_like_ranking(distance, query_pid, gallery_pid, query_cam, gallery_cam, depth)


def agw_like_ranking(distance, query_pid, gallery_pid, query_cam, gallery_cam, depth=20):
    """The loop alone."""
    order_all = np.argsort(distance, axis=1)
    labels = gallery_pid[order_all]
    hits_all = (gallery_pid[order_all] == query_pid[:, np.newaxis]).astype(np.int32)
    identity_curves, precisions, penalties = [], [], []
    for row in range(len(distance)):
        order = order_all[row]
        keep = np.invert((query_cam[row] == 3) & (gallery_cam[order] == 2))
        kept = labels[row][keep]
        first = np.unique(kept, return_index=True)[1]
        people = [kept[place] for place in sorted(first)]
        curve = (people == query_pid[row]).astype(np.int32).cumsum()
        identity_curves.append(curve[:depth])
        hits = hits_all[row][keep]
        if not np.any(hits):
            continue
        running = hits.cumsum()
        last = np.max(np.where(hits == 1))
        penalties.append(running[last] / (last + 1.0))
        precision = [found / (place + 1.0) for place, found in enumerate(running)]
        precisions.append((np.asarray(precision) * hits).sum() / hits.sum())
    cmc = np.asarray(identity_curves).astype(np.float32).sum(0) / len(precisions)
    return cmc, np.mean(precisions), np.mean(penalties)


def mpanet_like(query, gallery, query_pid, gallery_pid, query_cam, gallery_cam):
    """CMC and mAP of one trial; features are float32 tensors; cam 3 has been renamed to cam 2 among the probes."""
    squared = query.pow(2).sum(1, keepdim=True) + gallery.pow(2).sum(1)[None, :]
    distance = torch.addmm(squared, query, gallery.t(), beta=1, alpha=-2).numpy()
    order = np.argsort(distance, axis=1)
    average = _mpanet_map(order, query_pid, query_cam, gallery_pid, gallery_cam)
    return _mpanet_cmc(order, query_pid, query_cam, gallery_pid, gallery_cam), average


def _ordered_unique(values):
    _, first = np.unique(values, return_index=True)
    return values[np.sort(first)]


def _mpanet_cmc(order, query_pid, query_cam, gallery_pid, gallery_cam):
    counter = np.zeros((_ordered_unique(gallery_pid).shape[0],))
    labels, cameras, valid = gallery_pid[order], gallery_cam[order], 0
    for row in range(order.shape[0]):
        ranked = labels[row, :]
        ranked[np.equal(cameras[row], query_cam[row])] = -1
        ranked = np.array([label for label in ranked if label != -1])
        match = np.equal(_ordered_unique(ranked), query_pid[row])
        if np.sum(match) != 0:
            valid += 1
            counter[: len(match)] += match
    return np.cumsum(counter / valid)


def _mpanet_map(order, query_pid, query_cam, gallery_pid, gallery_cam):
    labels, cameras, valid, total = gallery_pid[order], gallery_cam[order], 0, 0.0
    for row in range(order.shape[0]):
        ranked = labels[row, :]
        ranked[cameras[row, :] == query_cam[row]] = -1
        ranked = np.array([label for label in ranked if label != -1])
        match = ranked == query_pid[row]
        count = np.sum(match)
        if count != 0:
            valid += 1
            ranks = np.where(match)[0]
            total += float(np.mean(np.arange(1, count + 1) / (ranks + 1)))
    return total / valid
