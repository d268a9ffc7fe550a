"""Corpora: tokenized samples, compiled once and immutable, and decoding of their tokens."""
