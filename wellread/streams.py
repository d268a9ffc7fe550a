"""Standard streams: UTF-8 in any locale, without characters that control or hide, even if closed or not read."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
from typing import Any, TextIO

from wellread.escapes import Own, joined, of_rich, prose, styled, visible

LONGEST_ERROR = 4000
"""Characters of an error that are printed; a file may have a name or value of any length."""
GONE = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO}
"""Errors of a write when nobody can read it: a closed pipe, a closed terminal."""


_replaced: list[TextIO] = []
"""Streams whose buffer a `Shown` uses: it would be closed with them."""


class Shown(io.TextIOWrapper):
    """A stream for people: what is written is made `visible`, except an `Own` text."""

    def write(self, text: str) -> int:
        """Write `text`; return its length."""
        super().write(visible(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)


class OfRich(io.TextIOBase):
    """What rich writes to: colors and moves of its bars stay, other control characters are escaped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return self._stream.encoding

    def write(self, text: str) -> int:
        """Write `text`; return its length."""
        self._stream.write(of_rich(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Descriptor of the stream."""
        return self._stream.fileno()


class Data(io.TextIOBase):
    """Standard output for data, e.g. tables for another program: unchanged unless it is a terminal."""

    def write(self, text: str) -> int:
        """Write `text`; return its length."""
        sys.stdout.write(prose(text) if sys.stdout.isatty() else Own(text))
        return len(text)

    def flush(self) -> None:
        """Flush standard output."""
        sys.stdout.flush()


def set_up() -> None:
    """Write UTF-8, with escapes for what is not text or controls a terminal; send a closed stream to /dev/null."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            _send_to_null(number)
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        if not _is_standard(name):
            continue
        if mode == "r":
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
        elif not isinstance(stream, Shown):
            _replace(name, stream.buffer, stream.line_buffering, stream.write_through)


def _is_standard(name: str) -> bool:
    """Whether the stream is the interpreter's or ours, and not one that a test has put in its place."""
    stream = getattr(sys, name)
    return isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__")


def _replace(name: str, buffer: Any, line_buffering: bool, write_through: bool = False) -> None:
    stream = getattr(sys, name)
    stream.flush()
    _replaced.append(stream)
    stream = Shown(buffer, "utf-8", "backslashreplace", line_buffering=line_buffering, write_through=write_through)
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def outlive_reader() -> None:
    """Let this program continue when the reader of its output goes away, as in ``… | head``.

    For commands with a result that does not depend on who reads the output. Other commands end early instead.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if _is_standard(name):
            stream = getattr(sys, name)
            buffer = io.BufferedWriter(_Outliving(number, "w", closefd=False))
            # Each write goes to the reader at once: launchers and their ranks write to the same pipe.
            _replace(name, buffer, stream.isatty() or stream.write_through or number == 2)


def print_error(message: str) -> None:
    """Print one line on stderr, red on a terminal; what cannot be seen in it, e.g. in a file name, is escaped."""
    label = styled("error:", *[31] * (sys.stderr.isatty() and "NO_COLOR" not in os.environ))
    half = LONGEST_ERROR // 2
    text = message if len(message) <= LONGEST_ERROR else f"{message[:half]} … {message[-half:]}"
    print(joined([label, text], " "), file=sys.stderr, flush=True)


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


def json_line(value: Any) -> str:
    """A value as one line of JSON, for other programs: numbers that are not finite become null.

    Raises
    ------
    TypeError, ValueError
        When JSON does not support the value.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
