"""The generated benchmark: identities, cameras and spectra, a renderer, and writers of three public layouts."""

from fmcnet.data.generated.generate import GeneratedSummary, generate

__all__ = ["GeneratedSummary", "generate"]
