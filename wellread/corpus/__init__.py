"""Corpora: tokenized samples, compiled once, immutable, and how their tokens become text again."""
