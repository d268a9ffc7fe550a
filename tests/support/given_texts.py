"""Samples of given tokens, without a corpus."""

from __future__ import annotations

from typing import Any

import numpy as np


class Texts:
    """Samples of given tokens, of which all but the first are targets."""

    longest = 64

    def __init__(self, sequences: list[list[int]]) -> None:
        self.sequences = [np.array(sequence) for sequence in sequences]

    def tokens(self, i: int) -> Any:
        return self.sequences[i]

    def targets(self, i: int) -> Any:
        return np.arange(len(self.sequences[i])) > 0

    def starts(self, i: int) -> Any:
        return np.zeros(1, dtype=np.int64)

    def lengths(self, ids: Any) -> Any:
        return np.array([len(self.sequences[i]) for i in ids])
