"""Embedding a table by several processes, each its share, every image once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fmcnet.data.cache import ImageCache, cache_folder
from fmcnet.data.table import Table
from fmcnet.distributed import DistributedContext, gather
from fmcnet.inference.encoder import Encoder, keep
from fmcnet.types import Embeddings


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
        On rank 0 what one process would give (to rounding: batches are cut differently), elsewhere None.

    Raises:
        DataError: as `Encoder.embed_table`, or with fewer images than processes.
    """
    if ctx.world < 2:
        return encoder.embed_table(table, batch_size=batch_size, flip=flip, store=store, progress=progress)
    folder = cache_folder(encoder.card.config.data.cache, table.root)
    ImageCache(
        table, encoder.height, encoder.width, folder=folder, progress=progress
    )  # one file for all shares
    rows = np.arange(ctx.rank, len(table), ctx.world)
    shown = progress if ctx.main else False
    features = encoder.embed_rows(table, rows, batch_size=batch_size, flip=flip, progress=shown)
    shares = gather(features, ctx)
    if not ctx.main:
        return None
    whole = np.empty((len(table), shares[0].shape[1]), dtype=np.float32)
    for rank, share in enumerate(shares):
        whole[rank :: ctx.world] = share
    return keep(whole, table, encoder.kept_at(table, flip, store))
