"""Images to embeddings."""

from fmcnet.inference.shipped import shipped_models

__all__ = ["shipped_models"]
