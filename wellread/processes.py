"""Settings of this process: its PATH, faster imports, and ending together with its parent."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STORE = "WELLREAD_STORE"
"""Environment variable: the file through which the ranks of one node find each other; its folder has mode 0700."""

ATTEMPT_NUMBER = "WELLREAD_ATTEMPT"
"""Environment variable: number of the attempt of which a process is a rank."""

LAUNCHER = "WELLREAD_LAUNCHER"
"""Environment variable: process id of the launcher on the node of a rank, which ends with it."""

PARENT = "WELLREAD_PARENT"
"""Environment variable: process id of the program that started this one and with which it ends."""


def own_path() -> str:
    """PATH with this interpreter's folder first.

    torch runs the first ninja on PATH, and two versions of ninja rebuild each other's results.
    """
    folders = [str(Path(sys.executable).parent), *os.environ.get("PATH", os.defpath).split(os.pathsep)]
    return os.pathsep.join(dict.fromkeys(folders))


@contextmanager
def importing() -> Iterator[None]:
    """Import large libraries with the garbage collector disabled.

    Objects of modules are never freed. Scanning them repeatedly while they are created takes 0.5 s of the 2 s that
    importing transformers takes, and scanning them in each later full collection takes 0.2 s.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def starting() -> Iterator[None]:
    """Keep Ctrl-C from processes that are started here until they can end without a traceback (`wellread.starting`).

    Python itself cannot: it takes a while before it runs the first line of a program.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent() -> None:
    """End together with the program that started this one, if it asked for that; once, not in later children."""
    if parent := os.environ.pop(PARENT, None):
        die_with(int(parent))


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when the process `parent` ends for any reason."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    if os.getppid() != parent:  # the parent ended before the request
        sys.exit(1)
