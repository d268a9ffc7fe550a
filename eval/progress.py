"""Progress of an evaluation, on stderr."""

from __future__ import annotations

import sys
from typing import Self

from wellread.terminal import console, visible


class Reporter:
    """Shows the progress of scoring on stderr: a bar on a terminal, otherwise one line per checkpoint."""

    def __init__(self, total: int, show: bool) -> None:
        self.scored = 0
        self._show, self._bar = show, None
        if show and sys.stderr.isatty():
            from rich.progress import Progress

            self._bar = Progress(console=console(stderr=True))
            self._task = self._bar.add_task("scoring samples", total=total)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def move_to(self, scored: int) -> None:
        """Set the total number of samples scored so far."""
        self.scored = scored
        if self._bar:
            self._bar.update(self._task, completed=scored)

    def note(self, text: str) -> None:
        """Print a message that must not be missed."""
        if self._bar:
            self._bar.console.print(visible(text), markup=False, highlight=False)
        elif self._show:
            print(text, file=sys.stderr, flush=True)

    def finish(self, step: int, headline: str) -> None:
        """Print the headline of a checkpoint, if there is no bar."""
        if not self._bar:
            self.note(f"step {step:,}: scored; {headline}")
