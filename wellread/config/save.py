"""Where a run is stored, and which checkpoints it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from wellread.config import check
from wellread.config.flat import unit
from wellread.errors import UserError

SaveSchedule = Literal["linear", "log"]
Resume = Literal["auto", "never"]


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """Run directory and checkpoints."""

    out: str | None = None
    """Run directory (default: runs/MODEL-DATA)."""
    save_every: int | None = None
    """Steps between checkpoints (default: a round number that gives about eight checkpoints)."""
    save_schedule: SaveSchedule = "linear"
    """linear (every save_every steps), or log (steps 0, 1, 2, 4 ... 512, then every save_every steps)."""
    keep_states: int = field(default=2, metadata=unit("checkpoints"))
    """Number of newest checkpoints that keep their state for resuming; all checkpoints keep their model."""
    resume: Resume = "auto"
    """auto resumes from the newest valid checkpoint; never refuses a run directory in which a run has begun."""

    def __post_init__(self) -> None:
        check.not_empty(self, out="out")
        if self.out and not self.out.isprintable():
            raise UserError(f"--out {self.out!r}: contains a character that cannot be seen; choose another name")
        check.at_least_one(self, "save_every", "keep_states")


@dataclass(frozen=True, kw_only=True)
class EarlySaves(SaveConfig):
    """Run directory and checkpoints."""

    save_schedule: SaveSchedule = "log"
    """log (steps 0, 1, 2, 4 ... 512, then every save_every steps), or linear (every save_every steps)."""
