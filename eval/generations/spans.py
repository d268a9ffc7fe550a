"""The longest span of each text that a checkpoint has read, from the index of the corpus, where it exists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval.separation import Floats

if TYPE_CHECKING:
    from wellread.checkpoint import Checkpoint
    from wellread.record.trace import Tracer
    from wellread.run import RunDirectory

SHORTEST = 4
"""Tokens of the shortest span that counts."""


def tracer_of(run: RunDirectory, checkpoint: Checkpoint) -> Tracer | None:
    """Traces texts to what a checkpoint has read; None if the corpus has no index (``wellread index RUN``)."""
    from wellread.record.index import open_index
    from wellread.record.opened import Run
    from wellread.record.trace import Tracer

    opened = Run(run)
    index = open_index(opened.corpus)
    return None if index is None else Tracer.of(opened, checkpoint.step, index)


def longest_read(tracer: Tracer, texts: Sequence[Sequence[int]]) -> Floats:
    """Tokens of the longest span of each text that occurs in a sample that was read; 0 below `SHORTEST`; float64[n]."""
    matches = tracer.matches([np.array(text, dtype=np.int64) for text in texts], SHORTEST)
    return np.array([max((match.stop - match.first for match in spans), default=0) for spans in matches], np.float64)
