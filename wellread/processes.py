"""This process: its PATH, its imports, and its end together with its parent."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def own_path() -> str:
    """PATH with this interpreter's folder first: torch takes the first ninja, and two versions undo their builds."""
    folders = [str(Path(sys.executable).parent), *os.environ.get("PATH", os.defpath).split(os.pathsep)]
    return os.pathsep.join(dict.fromkeys(folders))


@contextmanager
def importing() -> Iterator[None]:
    """Import large libraries with the garbage collector at rest.

    What modules are made of stays: looking through it, again and again while it grows, takes half a second of
    transformers' two, and every full collection afterwards a fifth of a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def die_with(parent: int) -> None:
    """Ask the kernel to end this process when its parent dies, whatever kills it."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes
    import signal

    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the request was made
        sys.exit(1)
