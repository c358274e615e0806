"""Embed files into an `.npz`, or a table by several processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmcnet.data.listing import Ignored
from fmcnet.data.pixels import Remarks, ValueRange
from fmcnet.data.readers import BENCHMARKS, read_dataset
from fmcnet.data.readers.csv import HELD_OUT
from fmcnet.data.table import FEW_SEEN, SPLITS, Table, fingerprint, seen_identities
from fmcnet.errors import DataError
from fmcnet.files import check_writable, private_mode, write_atomically
from fmcnet.inference.encoder import Encoder, keep, load
from fmcnet.inference.image_input import list_images
from fmcnet.inference.projection import l2_normalize
from fmcnet.models.card import ModelCard
from fmcnet.types import Embeddings, parse_modality

if TYPE_CHECKING:
    from fmcnet.distributed import DistributedContext

logger = logging.getLogger(__name__)


def embed_shared(
    encoder: Encoder,
    table: Table,
    ctx: DistributedContext,
    *,
    batch_size: int = 64,
    flip: bool = False,
    store: Path | None = None,
    progress: bool | None = None,
) -> Embeddings | None:
    """`Encoder.embed_table` by all processes of a job; every process calls.

    Process r embeds rows r, r + world, r + 2 world... and rank 0 puts them together in the table's order. Shares may
    differ by one image: none is padded and none repeated, so nothing counts twice.

    Returns:
        On rank 0 what one process would give (up to rounding, as batches differ), elsewhere None.
    """
    from fmcnet.distributed import gather  # needs PyTorch, which embed_files does not

    if ctx.world < 2:
        return encoder.embed_table(table, batch_size=batch_size, flip=flip, store=store, progress=progress)
    encoder.cached_images(table, progress)  # one file for all shares
    rows = np.arange(ctx.rank, len(table), ctx.world)
    show = progress if ctx.main else False
    features = encoder.embed_rows(table, rows, batch_size=batch_size, flip=flip, progress=show)
    shares = gather(features, ctx)
    if not ctx.main:
        return None
    merged = np.empty((len(table), shares[0].shape[1]), dtype=np.float32)
    for rank, share in enumerate(shares):
        merged[rank :: ctx.world] = share
    return keep(merged, table, encoder.kept_at(table, flip, store))


def embed_dataset(
    run: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    split: str = "test",
    batch: int = 64,
    normalize: bool = True,
    device: str = "auto",
) -> tuple[int, int]:
    """Embed a dataset's images of `split` ("train", "val", "test" or "all") and write `Embeddings` to an `.npz`.

    A CSV without splits that the model was not trained on is all test. `fmcnet score` reads the file. `batch`,
    `normalize` and `device` are as of `Encoder.encode`.

    Returns:
        (N, E).

    Raises:
        DataError: for a split without images, or an image that cannot be read.
    """
    out = _prepare_output(out)
    if split not in (*SPLITS, "all"):
        raise DataError(f"--split {split}: say all, {', '.join(SPLITS)}")
    encoder = load(run, device)
    table = encoder.read_dataset(data, all_splits=True)
    if split == "test":
        table = all_as_test(table, data, encoder.card)
    for note in table.notes:
        if split != "all" and note.startswith(HELD_OUT):
            logger.warning("%s", note)
    rows = table if split == "all" else table.of_split(split, data)
    if (rows.role != "").any():
        text = "%s: %s does not keep the column role: score takes every image as query and gallery, unlike evaluate"
        logger.warning(text, data, out)
    trained_on = len(seen_identities(encoder.card.seen_samples, rows))
    if trained_on:
        text = "%s holds %d identities that %s, or the model that it started from, was trained on"
        logger.warning(text, out, trained_on, run)
    embeddings = encoder.embed_table(rows, batch_size=batch)
    if normalize:
        embeddings = replace(embeddings, features=l2_normalize(embeddings.features))
    dataset = rows.name if rows.name in BENCHMARKS else "csv"
    write_atomically(out, lambda path: embeddings.save(path, dataset, trained_on), private_mode(out.parent))
    return embeddings.features.shape


def all_as_test(table: Table, data: str | Path, card: ModelCard) -> Table:
    """The table; a CSV without splits with all rows as test rows, unless the model was trained on some."""
    if not any(note.startswith(HELD_OUT) for note in table.notes) or card.data == fingerprint(table):
        return table
    if len(seen_identities(card.seen_samples, table)) > FEW_SEEN * len(np.unique(table.pid)):
        return table  # it has grown since
    all_rows = read_dataset(data, layout="csv", training=False)
    reason = "as the model was not trained on this file"
    if not card.samples:  # shipped, or of 0.1.0
        reason = (
            "and the model does not record what it was trained on: if on some of them, add a column split"
        )
    notes = (
        *(note for note in all_rows.notes if not note.startswith(HELD_OUT)),
        f"{HELD_OUT}: all images are for test, {reason}",
    )
    return replace(all_rows, split=np.full(len(all_rows), "test"), notes=notes)


def _prepare_output(out: str | Path) -> Path:
    """The file to write, its folder made."""
    out = Path(out)
    if out.is_dir() or out.suffix != ".npz":
        raise DataError(f"--out {out}: give the name of an .npz file")
    check_writable(out, "say --out FILE.npz")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def embed_files(
    run: str | Path,
    sources: Sequence[str | Path],
    modality: str,
    out: str | Path,
    *,
    batch: int = 64,
    normalize: bool = True,
    skip: bool = False,
    device: str = "auto",
    value_range: ValueRange | None = None,
    remarks: Remarks | None = None,
    ignored: list[Ignored] | None = None,
) -> tuple[int, int]:
    """Embed images and folders of one modality and write `Embeddings` to an `.npz`; identity and camera are -1.

    Args as of `Encoder.encode`, and:
        skip: leave out what cannot be read.
        ignored: gets the files of the folders that are no images.

    Returns:
        (N, E).

    Raises:
        DataError: listing every image that cannot be read (nothing is written then), unless `skip` leaves them out.
    """
    out = _prepare_output(out)
    image_modality = parse_modality(modality)
    encoder = load(run, device)
    paths = list_images(sources, ignored)
    try:
        embeddings = encoder.encode(
            paths,
            image_modality,
            batch_size=batch,
            normalize=normalize,
            on_error="skip" if skip else "raise",
            value_range=value_range,
            remarks=remarks,
        )
    except DataError as error:
        raise error if skip else DataError(f"{error}\n--on-error skip leaves them out") from error
    write_atomically(out, embeddings.save, private_mode(out.parent))
    return embeddings.features.shape[0], embeddings.features.shape[1]
