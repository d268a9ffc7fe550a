"""What the spans of a text are compared with: sealed samples, and the loss of the checkpoint today."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eval.continuations import first_run
from eval.kept import refuse_damaged
from wellread.corpus.segments import Segments
from wellread.record.trace import Tracer, covered

if TYPE_CHECKING:
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.read import Corpus
    from wellread.run import RunDirectory

SAMPLES = 200
"""Sealed samples whose continuations are traced, drawn with seed 0."""


def sealed_coverage(tracer: Tracer, n_tokens: int, least: int) -> tuple[float, int] | None:
    """Share of tokens of true continuations of sealed samples that are in a span that was read.

    The continuation of a sample is its first run of target tokens, cut to `n_tokens`, the length of the traced text:
    what a model could have written, by somebody who did not copy from the trainable samples.

    Returns
    -------
    share, number of continuations
        None if no sealed sample has a continuation of `least` tokens.
    """
    units = Segments(tracer.corpus) if tracer.corpus.packed else tracer.corpus
    sealed = np.random.default_rng(0).permutation(np.arange(units.n_trainable, units.n))
    texts: list[NDArray[np.int64]] = []
    for unit in sealed.tolist():
        first, length = first_run(units.targets(unit))
        if length >= least:
            texts.append(units.tokens(unit)[first : first + min(length, n_tokens)].astype(np.int64))
        if len(texts) == SAMPLES:
            break
    if not texts:
        return None
    matches = tracer.matches(texts, least)
    inside = sum(covered(of, len(ids)) for of, ids in zip(matches, texts, strict=True))
    return inside / sum(map(len, texts)), len(texts)


def losses_now(
    run: RunDirectory, checkpoint: Checkpoint, corpus: Corpus, sample_ids: NDArray[np.int64]
) -> dict[int, float]:
    """Loss of each sample under the model of a checkpoint: mean over its target tokens, as in the record.

    Raises
    ------
    UserError
        When a file of the checkpoint is missing, altered or not listed.
    """
    refuse_damaged(run, checkpoint)
    if not len(sample_ids):
        return {}

    from wellread.models.load import loaded
    from wellread.models.score import log_likelihoods

    with loaded(checkpoint.model) as (model, where):
        total, n_targets = log_likelihoods(model, corpus, sample_ids, device=where)
    return dict(zip(sample_ids.tolist(), (-total / n_targets).tolist(), strict=True))
