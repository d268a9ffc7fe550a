"""Metrics of single texts: those of `wellread.data.text_metrics`, overlap with the true continuation, repetition."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np

from eval.separation import Floats
from wellread.data import text_metrics

N_GRAM = 4
OVERLAP = ("bleu", "chrf")
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
    pairs = list(zip(texts, references, strict=True))
    each = [_scores((text,), _scorers((reference,), effective_order=True)) for text, reference in pairs]
    return MappingProxyType({name: np.array([scores[name] for scores in each]) for name in OVERLAP})


@lru_cache(MOST)
def corpus_overlap(texts: tuple[str, ...], references: tuple[str, ...]) -> MappingProxyType[str, float]:
    """BLEU and chrF of all texts together, 0 to 100, by sacrebleu: `corpus_bleu` and `corpus_chrf`."""
    scores = _scores(texts, _scorers(references, effective_order=False))
    return MappingProxyType({f"corpus_{name}": score for name, score in scores.items()})


def _scores(texts: tuple[str, ...], scorers: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(scorer.corpus_score(texts, None).score) for name, scorer in scorers.items()}


@lru_cache(4 * MOST)
def _scorers(references: tuple[str, ...], *, effective_order: bool) -> dict[str, Any]:
    """BLEU and chrF against these references; a scorer counts their n-grams once, not again at each checkpoint."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return {
        "bleu": BLEU(effective_order=effective_order, references=[references]),
        "chrf": CHRF(references=[references]),
    }
