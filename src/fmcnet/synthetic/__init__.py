"""The generated benchmark: identities, cameras and spectra, a renderer, and writers of three public layouts."""

from fmcnet.synthetic.generate import MANIFEST, GeneratedSummary, generate

__all__ = ["MANIFEST", "GeneratedSummary", "generate"]
