"""What a similarity means: probabilities and thresholds, learnt from a labelled table. No PyTorch."""
