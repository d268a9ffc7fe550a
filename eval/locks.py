"""Locks of kept files: processes that want the same file wait for each other, and none drops what another has added."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wellread.files import open_unlinked

if TYPE_CHECKING:
    from pathlib import Path


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock of a kept file, NAME.lock next to it; what is read after this call stays until it is replaced.

    The kernel releases the lock when the process ends for any reason.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open_unlinked(file.with_suffix(".lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
