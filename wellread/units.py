"""Sizes of memory and disk: everything on screen and in flags is in GiB."""

MIB = 2**20
"""Bytes of a MiB."""
GIB = 2**30
"""Bytes of a GiB."""
