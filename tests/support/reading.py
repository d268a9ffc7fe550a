"""The finished run of the fixture `tiny_run`, and the output of `read` on it."""

from __future__ import annotations

from collections.abc import Callable

STEPS, BATCH = 12, 16
"""Steps and batch size of `tiny_run`."""
Ask = Callable[..., str]
"""Type of the fixture `ask`."""


def value(printed: str, name: str) -> str:
    """The value after a name at the start of a line."""
    return next(line[len(name) :].strip() for line in printed.splitlines() if line.startswith(f"{name}  "))
