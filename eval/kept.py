"""Scores of samples at a checkpoint, kept in `eval/scores/step-N.parquet` so that each is computed only once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.separation import Ints

if TYPE_CHECKING:
    from eval.progress import Reporter
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.read import Corpus
    from wellread.corpus.segments import Segments
    from wellread.run import RunDirectory
    from wellread.scores import Scores


def kept_scores(run: RunDirectory, checkpoint: Checkpoint) -> Scores | None:
    """Scores of `checkpoint` that the last call of `scores_of` kept; None when there are none for these weights."""
    from wellread.scores import read_scores

    return read_scores(_file(run, checkpoint), **_belongs_to(checkpoint))


def scores_of(
    run: RunDirectory,
    checkpoint: Checkpoint,
    corpus: Corpus | Segments,
    ids: Ints,
    reporter: Reporter,
    device: str | None = None,
    verify: bool = False,
) -> Scores:
    """Scores of samples at `checkpoint`: load the kept ones, and compute and keep the missing ones.

    Afterwards the file contains exactly these samples.

    Parameters
    ----------
    ids
        Samples of `corpus`, int64[n], ascending.
    device
        Where the model runs (default: CUDA if there is a GPU, otherwise the CPU).
    verify
        Whether to hash the model's files again although they have not changed since the last time.

    Raises
    ------
    UserError
        When the checkpoint has a file that its manifest does not list, or one that is missing or altered.
    """
    from wellread.scores import Scores, write_scores

    scores = kept_scores(run, checkpoint) or Scores.empty()
    missing = np.setdiff1d(ids, scores.sample_id)
    reporter.move_to(start := reporter.scored + ids.size - missing.size)
    if missing.size or verify:
        checkpoint.refuse_damaged(run.eval / "hashes" / f"{checkpoint.path.name}.json", verify)
    if missing.size:
        new = _run_model(checkpoint, corpus, missing, device, lambda n_scored: reporter.move_to(start + n_scored))
        scores = scores.merged(new)
    if missing.size or scores.sample_id.size > ids.size:
        write_scores(_file(run, checkpoint), scores.at(ids), **_belongs_to(checkpoint))
    return scores.at(ids)


def _file(run: RunDirectory, checkpoint: Checkpoint) -> Path:
    return run.eval / "scores" / f"{checkpoint.path.name}.parquet"


def _belongs_to(checkpoint: Checkpoint) -> dict[str, str]:
    """Metadata that binds scores to this checkpoint: head of the record, and hash over the hashes of its model."""
    weights = {name: of["sha256"] for name, of in checkpoint.manifest["files"].items() if name.startswith("model/")}
    return {
        "head": checkpoint.head,
        "checkpoint": hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest(),
    }


def _run_model(
    checkpoint: Checkpoint, corpus: Corpus | Segments, ids: Ints, device: str | None, progress: Callable[[int], None]
) -> Scores:
    from wellread.processes import importing

    with importing():
        import torch
        import transformers.modeling_utils  # noqa: F401 (AutoModel imports it later)

    from wellread.models.load import loaded
    from wellread.models.score import log_likelihoods
    from wellread.scores import Scores

    device_name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with loaded(checkpoint.model, device_name) as (model, where):
        log_likelihood, n_targets = log_likelihoods(model, corpus, ids, progress=progress, device=where)
    return Scores(sample_id=ids, n_targets=n_targets, log_likelihood=log_likelihood)
