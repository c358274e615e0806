"""Which backend keeps a gallery: by its location."""

from __future__ import annotations

from pathlib import Path

from fmcnet.errors import GalleryError
from fmcnet.retrieval.records import Dtype, IndexChoice
from fmcnet.retrieval.store import Store


def open_store(
    location: str | Path,
    *,
    read_only: bool,
    create: bool,
    timeout: float,
    index: IndexChoice | None,
    hnsw_above: int | None,
    dtype: Dtype,
    flush_rows: int,
) -> Store:
    """The store at a location; arguments and errors as of `Gallery`."""
    if index not in (None, "auto", "exact", "hnsw"):
        raise GalleryError(f"index is 'auto', 'exact' or 'hnsw', not {index!r}")
    if dtype not in ("float32", "float16"):
        raise GalleryError(f"dtype is 'float32' or 'float16', not {dtype!r}")
    if not timeout >= 0 or flush_rows < 1 or (hnsw_above is not None and hnsw_above < 0):
        raise GalleryError(
            f"timeout={timeout} and hnsw_above={hnsw_above} must not be negative, flush_rows={flush_rows} at least 1"
        )
    if str(location).startswith("milvus://"):
        from fmcnet.retrieval.milvus.store import MilvusStore

        return MilvusStore(
            str(location), read_only=read_only, create=create, timeout=timeout, index=index, dtype=dtype
        )
    if "://" in str(location):
        raise GalleryError(f"{location}: a gallery is a folder, or milvus://host:port/name")
    from fmcnet.retrieval.embedded.store import EmbeddedStore

    return EmbeddedStore(
        Path(location),
        read_only=read_only,
        create=create,
        timeout=timeout,
        index=index,
        hnsw_above=hnsw_above,
        dtype=dtype,
        flush_rows=flush_rows,
    )
