"""The gallery: keep embeddings of person crops, search them, forget them."""

from fmcnet.gallery.changes import KEEP
from fmcnet.gallery.gallery import Gallery
from fmcnet.gallery.pooling import group, pool, pool_by
from fmcnet.gallery.records import Added, Entry, GalleryInfo, Group, Hit, Settings, Where

__all__ = [
    "KEEP",
    "Added",
    "Entry",
    "Gallery",
    "GalleryInfo",
    "Group",
    "Hit",
    "Settings",
    "Where",
    "group",
    "pool",
    "pool_by",
]
