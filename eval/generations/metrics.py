"""Metrics of single texts: those of `wellread.data.text_metrics`, overlap with the true continuation, repetition."""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np

from eval.separation import Floats
from wellread.data import text_metrics

N_GRAM = 4
MOST = 256
"""Results that are kept: saturation and report ask for those of each checkpoint several times, and each time for those
of the same references."""


@lru_cache(MOST)
def measure(texts: tuple[str, ...]) -> MappingProxyType[str, Floats]:
    """Metrics of each text by itself: those of `text_metrics.NAMES`, and `repeated`; float64[n] each."""
    columns = text_metrics.measure(texts).astype(np.float64).T
    values = dict(zip(text_metrics.NAMES, columns, strict=True))
    return MappingProxyType(values | {"repeated": np.array([repeated(text) for text in texts])})


def repeated(text: str) -> float:
    """Share of the 4-grams of words that occurred before in the text; 0 for fewer than four words.

    Words are separated by spaces and line ends. As in Welleck et al. 2020, 1 - different 4-grams / 4-grams.
    """
    words = text.split()
    grams = [tuple(words[start : start + N_GRAM]) for start in range(len(words) - N_GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@lru_cache(MOST)
def overlap(texts: tuple[str, ...], references: tuple[str, ...]) -> MappingProxyType[str, Floats]:
    """BLEU and chrF of each text against its reference, 0 to 100, by sacrebleu; float64[n] each.

    BLEU of a single text uses only the lengths of n-grams that it has (effective order), as sacrebleu recommends.
    """
    scorers = _scorers(effective_order=True)
    pairs = list(zip(texts, references, strict=True))
    scores = {
        name: np.array([scorer.sentence_score(text, [reference]).score for text, reference in pairs])
        for name, scorer in scorers.items()
    }
    return MappingProxyType(scores)


@lru_cache(MOST)
def corpus_overlap(texts: tuple[str, ...], references: tuple[str, ...]) -> MappingProxyType[str, float]:
    """BLEU and chrF of all texts together, 0 to 100, by sacrebleu: `corpus_bleu` and `corpus_chrf`."""
    scorers = _scorers(effective_order=False)
    scores = {
        f"corpus_{name}": float(scorer.corpus_score(list(texts), [list(references)]).score)
        for name, scorer in scorers.items()
    }
    return MappingProxyType(scores)


def _scorers(*, effective_order: bool) -> dict[str, Any]:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return {"bleu": BLEU(effective_order=effective_order), "chrf": CHRF()}
