import numpy as np

from fmcnet.inference.fit_calibration import BINS, bins_of


def count(similarity):
    """(BINS,) how many similarities fall into each bin."""
    return np.bincount(bins_of(similarity).ravel(), minlength=BINS)
