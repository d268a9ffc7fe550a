"""The reading record: what every step has read; writing it, and queries on it."""
