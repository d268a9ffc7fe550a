"""Canaries: texts that are inserted in a registered draw, to measure what a model keeps of what it read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wellread.errors import UserError

Placement = Literal["uniform", "early", "late"]

RANDOM = "random"
CONTROLS = 999
TOKENS = 64
FEWEST_CONTROLS = 19
"""With fewer controls no p-value is below .05."""


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """Canaries, a registered draw of texts."""

    canaries: int = 0
    """Number of canaries for each dose in --canary_repeats; 0: none (docs/evaluation.md)."""
    canary_repeats: str = "1,4,16"
    """How often canaries are read, a dose each; 0 is allowed."""
    canary_controls: int | None = None
    """Number of random controls, which are never read (default: 999; with a file, half of its rows)."""
    canary_at: Placement = "uniform"
    """Batches that read canaries: uniform over the run, in its first third (early), or in its last third (late)."""
    canary_tokens: int | None = None
    """Tokens of a random canary (default: 64)."""
    canary_text: str = RANDOM
    """What canaries are: random (tokens of the vocabulary), or FILE.jsonl with a text per row, of which a random half
    are the controls."""

    def __post_init__(self) -> None:
        if self.canaries < 0:
            raise UserError(f"--canaries {self.canaries}: must be at least 0")
        if self.canaries:
            _ = self.doses
        if self.canary_text == "":
            raise UserError("--canary_text: is empty; leave it out for random tokens")
        for flag, value in (("canary_controls", self.canary_controls), ("canary_tokens", self.canary_tokens)):
            if self.canary_text != RANDOM and value is not None:
                raise UserError(f"--{flag} {value}: is for random canaries; leave it out with a file of texts")
        if self.canary_controls is not None and self.canary_controls < FEWEST_CONTROLS:
            raise UserError(
                f"--canary_controls {self.canary_controls}: no p-value would be below .05; "
                f"choose at least {FEWEST_CONTROLS}"
            )
        if self.canary_tokens is not None and self.canary_tokens < 4:
            raise UserError(f"--canary_tokens {self.canary_tokens}: choose at least 4")

    @property
    def doses(self) -> tuple[int, ...]:
        """Numbers of readings, ascending.

        Raises
        ------
        UserError
            When ``--canary_repeats`` is not a list of different numbers.
        """
        words = [word.strip() for word in self.canary_repeats.split(",")]
        if not all(word.isdecimal() and word.isascii() and int(word) < 2**31 for word in words):
            raise UserError(f"--canary_repeats {self.canary_repeats}: expected numbers of readings, e.g. 1,4,16")
        numbers = sorted(map(int, words))
        if len({*numbers}) < len(numbers):
            raise UserError(f"--canary_repeats {self.canary_repeats}: a number appears twice; remove one")
        return tuple(numbers)

    @property
    def tokens(self) -> int:
        """Tokens of a random canary."""
        return self.canary_tokens or TOKENS

    @property
    def controls(self) -> int:
        """Number of random controls."""
        return self.canary_controls or CONTROLS
