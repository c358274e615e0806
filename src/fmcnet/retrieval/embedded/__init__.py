"""The gallery on one machine: SQLite is the record of truth, FAISS the index derived from it."""
