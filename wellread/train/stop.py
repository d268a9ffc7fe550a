"""Signals that ask a run to stop: it finishes the current step, saves and ends."""

from __future__ import annotations

import signal
import types

STOP_CODE = 128
"""A run that signal S stopped exits with 128 + S, as a shell reports it."""


class StopRequest:
    """Remembers a signal that asks this rank to stop; the ranks exchange it in the next step."""

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._remember)
        # A launcher may have blocked SIGUSR2 until this handler exists.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        self.signal = number


def stopped(step: int, number: int) -> str:
    """Last line of a run that signal `number` stopped at `step`."""
    return f"stopped by {signal.Signals(number).name} at step {step}, saved; run the same command to resume"
