"""Clear words for a missing optional package."""

from __future__ import annotations

import importlib
from types import ModuleType

from fmcnet.errors import MissingDependencyError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingDependencyError: naming the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"this needs {module.split('.')[0]}, which is not installed: pip install 'fmcnet[{extra}]'"
        ) from error
