"""Losses: the paper's equations as functions, their weighted sum as a module, and the baselines' losses."""
