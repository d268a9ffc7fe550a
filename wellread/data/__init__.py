"""Corpora: from rows of text to memory-mapped, sealed, hashed samples."""
