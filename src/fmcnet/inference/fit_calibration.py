"""A calibration learnt from images of known identities: pairs counted by similarity, one curve per direction."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.data.table import SPLITS, Table, fingerprint, names_note, seen_identities
from fmcnet.errors import CheckpointError, DataError, FmcnetError
from fmcnet.files import check_writable
from fmcnet.inference.backends import ONNX_FOLDER, read_manifest
from fmcnet.inference.calibration import CALIBRATION, DIRECTIONS, Calibration, Curve, FloatVector, direction
from fmcnet.inference.encoder import Encoder
from fmcnet.models.shipped import refuse_shipped
from fmcnet.parsing import read_json
from fmcnet.types import NO_CAMERA, NO_PID, BoolArray, Embeddings, IntArray, Modality

logger = logging.getLogger(__name__)

BINS = 20_000
"""Of equal width over -1..1: similarities differ in steps of 0.0001."""

BLOCK_PAIRS = 2**22
"""Pairs compared at a time."""

FOLDS = 5

ENOUGH_PAIRS = 10
"""Fewest false matches behind a stored false-match rate, and fewest pairs in a group at an end of the curve."""

MIN_PAIRS = 20
"""Fewer pairs of the same person, or of different ones, are not learnt from."""

A_DECADE = 10
"""Thresholds stored per factor of ten of the false-match rate."""

UNKNOWN_CAMERA = "unknown_camera"
"""Key of `Calibration.source`: by direction, the pairs of one person of which a camera is unknown."""

HELD_OUT_RATES = (1e-1, 1e-2, 1e-3, 1e-4)
"""False-match rates whose thresholds are measured on held-out identities."""

ERROR_BINS = 15
"""Equal parts of 0..1 that the expected calibration error averages over (Guo et al., ICML 2017)."""


def _is_calibration(path: Path) -> bool:
    """Whether a file is a calibration of any version, which may be replaced."""
    with contextlib.suppress(OSError, ValueError):
        tree = read_json(path)
        return isinstance(tree, dict) and str(tree.get("format")).startswith("fmcnet-calibration-")
    return False


def calibrate_model(
    source: str | Path,
    data: str | Path,
    *,
    split: str = "auto",
    fmr: float = 0.001,
    prior: float = 0.5,
    out: str | Path | None = None,
    device: str = "auto",
    progress: bool | None = None,
) -> tuple[Calibration, Path]:
    """Embed a labelled table, learn a calibration, and write it beside the weights.

    Args:
        source: a run, an exported model, or a shipped one's name.
        data: a dataset's folder or CSV.
        split: of its images: "train", "val", "test", "all", or "auto": all of identities not trained on
            (of another dataset of the training's layout: all that its training splits do not hold).
        fmr: the calibration's default false-match rate, 0 < fmr <= 1.
        prior: the calibration's default prior, 0 < prior < 1.
        out: the file; None: `calibration.json` in the model's folder, and in that of its float32 export.
        device: where to embed.
        progress: show a bar; None: on a terminal only.

    Returns:
        The calibration and its file.

    Raises:
        DataError: when identities were trained on, or there are too few.
    """
    encoder = Encoder.from_pretrained(source, device=device)
    assert encoder.folder is not None
    if out is None:
        refuse_shipped(source, encoder.folder, "FILE")
    path = Path(out) if out is not None else encoder.folder / CALIBRATION
    if path.is_dir():
        raise DataError(f"--out {path} is a folder: say --out FILE")
    if out is not None and path.exists() and not _is_calibration(path):
        raise DataError(f"--out {path} exists and is no calibration: name another file")
    check_writable(path, "say --out FILE, and --calibration FILE to search and serve")
    config = encoder.card.config
    table = encoder.read_dataset(data, all_splits=split in ("auto", "all"))
    table = _calibration_rows(encoder, table, split)
    embeddings = encoder.embed_table(table, batch_size=config.evaluation.batch, progress=progress)
    facts = {"table": table.name, "fingerprint": fingerprint(table), "split": split}
    calibration = fit_calibration(
        embeddings,
        encoder.digest,
        prior=prior,
        fmr=fmr,
        query_mask=np.isin(table.role, ("query", "")),
        gallery_mask=np.isin(table.role, ("gallery", "")),
        source=facts,
    )
    calibration.save(path)
    if out is None:
        exported = encoder.folder / ONNX_FOLDER
        try:
            if read_manifest(exported).digest == encoder.digest:  # otherwise of earlier weights
                calibration.save(exported / CALIBRATION)
        except CheckpointError:
            pass  # there is no export
        except OSError as error:
            logger.warning("%s keeps its earlier calibration: %s", exported, error)
    return calibration, path


def _calibration_rows(encoder: Encoder, table: Table, split: str) -> Table:
    """The rows that a calibration is learnt from."""
    if split not in ("auto", "all", *SPLITS):
        raise FmcnetError(f"split '{split}': say auto, all, {', '.join(SPLITS)}")
    rows = table if split in ("auto", "all") else table.select(split=split)
    if encoder.card.data == fingerprint(table):
        trained = np.isin(rows.pid, np.array(encoder.card.pids, dtype=np.int64))
        if split == "auto":
            rows = rows.take(~trained)
        elif trained.any():
            raise DataError(
                f"{len(np.unique(rows.pid[trained]))} identities of split '{split}' are among those that the model "
                "was trained on, whose similarities are too good to learn from: take --split auto"
            )
    elif split == "auto" and table.name == encoder.card.dataset:
        in_training = np.isin(rows.split, encoder.card.config.data.train_splits)
        if in_training.any() and not in_training.all():
            logger.warning(
                "%s has the layout of the training dataset and other files: its %s images are left out, as they may "
                "be of people that the model was trained on; if they are not, say --split all",
                table.origin,
                " and ".join(encoder.card.config.data.train_splits),
            )
            rows = rows.take(~in_training)
    if len(seen := seen_identities(encoder.card.seen_samples, rows)):
        if split != "auto":
            raise DataError(
                f"{len(seen)} identities of split '{split}' have images that the model or its projection was trained "
                "on, whose similarities are too good to learn from: take --split auto"
            )
        logger.warning(
            "left out: %d identities that have images of the model's training, or its projection's", len(seen)
        )
        rows = rows.take(~np.isin(rows.pid, seen))
    if rows.name == encoder.card.dataset and (note := names_note(encoder.card.identities, rows, "the model")):
        logger.warning("%s", note)
    if not len(rows):
        raise DataError(f"{table.origin} has no image to calibrate on (split {split})")
    return rows


def calibration_lines(found: Calibration) -> Iterator[str]:
    """What was learnt, in lines: for each pair of modalities its pairs, threshold and error."""
    yield f"learnt from {found.source['images']:,} images of {found.source['identities']:,} identities"
    for pair, curve in found.curves.items():
        name = direction(*pair)
        count = found.source.get(UNKNOWN_CAMERA, {}).get(name, 0)
        unknown = f" ({count:,} of unknown camera)" if count else ""
        yield f"{name}: {curve.same:,} pairs of one person{unknown}, {curve.different:,} of two"
        try:
            threshold = found.threshold(*pair)
            true_match_rate = np.interp(
                -np.log(found.fmr), -np.log(curve.false_match_rate), curve.true_match_rate
            )
            yield (
                f"  threshold {threshold:.4f} at a false-match rate of {found.fmr:g}: true-match rate "
                f"{true_match_rate:.1%}"
            )
        except FmcnetError as error:
            yield f"  {error}"
        if name in found.held_out:
            expected_error = found.held_out[name]["expected_calibration_error"]
            yield f"  held-out identities: expected calibration error {expected_error:.3f} at prior {found.prior:g}"
        else:
            yield "  too few identities with pairs to hold some out: nothing is known about its error"


def threshold_notes(found: Calibration) -> Iterator[str]:
    """A sentence for each pair of modalities without a threshold at the default false-match rate."""
    for pair in found.curves:
        try:
            found.threshold(*pair)
        except FmcnetError as error:
            yield f"{direction(*pair)}: {error}"


def fit_calibration(
    embeddings: Embeddings,
    model: str,
    *,
    prior: float = 0.5,
    fmr: float = 0.001,
    query_mask: BoolArray | None = None,
    gallery_mask: BoolArray | None = None,
    source: dict[str, Any] | None = None,
) -> Calibration:
    """Learn a calibration from embeddings of known identities, none of which the model was trained on.

    Every direction is learnt from all its pairs (`count_pairs`). Cosine similarity is symmetric: without masks
    visible-infrared and infrared-visible come out alike. Held-out errors come from cross-fitting over folds of
    identities; the stored curves are learnt from all. Pairs of one person within a modality of which a camera is
    unknown are used, with a warning and their number in `source`: they may be neighbouring frames of one camera.

    Args:
        embeddings: (N,) of known identities.
        model: their model's digest.
        prior: the calibration's default prior, 0 < prior < 1.
        fmr: the calibration's default false-match rate, 0 < fmr <= 1.
        query_mask: (N,) which rows may be queries; None: all.
        gallery_mask: (N,) which rows may be in the gallery; None: all.
        source: what the embeddings are of, for information.

    Raises:
        DataError: when identities are missing, or no direction has enough pairs.
        FmcnetError: for a prior or a rate out of range.
    """
    if not 0.0 < prior < 1.0 or not 0.0 < fmr <= 1.0:
        raise FmcnetError(f"prior must be between 0 and 1 and fmr above 0, at most 1; got {prior} and {fmr}")
    if (embeddings.pid == NO_PID).any():
        raise DataError(
            f"{int((embeddings.pid == NO_PID).sum())} embeddings have no identity: nothing to learn from"
        )
    if not np.linalg.norm(embeddings.features, axis=1).all():
        raise DataError("an embedding is all zeros, which has no cosine similarity: check the model")
    identities = len(np.unique(embeddings.pid))
    fold = folds_of(embeddings.pid, min(FOLDS, max(1, identities // 4)))
    curves: dict[tuple[Modality, Modality], Curve] = {}
    most = [0, 0]
    held_out_results: dict[str, Any] = {}
    masks: dict[str, Any] = {"query_mask": query_mask, "gallery_mask": gallery_mask}
    for pair in DIRECTIONS:
        counts = count_pairs(embeddings, *pair, fold=fold, **masks)
        total = counts.sum(axis=(0, 1))
        most = max(most, total.sum(axis=1).tolist(), key=sorted)
        if total.sum(axis=1).min() < MIN_PAIRS:
            continue
        curves[pair] = fit(total[1], total[0])
        result = held_out(counts, prior) if len(counts) > 1 else None
        if result is not None:
            held_out_results[direction(*pair)] = result
    if not curves:
        raise DataError(
            f"{len(embeddings):,} images (identities: {identities:,}) make at most {most[1]:,} pairs of one person "
            f"(by two cameras) and {most[0]:,} of two in a direction, where {MIN_PAIRS} of each are needed: "
            "calibrate on more"
        )
    facts = {"identities": identities, "images": len(embeddings), **(source or {})}
    unknown, shares = dict[str, int](), list[str]()
    known = embeddings.camid != NO_CAMERA
    of_known = {name: known if mask is None else known & mask for name, mask in masks.items()}
    for pair, curve in curves.items():
        if pair[0] is not pair[1] or known.all():
            continue
        counts = count_pairs(embeddings, *pair, fold=fold, **of_known)
        if count := curve.same - int(counts[:, :, 1].sum()):
            unknown[direction(*pair)] = count
            shares.append(f"{count:,} of {curve.same:,} {direction(*pair)}")
    if unknown:
        facts[UNKNOWN_CAMERA] = unknown
        logger.warning(
            "%s pairs of one person have an unknown camera and may be neighbouring frames, which are too alike to "
            "learn from: give each image's camera (in a CSV, the column camid or camera)",
            " and ".join(shares),
        )
    return Calibration(model, curves, prior, fmr, held_out_results, facts)


def calibration_error(
    probability: FloatVector, same: FloatVector, different: FloatVector, prior: float
) -> float:
    """Expected calibration error: mean distance over pairs between probabilities and shares; 0 (right) to 1.

    Args:
        probability: (N,) given to N groups of pairs.
        same: (N,) how many pairs of each group are of one person.
        different: (N,) how many are of two persons.
        prior: the share of the former among all pairs that the error is for; the counts are weighted to it.
    """
    same = prior * same / same.sum()
    different = (1 - prior) * different / different.sum()
    bin_index = np.minimum((probability * ERROR_BINS).astype(np.int64), ERROR_BINS - 1)
    predicted = np.bincount(bin_index, weights=probability * (same + different), minlength=ERROR_BINS)
    observed = np.bincount(bin_index, weights=same, minlength=ERROR_BINS)
    return float(np.abs(predicted - observed).sum())


def held_out(counts: IntArray, prior: float) -> dict[str, Any] | None:
    """Cross-validate over folds of identities: learn from all but one, measure on that one.

    Args:
        counts: (K, K, 2, BINS) of `count_pairs`.
        prior: of the calibration error.

    Returns:
        `folds`; `same`, `different` (pairs measured); `expected_calibration_error`; `brier`: the mean squared error
        of the probabilities; and `rates`: for each false-match rate of `HELD_OUT_RATES`, the measured false- and
        true-match rates. None where the pairs are too few.
    """
    k = len(counts)
    within = np.stack([counts[fold, fold] for fold in range(k)])  # (K, 2, BINS): pairs that are measured
    different, same = within.sum(axis=(0, 2))
    probability = np.zeros((k, BINS))
    reached = {rate: np.zeros(2, dtype=np.int64) for rate in HELD_OUT_RATES}
    for fold in range(k):
        others = np.arange(k) != fold
        learnt_different, learnt_same = counts[np.ix_(others, others)].sum(axis=(0, 1))
        if min(same, different, learnt_same.sum(), learnt_different.sum()) < MIN_PAIRS:
            return None
        curve = fit(learnt_same, learnt_different)
        probability[fold] = curve.probability(_centres(), prior)
        for rate in list(reached):
            try:
                first_bin = int(np.searchsorted(edges(), curve.at(rate) - 1e-9))
                reached[rate] += within[fold, :, first_bin:].sum(axis=1)
            except FmcnetError:  # too low for this fold's pairs
                del reached[rate]
    bin_different, bin_same = within.astype(float).swapaxes(0, 1).reshape(2, -1)  # (K * BINS,) each
    bin_probability = probability.ravel()
    brier = prior * ((1 - bin_probability) ** 2 * bin_same).sum() / same
    brier += (1 - prior) * (bin_probability**2 * bin_different).sum() / different
    return {
        "folds": k,
        "same": int(same),
        "different": int(different),
        "expected_calibration_error": calibration_error(bin_probability, bin_same, bin_different, prior),
        "brier": float(brier),
        "rates": {
            f"{rate:g}": {
                "false_match_rate": int(false_matches) / int(different),
                "true_match_rate": int(true_matches) / int(same),
            }
            for rate, (false_matches, true_matches) in reached.items()
            if rate * different >= ENOUGH_PAIRS
        },
    }


def edges() -> FloatVector:
    """(BINS + 1,) where bins begin and end; bin i holds edges[i] <= similarity < edges[i + 1], the last also 1."""
    return np.linspace(-1.0, 1.0, BINS + 1)


def _centres() -> FloatVector:
    return (edges()[:-1] + edges()[1:]) / 2


def bins_of(similarity: NDArray[Any]) -> IntArray:
    """The bin of each similarity, of any shape; values that rounding puts outside -1..1 go to the end bins."""
    index = np.floor((np.asarray(similarity, dtype=np.float64) + 1.0) * (BINS / 2))
    return np.clip(index, 0, BINS - 1).astype(np.int64)


def folds_of(pid: IntArray, folds: int) -> IntArray:
    """(N,) 0..folds-1: a random, equal partition of the identities."""
    identities, index = np.unique(pid, return_inverse=True)
    return np.asarray(np.random.default_rng(0).permutation(len(identities))[index] % folds, dtype=np.int64)


def count_pairs(
    embeddings: Embeddings,
    query_modality: Modality,
    gallery_modality: Modality,
    *,
    fold: IntArray,
    query_mask: BoolArray | None = None,
    gallery_mask: BoolArray | None = None,
) -> IntArray:
    """Count the pairs of a query and a gallery image, by the folds of their identities.

    Left out are pairs of an image with itself and of one person seen by one known camera: neighbouring frames say
    nothing about recognising somebody elsewhere. Within a modality a pair counts once, not in both orders.

    Args:
        embeddings: (N,) of known identities, of any length but zero.
        query_modality: of the queries.
        gallery_modality: of the gallery.
        fold: (N,) 0..K-1, one value an identity.
        query_mask: (N,) which rows may be queries; None: all.
        gallery_mask: (N,) which rows may be in the gallery; None: all.

    Returns:
        (K, K, 2, BINS): by the query's fold, the gallery's fold, different (0) or same (1) person, and bin.
    """
    query_rows, gallery_rows = (
        np.flatnonzero((True if mask is None else mask) & (embeddings.modality == modality.code))
        for mask, modality in ((query_mask, query_modality), (gallery_mask, gallery_modality))
    )
    pid, camid = embeddings.pid, embeddings.camid
    features = embeddings.features / np.linalg.norm(embeddings.features, axis=1, keepdims=True)
    k = int(fold.max(initial=0)) + 1
    counts = np.zeros((k, k, 2, BINS), dtype=np.int64)
    # Rows that are queries and gallery images meet in both orders where the modality is one.
    in_both = np.intersect1d(query_rows, gallery_rows)
    step = max(1, BLOCK_PAIRS // max(1, len(gallery_rows)))
    for start in range(0, len(query_rows), step):
        query, gallery = query_rows[start : start + step, None], gallery_rows[None]
        same = pid[query] == pid[gallery]
        one_camera = (camid[query] == camid[gallery]) & (camid[query] != NO_CAMERA)
        met_before = np.isin(query, in_both) & np.isin(gallery, in_both) & (query > gallery)
        counted = ~(same & one_camera) & ~met_before & (query != gallery)
        similarity = features[query[:, 0]] @ features[gallery_rows].T
        place = (fold[query], fold[gallery], same.astype(np.int64), bins_of(similarity))
        index = np.ravel_multi_index(place, counts.shape)
        counts += np.bincount(index[counted], minlength=counts.size).reshape(counts.shape)
    return counts


def fit(same: IntArray, different: IntArray) -> Curve:
    """The curve of counts (BINS,) of pairs of one person and of two, at least `MIN_PAIRS` of either.

    Evidence is an isotonic regression of "same or not", where both sides weigh one half. It runs over up to 64 groups
    of equal mass and, towards the ends, smaller ones. Each of its steps is a knot. Half a pair is added on either
    side, so that nothing is certain.
    """
    totals = int(same.sum()), int(different.sum())
    return Curve(*totals, *_fit_evidence(same, different), *_fit_thresholds(same, different))


def _fit_evidence(same: IntArray, different: IntArray) -> tuple[FloatVector, FloatVector]:
    """Knots (K,) and evidence (K,) of `fit`: bins form groups, groups form steps, and each step is a knot.

    As an example, 20 pairs of either kind in five bins, and groups of a quarter of the mass:

        similarity       0.0    0.2    0.4    0.6    0.8
        same               0      3      4      4      9
        different          8      2      2      8      0
        mass           0.200  0.125  0.150  0.300  0.225   half of same / 20 + different / 20
        middle         0.100  0.262  0.400  0.625  0.888   of a bin's mass, added from the left
        group              0      1      1      2      3
        share           0.00   0.64   0.64   0.33   1.00   of pairs of one person in the group's mass
        step               0      1      1      1      2   isotonic: groups whose shares descend become one step
        knot            0.00   0.46   0.46   0.46   0.80   the step's mean similarity, weighted by mass
        evidence       -2.83  -0.08  -0.08  -0.08   2.94   log of (11 + 0.5) / 21 over (12 + 0.5) / 21 for step 1
    """
    from scipy.optimize import isotonic_regression

    total_same, total_different = int(same.sum()), int(different.sum())
    mass = (same / total_same + different / total_different) / 2
    bounds = _group_bounds(total_same, total_different)
    group = np.searchsorted(bounds, np.cumsum(mass) - mass / 2, side="right").astype(np.int64)
    group_mass = np.bincount(group, mass, len(bounds) + 1)
    used = np.flatnonzero(group_mass > 0)
    share = np.bincount(group, same / total_same / 2, len(bounds) + 1)[used] / group_mass[used]
    first_groups = used[isotonic_regression(share, weights=group_mass[used]).blocks[:-1]]  # of the steps
    step = np.searchsorted(first_groups[1:], group, side="right")
    step_same, step_different, step_mass, step_similarity = (
        np.bincount(step, values, len(first_groups)) for values in (same, different, mass, mass * _centres())
    )
    evidence = np.log((step_same + 0.5) / (total_same + 1))
    evidence -= np.log((step_different + 0.5) / (total_different + 1))
    return step_similarity / step_mass, np.maximum.accumulate(evidence)


def _group_bounds(n_same: int, n_different: int) -> FloatVector:
    """Where groups end, as shares of all mass, ascending: equal parts, the first and the last halved while they hold
    `ENOUGH_PAIRS` pairs of the kind that is common there."""
    num_equal = int(np.clip(min(n_same, n_different) // MIN_PAIRS, 4, 64))
    low, high = (
        0.5 ** np.arange(1, max(1, int(np.log2(2 * n / num_equal / ENOUGH_PAIRS)) + 1)) / num_equal
        for n in (n_different, n_same)
    )
    return np.concatenate([low[::-1], np.arange(1, num_equal) / num_equal, 1 - high])


def _fit_thresholds(same: IntArray, different: IntArray) -> tuple[FloatVector, FloatVector, FloatVector]:
    # (BINS + 1,) pairs at or above each edge
    reached_different = np.append(np.cumsum(different[::-1])[::-1], 0)
    reached_same = np.append(np.cumsum(same[::-1])[::-1], 0)
    n = int(different.sum())
    decades = np.log10(max(n / ENOUGH_PAIRS, 1.0))
    rates = 10.0 ** (-np.arange(int(np.floor(decades * A_DECADE + 1e-9)) + 1) / A_DECADE)
    first_bin = np.searchsorted(-reached_different, -np.floor(rates * n + 1e-6), side="left").clip(max=BINS)
    return rates, edges()[first_bin], reached_same[first_bin] / max(int(same.sum()), 1)
