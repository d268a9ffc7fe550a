"""Standard streams of a program: UTF-8 in any locale, present even if they were closed, with or without a reader."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

GONE = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO}
"""Errors of a write when nobody can read it: a closed pipe, a closed terminal."""


def set_up() -> None:
    """Write text as UTF-8 with escapes for what is not text; send a closed stream to /dev/null."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            _send_to_null(number)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape" if mode == "r" else "backslashreplace")


def outlive_reader() -> None:
    """Let this program continue when the reader of its output goes away, as in ``… | head``.

    For commands with a result that does not depend on who reads the output. Other commands end early instead.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            stream.flush()
            is_terminal, unbuffered = stream.isatty(), stream.write_through
            buffer = io.BufferedWriter(_Outliving(number, "w", closefd=False))
            # Each write goes to the reader at once: launchers and their ranks write to the same pipe.
            wrapper = io.TextIOWrapper(
                buffer, "utf-8", "backslashreplace", line_buffering=is_terminal or unbuffered or number == 2
            )
            setattr(sys, name, wrapper)


class _Outliving(io.FileIO):
    """A file that drops what is written after its reader has gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in GONE:
                raise
            _send_to_null(self.fileno())  # also for libraries and child processes, which write to the same descriptor
            return len(data)


def _send_to_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
