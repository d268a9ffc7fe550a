"""Can the loss of a checkpoint distinguish read samples from sealed ones? Run with

    wellread membership runs/NAME

What a checkpoint has read is known from the record. A score is the mean log-likelihood over a sample's
target tokens, and a higher one means "more likely a member".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from eval.evaluation import PerCheckpoint
from eval.groups import READ, SEALED, SHUFFLED, UNREAD, Groups
from eval.intervals import clustered_mean, spread
from eval.kept import scores_of
from eval.membership.section import section
from eval.needs import Need, a_checkpoint, a_whole_record
from eval.section import Section, with_interval
from eval.separation import ALPHAS, Floats, Ints, auc, cluster_bootstrap, nonmembers_needed, permuted_auc, tpr_at_fpr
from wellread.errors import UserError
from wellread.scores import Scores

if TYPE_CHECKING:
    from eval.progress import Reporter
    from wellread.checkpoint import Checkpoint
    from wellread.results import Result
    from wellread.run import RunDirectory

TASK = "membership/loss"


@dataclass(frozen=True, kw_only=True)
class Membership(PerCheckpoint[Scores]):
    """Scores of samples at each checkpoint, compared by group.

    At checkpoint step-N, samples read in batches 0 ... N-1 (`read`) are compared with the sealed holdout. There are two
    controls: samples that are read only later (`not yet read`), and shuffled labels (`shuffled`), the result of chance.
    For a packed corpus, segments are compared, each scored by itself, as without packing. Scores are kept in
    `eval/scores/step-N.parquet`: another call computes only scores that are missing or belong to other weights.
    `max_samples` per group are drawn by `seed`, as far as possible the same ones at every checkpoint.

    Raises
    ------
    UserError
        When `bootstrap` or `max_samples` is too small, or `seed` is negative.
    """

    bootstrap: int = 1000
    """Number of bootstrap resamples per interval, and of shuffles for the control."""

    name: ClassVar[str] = "membership"
    summary: ClassVar[str] = "compare the losses of read and sealed samples at each checkpoint: AUC, ROC, report"
    needs: ClassVar[tuple[Need, ...]] = (a_checkpoint, a_whole_record)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bootstrap < 100:
            raise UserError(f"--bootstrap {self.bootstrap}: too few for an interval; give at least 100")
        if self.max_samples < 2:
            raise UserError(f"--max_samples {self.max_samples}: nothing to compare; give at least 2")

    @cached_property
    def groups(self) -> Groups:
        """The groups of the run."""
        return Groups.of(self.run, self.max_samples, self.seed)

    def size(self, step: int) -> int:
        """Samples of all groups at `step`."""
        return self.groups.all(step).size

    def notes(self) -> Iterator[str]:
        """What is left out, and why."""
        corpus = self.groups.corpus
        sealed = min(corpus.n - corpus.n_trainable, self.max_samples)
        yield from self.groups.notes([checkpoint.step for checkpoint in self.checkpoints])
        if not sealed:
            yield "no sample is sealed, so only losses are measured; to compare them, train with --holdout above 0"
        for alpha in ALPHAS:
            needed = nonmembers_needed(alpha)
            if 0 < sealed < needed:
                yield f"no TPR at {alpha:.0%} FPR: it needs {needed:,} sealed samples, but only {sealed:,} are scored"

    def score(self, checkpoint: Checkpoint, reporter: Reporter) -> Scores:
        """Scores of all groups at `checkpoint`."""
        ids = self.groups.all(checkpoint.step)
        return scores_of(self.run, checkpoint, self.groups.corpus, ids, reporter, self.device, self.verify)

    def measure(self, checkpoint: Checkpoint, scores: Scores, reporter: Reporter) -> Iterator[Result]:
        """Compare the groups; yield nothing if a score is not finite, because the run has diverged."""
        sides, step = self._sides(checkpoint, scores), checkpoint.step
        bad = sum(int((~np.isfinite(side.scores)).sum()) for side in sides.values())
        if bad:
            reporter.note(
                f"step {step:,}: {bad:,} of {scores.sample_id.size:,} scores are not finite; the comparison is skipped"
            )
            return
        few = [f"{name} ({side.size})" for name, side in sides.items() if side.size == 1]
        if few:  # an empty group is expected: nothing is read at step 0, and all is read after an epoch
            reporter.note(f"step {step:,}: fewer than 2 samples in {', '.join(few)}; left out")
        for row in self._compare_all({name: side for name, side in sides.items() if side.size >= 2}):
            yield self.result(checkpoint, task=TASK, **row)

    def _sides(self, checkpoint: Checkpoint, scores: Scores) -> dict[str, Side]:
        sides = {}
        for name, ids in self.groups.at(checkpoint.step).items():
            group_scores = scores.at(ids)
            has_target = group_scores.n_targets > 0
            sides[name] = Side(group_scores.mean[has_target], self.groups.documents[ids[has_target]])
        return sides

    def _compare_all(self, sides: dict[str, Side]) -> Iterator[dict[str, Any]]:
        """Yield the fields group, metric, value, stderr, ci_low, ci_high and n of each result."""
        for name, side in sides.items():
            yield {"group": name, "metric": "mean_loss", "n": side.size, **_mean_loss(side)}
        sealed = sides.pop(SEALED, None)
        if sealed is None or not sides:
            return
        for name, side in sides.items():
            yield from ({"group": name, "n": side.size, **row} for row in self._compare(side, sealed))
        control = next(iter(sides.values()))  # the group read; at step 0, not yet read
        chance = permuted_auc(*control.against(sealed), draws=self.bootstrap, seed=self.seed)
        yield {"group": SHUFFLED, "metric": "auc", "value": float(chance.mean()), "n": control.size, **spread(chance)}

    def _compare(self, members: Side, sealed: Side) -> Iterator[dict[str, Any]]:
        """Yield metric, value and interval of AUC and of each TPR that the number of non-members allows."""
        bootstrap = partial(cluster_bootstrap, *members.against(sealed), draws=self.bootstrap, seed=self.seed)
        has_interval = min(np.unique(side.documents).size for side in (members, sealed)) > 1
        interval = spread(bootstrap()) if has_interval else {}
        yield {"metric": "auc", "value": auc(members.scores, sealed.scores), **interval}
        for alpha in ALPHAS:
            rate = tpr_at_fpr(members.scores, sealed.scores, alpha)
            if rate is not None:
                interval = spread(bootstrap(alpha=alpha)) if has_interval else {}
                yield {"metric": f"tpr_at_fpr_{alpha:g}", "value": rate, **interval}
        yield {"metric": "n_sealed", "value": float(sealed.size)}

    def headline(self, results: Sequence[Result]) -> str:
        """The AUC of each group."""
        aucs = [f"{result.group} {result.value:.3f}" for result in results if result.metric == "auc"]
        losses = [f"{result.group} {result.value:.3f}" for result in results if result.metric == "mean_loss"]
        if not aucs and losses:
            return f"mean loss: {', '.join(losses)}"
        return f"AUC against sealed: {', '.join(aucs) or 'none'}"

    @classmethod
    def overview(cls, results: Sequence[Result]) -> tuple[list[str], list[list[object]]]:
        """One row per checkpoint with the main results; the table on disk has all."""
        cells = {(result.step, result.group, result.metric): result for result in results}

        def value(step: int, group: str, metric: str) -> float | None:
            result = cells.get((step, group, metric))
            return result.value if result else None

        def auc_of(step: int, group: str) -> str | None:
            result = cells.get((step, group, "auc"))
            return with_interval(result) if result else None

        heads = [
            "step",
            "AUC read",
            "AUC not yet read",
            "labels shuffled",
            "TPR at 10% FPR",
            "loss read",
            "loss sealed",
        ]
        rows: list[list[object]] = [
            [
                step,
                *(auc_of(step, group) for group in (READ, UNREAD, SHUFFLED)),
                value(step, READ, f"tpr_at_fpr_{ALPHAS[0]:g}"),
                value(step, READ, "mean_loss"),
                value(step, SEALED, "mean_loss"),
            ]
            for step in sorted({result.step for result in results})
        ]
        return heads, rows

    @classmethod
    def section(cls, run: RunDirectory, results: Sequence[Result]) -> Section | None:
        """Main result, remarks, AUC per checkpoint, ROC curve and scores."""
        return section(run, [result for result in results if result.task == TASK])


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
        """Scores and documents of both sides, as arguments of the statistics."""
        return self.scores, other.scores, self.documents, other.documents


def _mean_loss(side: Side) -> dict[str, float]:
    """Mean over samples of the loss per target token, in nats, with its standard error over documents."""
    return clustered_mean(-side.scores, side.documents)
