"""Evaluation: protocols as data, one ranking for all of them, re-ranking, verification and external embeddings."""
