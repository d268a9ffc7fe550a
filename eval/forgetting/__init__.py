"""Forgetting: what reading a sample changed, and how much of it is left at a later checkpoint."""
