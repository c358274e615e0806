"""Retrieval: a gallery of embeddings, and the search in it.

Names are imported on first use, so that the command line explains itself without NumPy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmcnet.retrieval.answer import Answer
    from fmcnet.retrieval.gallery import Gallery
    from fmcnet.retrieval.inputs import KEEP
    from fmcnet.retrieval.ranking import group, pool
    from fmcnet.retrieval.records import Added, Entry, GalleryInfo, GallerySettings, Hit, HitGroup, Where
    from fmcnet.retrieval.searcher import Searcher

_PUBLIC = {
    "KEEP": "inputs",
    "Added": "records",
    "Answer": "answer",
    "Entry": "records",
    "Gallery": "gallery",
    "GalleryInfo": "records",
    "Hit": "records",
    "HitGroup": "records",
    "Searcher": "searcher",
    "GallerySettings": "records",
    "Where": "records",
    "group": "ranking",
    "pool": "ranking",
}

__all__ = [
    "KEEP",
    "Added",
    "Answer",
    "Entry",
    "Gallery",
    "GalleryInfo",
    "GallerySettings",
    "Hit",
    "HitGroup",
    "Searcher",
    "Where",
    "group",
    "pool",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fmcnet.retrieval' has no attribute '{name}'")
    return getattr(importlib.import_module(f"fmcnet.retrieval.{_PUBLIC[name]}"), name)
