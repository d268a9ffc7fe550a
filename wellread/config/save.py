"""Where a run lies, and which checkpoints it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wellread.config import check
from wellread.errors import UserError

SaveSchedule = Literal["linear", "log"]
Resume = Literal["auto", "never"]


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """Run directory and checkpoints."""

    out: str | None = None
    """Run directory (default: runs/MODEL-DATA)."""
    save_every: int | None = None
    """Steps between checkpoints (default: a round number that gives about eight)."""
    save_schedule: SaveSchedule = "linear"
    """linear, or log: steps 0, 1, 2, 4 ... 512, then every save_every."""
    keep_states: int = 2
    """Newest checkpoints that keep what resuming needs; the models of all are kept."""
    resume: Resume = "auto"
    """auto continues from the newest valid checkpoint; never refuses a run that has begun."""

    def __post_init__(self) -> None:
        check.not_empty(self, out="out")
        if self.out and not self.out.isprintable():
            raise UserError(f"--out {self.out!r}: holds a control character; choose a plain name")
        check.at_least_one(self, "save_every", "keep_states")


@dataclass(frozen=True, kw_only=True)
class EarlySaves(SaveConfig):
    """Checkpoints of a pretraining."""

    save_schedule: SaveSchedule = "log"
    """log (steps 0, 1, 2, 4 ... 512, then every save_every), or linear."""
