"""Embed a labelled table, learn what similarities mean, keep it with the weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fmcnet.data.overlap import seen_identities
from fmcnet.data.table import SPLITS, Table, fingerprint
from fmcnet.errors import DataError, FmcnetError
from fmcnet.inference.calibration import CALIBRATION, Calibration, direction
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.fit_calibration import fit_calibration
from fmcnet.models.shipped import refuse_shipped

logger = logging.getLogger(__name__)


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
    """Learn a calibration and write it.

    Args:
        source: a run, an exported model, or a shipped one's name.
        data: a dataset's folder or CSV.
        split: of its images: "train", "val", "test", "all", or "auto": all of identities not trained on
            (of another dataset of the training's layout: all that its training splits do not hold).
        fmr, prior: defaults of the calibration, see `Calibration`.
        out: the file; None: `calibration.json` in the model's folder.
        device: where to embed. progress: show a bar; None: on a terminal only.

    Raises:
        DataError: when identities were trained on, or too few are there.
    """
    encoder = Encoder.from_pretrained(source, device=device)
    assert encoder.folder is not None
    if out is None:
        refuse_shipped(source, encoder.folder, "FILE")
    config = encoder.card.config
    table = _rows(encoder, encoder.read_dataset(data), split)
    embeddings = encoder.embed_table(table, batch_size=config.evaluation.batch, progress=progress)
    facts = {"table": table.name, "fingerprint": fingerprint(table), "split": split}
    found = fit_calibration(
        embeddings,
        encoder.digest,
        prior=prior,
        fmr=fmr,
        query_mask=np.isin(table.role, ("query", "")),
        gallery_mask=np.isin(table.role, ("gallery", "")),
        source=facts,
    )
    path = Path(out) if out is not None else encoder.folder / CALIBRATION
    path.parent.mkdir(parents=True, exist_ok=True)
    return found, found.save(path)


def _rows(encoder: Encoder, table: Table, split: str) -> Table:
    """The rows to learn from."""
    if split not in ("auto", "all", *SPLITS):
        raise FmcnetError(f"split '{split}': say auto, all, {', '.join(SPLITS)}")
    chosen = table if split in ("auto", "all") else table.select(split=split)
    same = encoder.card.data == fingerprint(table)
    if same:
        known = np.isin(chosen.pid, np.array(encoder.card.pids, dtype=np.int64))
        if split == "auto":
            chosen = chosen.take(~known)
        elif known.any():
            raise DataError(
                f"{len(np.unique(chosen.pid[known]))} identities of split '{split}' are among those that the model "
                "was trained on, whose similarities are too good to learn from: take --split auto"
            )
    elif split == "auto" and table.name == encoder.card.dataset:
        held = np.isin(chosen.split, encoder.card.config.data.train_splits)
        if held.any() and not held.all():
            logger.warning(
                "%s has the layout of the training dataset and other files: its %s images are left out, as they may "
                "be of people that the model was trained on; if they are not, say --split all",
                table.root,
                " and ".join(encoder.card.config.data.train_splits),
            )
            chosen = chosen.take(~held)
    if not same and len(seen := seen_identities(encoder.card.samples, chosen)):
        if split != "auto":
            raise DataError(
                f"{len(seen)} identities of split '{split}' have pictures that the model was trained on, whose "
                "similarities are too good to learn from: take --split auto"
            )
        logger.warning("left out: %d identities that have pictures of the model's training", len(seen))
        chosen = chosen.take(~np.isin(chosen.pid, seen))
    if not len(chosen):
        raise DataError(f"{table.root} has no image to calibrate on (split {split})")
    return chosen


def calibration_lines(found: Calibration) -> Iterator[str]:
    """What was learnt, in lines: for each pair of modalities its pairs, threshold and error."""
    for pair, curve in found.curves.items():
        name = direction(*pair)
        yield f"{name}: {curve.same:,} pairs of one person, {curve.different:,} of two"
        try:
            threshold = found.threshold(*pair)
            there = np.interp(-np.log(found.fmr), -np.log(curve.false_match_rate), curve.true_match_rate)
            yield (
                f"  threshold {threshold:.4f} at a false-match rate of {found.fmr:g}: true-match rate {there:.1%}"
            )
        except FmcnetError as error:
            yield f"  {error}"
        if name in found.held_out:
            seen = found.held_out[name]["expected_calibration_error"]
            yield f"  held-out identities: expected calibration error {seen:.3f} at prior {found.prior:g}"
        else:
            yield "  too few identities to hold some out: nothing is known about its error"
