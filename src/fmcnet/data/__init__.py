"""Part of fmcnet."""
