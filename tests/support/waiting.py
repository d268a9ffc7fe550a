"""Waiting for events: generous limits, since a busy machine can be ten times slower."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

PATIENCE = 300.0
"""Seconds after which a wait fails. A test that waits for less fails on a busy machine."""

Value = TypeVar("Value")


def wait_until(
    holds: Callable[[], Value], what: str, process: subprocess.Popen[Any] | None = None, seconds: float = PATIENCE
) -> Value:
    """The first true value of `holds`. The test fails after `seconds`, or when `process` has ended before."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        if process is not None and process.poll() is not None and not holds():
            pytest.fail(f"exit code {process.returncode} before: {what}\n{output_of(process)}")
        if time.monotonic() > deadline:
            pytest.fail(f"timed out after {seconds:.0f} s: {what}")
        time.sleep(0.02)
    return value


def output_of(process: subprocess.Popen[Any]) -> str:
    """What an ended process has printed, as far as it was captured."""
    return "\n".join(str(text) for text in process.communicate() if text)
