"""Reading whole files: never a device without end, a pipe without a writer, or more than memory can have."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

MOST = 2 << 30
"""Most bytes of a file that is read as a whole; those of this program and of models have a few megabytes."""
SECONDS = 2.0
"""How long a pipe may have no writer."""
AT_ONCE = 1 << 20
"""Bytes that are read at once: Python reserves as much memory as it is asked to read."""
BLOCK = 1 << 16
"""Bytes that are read from a pipe to find out whether it has a writer."""


def read_whole(path: str | Path) -> bytes:
    """Content of a file, or of a pipe that somebody writes to, e.g. ``<(command)`` of a shell.

    Raises
    ------
    OSError
        When it does not exist, may not be read, or is a folder, a device, a pipe without a writer, or larger than
        `MOST`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(kind):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with open(descriptor, "rb") as file:
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
            raise OSError(errno.ENODEV, "is a device, not a file; name a file", str(path))
        start = _start(descriptor, path) if stat.S_ISFIFO(kind) else b""
        if os.fstat(descriptor).st_size <= MOST:  # 0 of a pipe
            blocks, n_bytes = [start], len(start)
            while n_bytes <= MOST and (block := file.read(AT_ONCE)):
                blocks.append(block)
                n_bytes += len(block)
            if n_bytes <= MOST:
                return b"".join(blocks)
    raise OSError(errno.EFBIG, f"is larger than {MOST >> 30} GiB; name another file", str(path))


def unusable(path: Path) -> str:
    """Why something at a path is not a file, in one phrase; empty if it is one, or if nothing is there."""
    if path.is_file() or not os.path.lexists(path):
        return ""
    if path.is_symlink() and not path.exists():
        return "is a link to a file that does not exist; restore the file, or remove the link"
    return f"is {'a folder' if path.is_dir() else 'a pipe or a device'}, not a file; remove it"


def _start(descriptor: int, path: str | Path) -> bytes:
    """First bytes of a pipe that does not block; afterwards it blocks."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            start = os.read(descriptor, BLOCK)
        except BlockingIOError:  # it has a writer, who has not written yet
            start = b""
            break
        if start:
            break
        if time.monotonic() > end:
            raise OSError(errno.ENXIO, "is a pipe that nobody writes to; name a file", str(path))
        time.sleep(0.01)
    os.set_blocking(descriptor, True)
    return start
