"""Section: the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.report.facts import Facts
from eval.section import Picture, Section

TEMPLATE = Path(__file__).with_name("corpus.html.j2")


def section(facts: Facts, before: Sequence[Section]) -> Section:
    """Counts of the corpus, and the lengths of its samples."""
    corpus = facts.corpus
    return Section(
        heading="The corpus",
        n=f"{corpus.n_trainable:,} trainable and {corpus.n - corpus.n_trainable:,} sealed samples.",
        help="Sealed documents are drawn at random, so both groups should have similar lengths.",
        template=TEMPLATE.read_text(encoding="utf-8"),
        values={"counts": {name.replace("_", " "): count for name, count in corpus.meta["counts"].items()}},
        pictures=[_lengths(facts)],
    )


def _lengths(facts: Facts) -> Picture:
    from wellread.plots.lengths import length_histogram

    corpus = facts.corpus
    lengths = corpus.lengths(np.arange(corpus.n))
    groups = {"trainable": lengths[: corpus.n_trainable], "sealed": lengths[corpus.n_trainable :]}
    figure = length_histogram({name: values for name, values in groups.items() if values.size})
    alt = f"Lengths of samples in tokens, {lengths.min():,} to {lengths.max():,}, median {int(np.median(lengths)):,}."
    return Picture("Lengths", figure, alt, "Tokens per sample; both groups should have similar distributions.")
