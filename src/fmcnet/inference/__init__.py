"""Images to embeddings.

Names are imported on first use, so that the command line explains itself without NumPy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmcnet.models.shipped import shipped_models

__all__ = ["shipped_models"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fmcnet.inference' has no attribute '{name}'")
    from fmcnet.models.shipped import shipped_models

    return shipped_models
