"""The generated benchmark: identities, cameras and spectra, a renderer, and writers of three public layouts."""

from fmcnet.synthetic.generate import GeneratedSummary, generate

__all__ = ["GeneratedSummary", "generate"]
