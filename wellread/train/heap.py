"""How the heap of a rank treats freed memory."""

from __future__ import annotations

import ctypes
import os
import sys

from wellread.planning.phases import HEAP_BLOCK

SET_BY_USERS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables with which users set the same."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of glibc's mallopt: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD."""
NEVER = -1


def keep_freed() -> bool:
    """Let glibc's malloc keep freed blocks below `HEAP_BLOCK`, and return larger ones at once.

    It would otherwise return the end of the heap after each micro-batch and take it again for the next one, and the
    kernel would clear all pages again: 3 to 5% of the CPU time (docs/memory.md). A plan counts these blocks as kept.
    Without glibc, or where the user has set the same, nothing changes.

    Returns
    -------
    bool
        Whether it was set.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in SET_BY_USERS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(MMAP_THRESHOLD, HEAP_BLOCK)) and bool(library.mallopt(TRIM_THRESHOLD, NEVER))
