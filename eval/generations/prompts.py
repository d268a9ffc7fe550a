"""The prompts of a run: beginnings of sealed samples, the same ones at every checkpoint, and their batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wellread.errors import UserError

if TYPE_CHECKING:
    from eval.separation import Ints
    from wellread.corpus.read import Corpus
    from wellread.corpus.segments import Segments
    from wellread.run import RunDirectory

BATCH = 32
"""Prompts that are continued together."""


@dataclass(frozen=True)
class Prompt:
    """The beginning of a sealed sample, and its true continuation, as tokens."""

    id: int
    """Id of the sample; in a packed corpus, of the segment."""
    document: int
    tokens: list[int]
    reference: list[int]


@dataclass(frozen=True)
class Batch:
    """Prompts that are continued in one call, with one seed."""

    number: int
    prompts: Sequence[Prompt]
    new_tokens: int
    """Maximum number of new tokens: fewer than asked for where the model has no more positions."""


def samples_of(run: RunDirectory) -> tuple[Corpus | Segments, Ints]:
    """Samples of a run, or segments of a packed corpus; and the document of each, int64[n]."""
    from wellread.corpus.read import Corpus
    from wellread.corpus.segments import Segments

    corpus = Corpus.open(run.corpus)
    if corpus.packed:
        segments = Segments(corpus)
        return segments, segments.table.column("document").to_numpy()
    return corpus, corpus.samples().column("document").to_numpy()


def draw(samples: Corpus | Segments, count: int, seed: int) -> Ints:
    """At most `count` ids of sealed samples, drawn by `seed`, ascending."""
    sealed = np.arange(samples.n_trainable, samples.n)
    return np.sort(np.random.default_rng(seed).permutation(sealed)[:count])


def prompts_of(samples: Corpus | Segments, documents: Ints, ids: Ints) -> list[Prompt]:
    """Prompts cut from samples."""
    from wellread.corpus.prompts import prompt_and_reference

    return [Prompt(int(i), int(documents[i]), *prompt_and_reference(samples, int(i))) for i in ids]


def batches(prompts: Sequence[Prompt], new_tokens: int, positions: int | None) -> Iterator[Batch]:
    """Group prompts into batches of at most `BATCH`, of similar length; in each, all may have equally many new tokens.

    Parameters
    ----------
    positions
        Most tokens that the model can read. Fewer than `new_tokens` are written where they would not fit.

    Raises
    ------
    UserError
        When a prompt leaves no position for a new token.
    """
    groups: dict[int, list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda prompt: (len(prompt.tokens), prompt.id)):
        allowed = new_tokens if positions is None else min(new_tokens, positions - len(prompt.tokens))
        if allowed < 1:
            raise UserError(
                f"prompt of sample {prompt.id}: {len(prompt.tokens):,} tokens, but the model has only {positions:,} "
                "positions; train with a smaller --seq_len, so that prompts are shorter"
            )
        groups.setdefault(allowed, []).append(prompt)
    parts = [
        (count, group[start : start + BATCH])
        for count, group in groups.items()
        for start in range(0, len(group), BATCH)
    ]
    yield from (Batch(number, part, count) for number, (count, part) in enumerate(parts))


def digest(prompts: Sequence[Prompt]) -> str:
    """Hex hash of prompts, with their ids."""
    content: Any = [[prompt.id, prompt.tokens] for prompt in prompts]
    return hashlib.sha256(repr(content).encode()).hexdigest()
