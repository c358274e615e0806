"""Experiments: the demo, the studies of the paper's tables, evaluation of runs, comparison with published figures."""
