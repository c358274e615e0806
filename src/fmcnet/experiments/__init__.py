"""Jobs made of several runs: the demo, evaluation of runs, comparisons with published figures."""
