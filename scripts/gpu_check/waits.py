"""Count how often the host waits for the device during a step, and where."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = "synchronizing CUDA operation"
"""Part of the warning that torch gives for an operation that waits."""
DEPTH = 5
"""Frames of each stack that are listed."""


def counted(step: Callable[[], int]) -> tuple[int, list[str]]:
    """Run a step; return its result, and one stack per operation that waits.

    torch detects copies to the host, `item`, `nonzero` and the like. It does not detect explicit waits, such as
    `torch.cuda.synchronize` and waiting for an event. Without a GPU there are none.
    """
    import torch

    places: list[str] = []

    def note(message: Warning | str, *arguments: Any, **more: Any) -> None:
        if WORDS in str(message):
            places.append(stack())

    if not torch.cuda.is_available():
        return step(), places
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            return step(), places
        finally:
            torch.cuda.set_sync_debug_mode("default")


def stack() -> str:
    """The innermost frames outside this file, the innermost first: file:line function < …"""
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__ and "warnings" not in frame[0]]
    names = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
    return " < ".join(names[:DEPTH])
