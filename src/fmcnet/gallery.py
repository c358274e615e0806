"""The name that `fmcnet.retrieval` had in 0.1.0, kept for scripts that import from it."""

from __future__ import annotations

import warnings
from typing import Any

from fmcnet import retrieval

__all__ = retrieval.__all__


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    warnings.warn("fmcnet.gallery is now fmcnet.retrieval", DeprecationWarning, stacklevel=2)
    return getattr(retrieval, name)
