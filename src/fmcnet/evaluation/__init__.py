"""Evaluation: protocols as data, one ranking for all of them, and what may be shown beside the plain figures."""
