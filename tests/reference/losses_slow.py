"""The paper's losses as loops over plain Python numbers, written from the equations and nothing else."""

from __future__ import annotations

import math


def centre(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def centres(features, identities):
    k = len(features) // identities
    return [centre(features[p * k : (p + 1) * k]) for p in range(identities)]


def norm2(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def hinge(x):
    return max(0.0, x)


def equation_4(sp_v, sp_i, sh_v, sh_i, rho1):
    total = 0.0
    for p in range(len(sp_v)):
        for sp, sh in ((sp_v, sh_v), (sp_i, sh_i)):
            widest = max(norm2(sp[p], sp[d]) for d in range(len(sp)))
            nearest = min(norm2(sp[p], sh[j]) for j in range(len(sh)))
            total += hinge(widest - nearest + rho1)
    return total


def equation_5(sp_v, sp_i, rho2):
    total = 0.0
    for p in range(len(sp_v)):
        for sp in (sp_v, sp_i):
            others = [norm2(sp[p], sp[j]) for j in range(len(sp)) if j != p]
            total += hinge(rho2 - min(others)) if others else 0.0
    return total


def equation_6(c_v, c_i, alpha, rho3):
    total = 0.0
    for p in range(len(c_v)):
        total += alpha * norm2(c_v[p], c_i[p])
        for anchor in (c_v[p], c_i[p]):
            others = [norm2(anchor, c[j]) for c in (c_v, c_i) for j in range(len(c_v)) if j != p]
            total += hinge(rho3 - min(others)) if others else 0.0
    return total


def cross_entropy(scores, labels):
    total = 0.0
    for row, label in zip(scores, labels, strict=True):
        top = max(row)
        total -= row[label] - top - math.log(sum(math.exp(s - top) for s in row))
    return total / len(scores)


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def equation_12(real, fake):
    pk = len(real)
    return sum(math.log(sigmoid(r)) + math.log(1 - sigmoid(f)) for r, f in zip(real, fake, strict=True)) / pk


def equation_13(generated, specific, identities):
    k = len(generated) // identities
    c = centres(specific, identities)
    total = 0.0
    for p in range(identities):
        for row in generated[p * k : (p + 1) * k]:
            total += sum(abs(x - y) for x, y in zip(row, c[p], strict=True))
    return total / len(generated)


def softmax(values):
    top = max(values)
    weights = [math.exp(v - top) for v in values]
    return [w / sum(weights) for w in weights]


def weighted_triplet(features, labels):
    losses = []
    for i, anchor in enumerate(features):
        positive = [norm2(anchor, f) for j, f in enumerate(features) if j != i and labels[j] == labels[i]]
        negative = [norm2(anchor, f) for j, f in enumerate(features) if labels[j] != labels[i]]
        if not positive or not negative:
            continue
        far = sum(w * d for w, d in zip(softmax(positive), positive, strict=True))
        near = sum(w * d for w, d in zip(softmax([-d for d in negative]), negative, strict=True))
        gap = far - near
        losses.append(gap if gap > 30 else math.log1p(math.exp(gap)))
    return sum(losses) / len(losses) if losses else 0.0


def hetero_centre(c_v, c_i):
    return sum(norm2(v, i) ** 2 for v, i in zip(c_v, c_i, strict=True))


def hetero_centre_triplet(c_v, c_i, margin):
    total = 0.0
    for p in range(len(c_v)):
        for anchor in (c_v[p], c_i[p]):
            others = [norm2(anchor, c[j]) for c in (c_v, c_i) for j in range(len(c_v)) if j != p]
            total += hinge(margin + norm2(c_v[p], c_i[p]) - min(others)) if others else 0.0
    return total
