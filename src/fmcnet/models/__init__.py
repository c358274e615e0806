"""Models: backbones, the modules of FMCNet, and a model on disk."""
