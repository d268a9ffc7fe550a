"""How far an evaluation is, on stderr."""

from __future__ import annotations

import sys
from typing import Self


class Reporter:
    """Tells on stderr how far the scoring is: one bar on a terminal, one line per checkpoint elsewhere."""

    def __init__(self, total: int, show: bool) -> None:
        self.done = 0
        self._show, self._bar = show, None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True))
            self._task = self._bar.add_task("scoring samples", total=total)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def move_to(self, done: int) -> None:
        """Note that `done` samples in all are scored."""
        self.done = done
        if self._bar:
            self._bar.update(self._task, completed=done)

    def note(self, text: str) -> None:
        """Say something that must not be missed."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self._show:
            print(text, file=sys.stderr, flush=True)

    def finish(self, step: int, headline: str) -> None:
        """Say what a checkpoint gave, where there is no bar."""
        if not self._bar:
            self.note(f"step {step:,}: scored; {headline}")
