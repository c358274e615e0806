"""The generated benchmark: identities, cameras and spectra, a renderer, and writers of three public layouts."""

from fmcnet.data.readers.common import MANIFEST
from fmcnet.synthetic.generate import GeneratedSummary, generate

__all__ = ["MANIFEST", "GeneratedSummary", "generate"]
