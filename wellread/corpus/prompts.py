"""Prompts for generation, cut from samples, and the true continuation of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wellread.corpus.read import Corpus
    from wellread.corpus.segments import Segments


def prompt_and_reference(corpus: Corpus | Segments, sample_id: int) -> tuple[list[int], list[int]]:
    """Tokens of a sample before its first response, and tokens of that response.

    If all tokens are targets, as in raw text, the two halves of the sample.
    """
    tokens, targets = corpus.tokens(sample_id), corpus.targets(sample_id)
    start = int(targets.argmax())
    if start <= 1:
        half = max(1, len(tokens) // 2)
        return tokens[:half].tolist(), tokens[half:].tolist()
    from_start = targets[start:]
    stop = start + (len(from_start) if from_start.all() else int(from_start.argmin()))
    return tokens[:start].tolist(), tokens[start:stop].tolist()
