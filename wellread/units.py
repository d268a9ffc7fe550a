"""Units of memory and disk; messages and flags use GiB."""

MIB = 2**20
"""Bytes of a MiB."""
GIB = 2**30
"""Bytes of a GiB."""
