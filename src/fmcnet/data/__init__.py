"""Datasets as tables: readers, checks, image decoding and cache, augmentation, batches for training."""
