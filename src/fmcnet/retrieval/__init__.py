"""Retrieval: a gallery of embeddings, and the search in it.

Names are imported on first use, so that the command line explains itself without NumPy.
"""

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "KEEP": "inputs",
    "Added": "records",
    "Answer": "answer",
    "Entry": "records",
    "Gallery": "gallery",
    "GalleryInfo": "records",
    "GallerySettings": "records",
    "Hit": "records",
    "HitGroup": "records",
    "Searcher": "searcher",
    "Where": "records",
    "group": "records",
    "pool": "inputs",
}

__all__ = list(_PUBLIC)

if TYPE_CHECKING:  # "as" tells type checkers that a name is exported
    from fmcnet.retrieval.answer import Answer as Answer
    from fmcnet.retrieval.gallery import Gallery as Gallery
    from fmcnet.retrieval.inputs import KEEP as KEEP
    from fmcnet.retrieval.inputs import pool as pool
    from fmcnet.retrieval.records import Added as Added
    from fmcnet.retrieval.records import Entry as Entry
    from fmcnet.retrieval.records import GalleryInfo as GalleryInfo
    from fmcnet.retrieval.records import GallerySettings as GallerySettings
    from fmcnet.retrieval.records import Hit as Hit
    from fmcnet.retrieval.records import HitGroup as HitGroup
    from fmcnet.retrieval.records import Where as Where
    from fmcnet.retrieval.records import group as group
    from fmcnet.retrieval.searcher import Searcher as Searcher


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fmcnet.retrieval' has no attribute '{name}'")
    return getattr(importlib.import_module(f"fmcnet.retrieval.{_PUBLIC[name]}"), name)
