"""Evaluation: protocols as data, one engine, and what may be shown beside the plain figures."""
