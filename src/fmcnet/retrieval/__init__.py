"""Retrieval: a gallery of embeddings, and the search in it.

    a search:    searcher -> gallery -> sqlite_store -> faiss_index (candidates), sqlite_database (entries)
                 -> similarity (hits) -> answer
    a filter:    records (Where) -> entry_columns
    an indexing: sources -> indexing -> searcher -> gallery -> sqlite_store -> sqlite_database, gallery_index (files)

`milvus_store` stands in the place of `sqlite_store` for a cluster. Names are imported on first use, so that the
command line explains itself without NumPy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmcnet.retrieval.answer import Answer
    from fmcnet.retrieval.gallery import Gallery
    from fmcnet.retrieval.inputs import KEEP
    from fmcnet.retrieval.records import (
        Added,
        Entry,
        GalleryInfo,
        GallerySettings,
        Hit,
        HitGroup,
        Where,
    )
    from fmcnet.retrieval.searcher import Searcher
    from fmcnet.retrieval.similarity import group, pool

__all__ = [
    "KEEP", "Added", "Answer", "Entry", "Gallery", "GalleryInfo", "GallerySettings", "Hit", "HitGroup", "Searcher",
    "Where", "group", "pool",
]  # fmt: skip
_MODULES = {
    "KEEP": "inputs", "pool": "similarity", "group": "similarity", "Answer": "answer", "Gallery": "gallery",
    "Searcher": "searcher",
}  # fmt: skip
"""Where those names are that are not in records.py."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fmcnet.retrieval' has no attribute '{name}'")
    return getattr(importlib.import_module(f"fmcnet.retrieval.{_MODULES.get(name, 'records')}"), name)
