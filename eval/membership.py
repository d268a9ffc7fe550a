"""Can a checkpoint's loss tell what it has read from what was sealed? Run with

    python -m eval membership runs/NAME

The record says what a checkpoint has read; nothing is guessed. A score is the mean log-likelihood over a sample's
target tokens, and a higher one means "more likely a member".
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from eval.separation import Floats, Ints, auc, cluster_bootstrap, codes_of, nonmembers_needed, permuted_auc, tpr_at_fpr
from wellread.errors import UserError

if TYPE_CHECKING:
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.read import Corpus
    from wellread.corpus.segments import Segments
    from wellread.results import Result
    from wellread.run import RunDirectory
    from wellread.scores import Scores

TASK = "membership/loss"
READ, UNREAD, SEALED, SHUFFLED = "read", "not yet read", "sealed", "shuffled"
ALPHAS = (0.1, 0.01)
"""False-positive rates at which a true-positive rate is stated."""


def evaluate(
    run: RunDirectory,
    *,
    steps: Sequence[int] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    max_samples: int = 2000,
    device: str | None = None,
    progress: bool = True,
) -> list[Result]:
    """Score samples under each checkpoint, compare the groups, and write `eval/membership.parquet`.

    At checkpoint step-N, samples read in batches 0 ... N-1 (`read`) and, as a control, those that the record reads
    only later (`not yet read`) are compared with the sealed holdout; `shuffled` is the AUC that chance gives.
    Of a packed corpus the segments are compared, each scored alone, so that it compares what it would without packing.
    Scores are kept in `eval/scores/step-N.parquet`: another call scores only what is missing or belongs to other
    weights.

    Parameters
    ----------
    steps
        Checkpoints to evaluate (default: all); the table then holds these alone.
    bootstrap
        Draws behind each interval, and shuffles behind the control.
    max_samples
        Largest number of samples scored per group; drawn by `seed`, the same at every checkpoint as far as possible.
    device
        Where the model runs (default: CUDA when there is one, else CPU).
    progress
        Whether to tell on stderr how far it is and what was left out.

    Raises
    ------
    UserError
        When the run has no sealed samples, no checkpoint, none at one of `steps`, or a record shorter than these;
        when `bootstrap` or `max_samples` is too small to say anything.
    """
    from wellread.results import Result, write

    if bootstrap < 100:
        raise UserError(f"--bootstrap {bootstrap}: too few for an interval; give at least 100")
    if max_samples < 2:
        raise UserError(f"--max_samples {max_samples}: nothing to compare; give at least 2")
    groups, chosen, model = Groups.of(run, max_samples, seed), _choose(run, steps), run.config().model
    results: list[Result] = []
    with Reporter(sum(groups.all(checkpoint.step).size for checkpoint in chosen), progress) as reporter:
        for note in groups.notes([checkpoint.step for checkpoint in chosen]):
            reporter.note(note)
        for checkpoint in chosen:
            scores = _score(run, groups, checkpoint, device, reporter)
            rows = _measure(groups, checkpoint.step, scores, bootstrap, seed, reporter)
            about = partial(
                Result, run=run.name, model=model, step=checkpoint.step, tokens=checkpoint.tokens, task=TASK
            )
            found = [about(**row) for row in rows]
            reporter.finish(checkpoint.step, found)
            results += found
    write(run.eval / "membership.parquet", results)
    return results


def keep_scores(
    run: RunDirectory,
    *,
    steps: Sequence[int] | None = None,
    seed: int = 0,
    max_samples: int = 2000,
    progress: bool = True,
) -> None:
    """Score samples under each checkpoint, and keep the scores: the part of `evaluate` that can be done in parallel."""
    groups, chosen = Groups.of(run, max_samples, seed), _choose(run, steps)
    with Reporter(sum(groups.all(checkpoint.step).size for checkpoint in chosen), progress) as reporter:
        for checkpoint in chosen:
            _score(run, groups, checkpoint, None, reporter)


def overview(results: Sequence[Result]) -> tuple[list[str], list[list[object]]]:
    """One row per checkpoint of what matters most, for the terminal: heads and rows; the tidy table has all of it."""
    cells = {(result.step, result.group, result.metric): result for result in results}

    def value(step: int, group: str, metric: str) -> float | None:
        found = cells.get((step, group, metric))
        return found.value if found else None

    def auc_of(step: int, group: str) -> str | None:
        found = cells.get((step, group, "auc"))
        return f"{found.value:.3f} [{found.ci_low:.3f}, {found.ci_high:.3f}]" if found else None

    heads = ["step", "AUC read", "AUC not yet read", "labels shuffled", "TPR at 10% FPR", "loss read", "loss sealed"]
    steps = sorted({result.step for result in results})
    rows: list[list[object]] = [
        [
            step,
            *(auc_of(step, group) for group in (READ, UNREAD, SHUFFLED)),
            value(step, READ, f"tpr_at_fpr_{ALPHAS[0]:g}"),
            value(step, READ, "mean_loss"),
            value(step, SEALED, "mean_loss"),
        ]
        for step in steps
    ]
    return heads, rows


@dataclass(frozen=True)
class Groups:
    """Which samples belong to which group at a step; of a packed corpus, its segments stand for samples."""

    corpus: Corpus | Segments
    documents: Ints
    """Document of each sample, int64[corpus.n]."""
    first_read: Ints
    """Batch in which each trainable sample is first read and learned from, int64[n_trainable]; `last` or more where it
    never is."""
    last: int
    """Step of the last checkpoint."""
    max_samples: int
    seed: int

    @classmethod
    def of(cls, run: RunDirectory, max_samples: int, seed: int) -> Groups:
        """Derive the groups of a run from its record."""
        from wellread.checkpoint import list_checkpoints
        from wellread.corpus.read import Corpus
        from wellread.corpus.segments import Segments
        from wellread.record.reader import Record

        corpus, checkpoints = Corpus.open(run.corpus), list_checkpoints(run.checkpoints)
        if corpus.n == corpus.n_trainable:
            raise UserError(
                f"{run.path}: no sealed samples to compare with; train a run with --holdout above 0 on more documents"
            )
        if not checkpoints:
            raise UserError(f"{run.path}: no checkpoint yet; let the run save one")
        record, last = Record.open(run.record), checkpoints[-1].step
        if record.batches < last:
            raise UserError(f"{run.record}: holds {record.batches} batches, step-{last} needs {last}; see eval verify")
        documents = corpus.samples().column("document").to_numpy()
        first_read = np.full(corpus.n_trainable, last, dtype=np.int64)
        table = record.table(columns=["batch_id", "sample_id", "skipped"], batches=(0, last))
        batch_id, sample_id, skipped = (table.column(name).to_numpy() for name in table.column_names)
        np.minimum.at(first_read, sample_id[~skipped], batch_id[~skipped])  # of a skipped batch nothing is learned
        if corpus.packed:
            segments = Segments(corpus)
            documents = segments.table.column("document").to_numpy()
            first_read = first_read[segments.sample_of(np.arange(segments.n_trainable))]
            return cls(segments, documents, first_read, last, max_samples, seed)
        return cls(corpus, documents, first_read, last, max_samples, seed)

    def at(self, step: int) -> dict[str, Ints]:
        """Drawn sample ids of each group at `step`, ascending. Copies of what was read are no unread controls."""
        n = self.corpus.n_trainable
        codes = codes_of(self.documents[:n])
        document_read = np.full(codes.max() + 1, self.last, dtype=np.int64)
        np.minimum.at(document_read, codes, self.first_read)
        return {
            READ: self._draw(np.flatnonzero(self.first_read < step)),
            UNREAD: self._draw(np.flatnonzero((self.first_read < self.last) & (document_read[codes] >= step))),
            SEALED: self._draw(np.arange(n, self.corpus.n)),
        }

    def all(self, step: int) -> Ints:
        """Sample ids of all groups at `step`, ascending."""
        return np.sort(np.concatenate(list(self.at(step).values())))

    def _draw(self, ids: Ints) -> Ints:
        """Those `max_samples` ids whose keyed hash is lowest: a uniform draw that barely moves as the group grows."""
        if ids.size <= self.max_samples:
            return ids
        keys = np.random.default_rng(self.seed).integers(2**63, size=self.corpus.n)[ids]
        return np.sort(ids[np.argpartition(keys, self.max_samples)[: self.max_samples]])

    def notes(self, steps: Sequence[int]) -> Iterator[str]:
        """What is left out at these steps, and why."""
        sealed = min(self.corpus.n - self.corpus.n_trainable, self.max_samples)
        sizes = [ids.size for step in steps for ids in self.at(step).values()]
        if self.max_samples in sizes:
            yield f"at most {self.max_samples:,} samples per group are scored, drawn with seed {self.seed}"
        for alpha in ALPHAS:
            needed = nonmembers_needed(alpha)
            if sealed < needed:
                yield f"no TPR at {alpha:.0%} FPR: it needs {needed:,} sealed samples, scored are {sealed:,}"


def scored_groups(run: RunDirectory, checkpoint: Checkpoint) -> dict[str, Floats]:
    """Scores by group, as kept by the last evaluation of `checkpoint`; empty when it kept none."""
    from wellread.scores import read_scores

    scores = read_scores(_scores_file(run, checkpoint), **_belongs_to(checkpoint))
    if scores is None:
        return {}
    scored = scores.at(scores.sample_id[scores.n_targets > 0])
    sides = Groups.of(run, sys.maxsize, 0).at(checkpoint.step)
    return {name: scored.at(np.intersect1d(ids, scored.sample_id)).mean for name, ids in sides.items()}


def _choose(run: RunDirectory, steps: Sequence[int] | None) -> list[Checkpoint]:
    from wellread.checkpoint import list_checkpoints

    checkpoints = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(run.checkpoints)}
    for step in steps or []:
        if step not in checkpoints:
            there = ", ".join(map(str, checkpoints))
            raise UserError(f"{run.path}: no checkpoint at step {step}; choose from {there}")
    return [checkpoints[step] for step in sorted(set(steps or checkpoints))]


def _scores_file(run: RunDirectory, checkpoint: Checkpoint) -> Path:
    return run.eval / "scores" / f"{checkpoint.path.name}.parquet"


def _belongs_to(checkpoint: Checkpoint) -> dict[str, str]:
    """What kept scores must carry to be this checkpoint's: the record's head, and the hash of its model's hashes."""
    weights = {name: of["sha256"] for name, of in checkpoint.manifest["files"].items() if name.startswith("model/")}
    return {
        "head": checkpoint.head,
        "checkpoint": hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest(),
    }


def _score(run: RunDirectory, groups: Groups, checkpoint: Checkpoint, device: str | None, reporter: Reporter) -> Scores:
    """Scores of all groups at `checkpoint`: those kept by an earlier call, and the missing ones, kept from now on."""
    from wellread.scores import Scores, read_scores, write_scores

    path, belongs_to, ids = _scores_file(run, checkpoint), _belongs_to(checkpoint), groups.all(checkpoint.step)
    scores = read_scores(path, **belongs_to) or Scores.empty()
    missing = np.setdiff1d(ids, scores.sample_id)
    reporter.move_to(start := reporter.done + ids.size - missing.size)
    if missing.size:
        new = _run_model(checkpoint, groups.corpus, missing, device, lambda done: reporter.move_to(start + done))
        scores = scores.merged(new)
    if missing.size or scores.sample_id.size > ids.size:  # what is kept is what was compared
        write_scores(path, scores.at(ids), **belongs_to)
    return scores.at(ids)


def _run_model(
    checkpoint: Checkpoint, corpus: Corpus | Segments, ids: Ints, device: str | None, progress: Callable[[int], None]
) -> Scores:
    from wellread.processes import importing

    with importing():
        import torch
        import transformers.modeling_utils  # noqa: F401 (what AutoModel imports later)

    from wellread.models.load import loaded
    from wellread.models.score import log_likelihoods
    from wellread.scores import Scores

    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with loaded(checkpoint.model, wanted) as (model, where):
        log_likelihood, n_targets = log_likelihoods(model, corpus, ids, progress=progress, device=where)
    return Scores(sample_id=ids, n_targets=n_targets, log_likelihood=log_likelihood)


def _measure(
    groups: Groups, step: int, scores: Scores, draws: int, seed: int, reporter: Reporter
) -> Iterator[dict[str, Any]]:
    """Yield the fields group, metric, value, stderr, ci_low, ci_high and n of each result at `step`."""
    sides = {}
    for name, ids in groups.at(step).items():
        drawn = scores.at(ids)
        has_target = drawn.n_targets > 0
        sides[name] = Side(drawn.mean[has_target], groups.documents[ids[has_target]])
    bad = sum(int((~np.isfinite(side.scores)).sum()) for side in sides.values())
    if bad:
        reporter.note(f"step {step:,}: {bad:,} of {scores.sample_id.size:,} scores are not finite; nothing is compared")
        return
    few = [f"{name} ({side.size})" for name, side in sides.items() if side.size == 1]
    if few:  # an empty group is no surprise: nothing is read at step 0, and nothing is left after an epoch
        reporter.note(f"step {step:,}: fewer than 2 samples in {', '.join(few)}; left out")
    sides = {name: side for name, side in sides.items() if side.size >= 2}
    for name, side in sides.items():
        yield {"group": name, "metric": "mean_loss", "n": side.size, **_mean_loss(side)}
    sealed = sides.pop(SEALED, None)
    if sealed is None or not sides:
        return
    for name, side in sides.items():
        yield from ({"group": name, "n": side.size, **row} for row in _compare(side, sealed, draws, seed))
    control = next(iter(sides.values()))  # read, or at step 0 not yet read
    chance = permuted_auc(*control.against(sealed), draws=draws, seed=seed)
    yield {"group": SHUFFLED, "metric": "auc", "value": float(chance.mean()), "n": control.size, **_spread(chance)}


def _compare(members: Side, sealed: Side, draws: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield metric, value and interval of AUC and of each TPR that the number of non-members allows."""
    sides = members.against(sealed)
    whole = min(np.unique(side.documents).size for side in (members, sealed)) > 1
    spread = _spread(cluster_bootstrap(*sides, draws=draws, seed=seed)) if whole else {}
    yield {"metric": "auc", "value": auc(members.scores, sealed.scores), **spread}
    for alpha in ALPHAS:
        rate = tpr_at_fpr(members.scores, sealed.scores, alpha)
        if rate is not None:
            spread = _spread(cluster_bootstrap(*sides, draws=draws, seed=seed, alpha=alpha)) if whole else {}
            yield {"metric": f"tpr_at_fpr_{alpha:g}", "value": rate, **spread}
    yield {"metric": "n_sealed", "value": float(sealed.size)}


def _spread(draws: Floats) -> dict[str, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"stderr": float(draws.std(ddof=1)), "ci_low": float(low), "ci_high": float(high)}


def _mean_loss(side: Side) -> dict[str, float]:
    """Mean over samples of the loss per target token, nats, with the error of a mean of clusters.

    The sandwich estimator of Liang & Zeger 1986 for an intercept alone, with the factor C / (C - 1).
    """
    mean = float(-side.scores.mean())
    residuals = np.bincount(codes_of(side.documents), weights=side.scores + mean)
    if residuals.size < 2:
        return {"value": mean}
    stderr = math.sqrt(float((residuals**2).sum()) * residuals.size / (residuals.size - 1)) / side.size
    return {"value": mean, "stderr": stderr, "ci_low": mean - 1.96 * stderr, "ci_high": mean + 1.96 * stderr}


@dataclass(frozen=True)
class Side:
    """The scores of one group, float64[n], and the document of each, int64[n]."""

    scores: Floats
    documents: Ints

    @property
    def size(self) -> int:
        """Number of samples."""
        return int(self.scores.size)

    def against(self, other: Side) -> tuple[Floats, Floats, Ints, Ints]:
        """Both sides as the statistics take them."""
        return self.scores, other.scores, self.documents, other.documents


class Reporter:
    """Tells on stderr how far the scoring is: one bar on a terminal, one line per checkpoint elsewhere."""

    def __init__(self, total: int, show: bool) -> None:
        self.done = 0
        self._show, self._bar = show, None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True))
            self._task = self._bar.add_task("scoring samples", total=total)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def move_to(self, done: int) -> None:
        """Note that `done` samples in all are scored."""
        self.done = done
        if self._bar:
            self._bar.update(self._task, completed=done)

    def note(self, text: str) -> None:
        """Say something that must not be missed."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self._show:
            print(text, file=sys.stderr, flush=True)

    def finish(self, step: int, results: Sequence[Result]) -> None:
        """Say what a checkpoint gave, where there is no bar."""
        if not self._bar:
            aucs = [f"{result.group} {result.value:.3f}" for result in results if result.metric == "auc"]
            self.note(f"step {step:,}: scored; AUC against sealed: {', '.join(aucs) or 'none'}")
