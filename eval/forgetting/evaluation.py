"""What did reading a sample change, and how much of it is left? Run with

    wellread forgetting runs/NAME

The record has the loss of each sample just before it was first learned from. The difference between that loss and the
loss at a checkpoint, minus the same difference of sealed documents, is what the reading left behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from eval.evaluation import PerCheckpoint
from eval.forgetting import needs
from eval.forgetting.curve import FEWEST_STEPS, Curve, fit
from eval.forgetting.difference import Cohort, Sealed, plain_difference, recorded_difference
from eval.forgetting.readings import Readings
from eval.forgetting.section import DIFFERENCE, PLAIN, overview, section
from eval.groups import READ, SEALED, UNREAD, Groups
from eval.kept import scores_of
from eval.needs import Need, a_checkpoint, a_whole_record
from eval.randomness import Randomness
from eval.section import with_interval
from eval.selection import selection
from wellread.errors import UserError
from wellread.scores import Scores
from wellread.units import plural

if TYPE_CHECKING:
    from eval.progress import Reporter
    from eval.section import Section
    from eval.separation import Ints
    from wellread.checkpoint import Checkpoint
    from wellread.results import Result
    from wellread.run import RunDirectory

FEWEST_REPEATS = 10
"""Fewest measurements of sealed documents beyond the first of each: a curve compares documents only with themselves."""


@dataclass(frozen=True, kw_only=True)
class Forgetting(PerCheckpoint[Scores]):
    """Differences in differences of read against sealed samples at each checkpoint, by cohort.

    A score is a sample's mean log-likelihood. For a sample first read at step c and a checkpoint t, the difference is
    (score_t + recorded loss at c) - (sealed score_t - sealed score_c). Samples that are read only after t (`unread`)
    have the same difference without having been read: this control must be 0.

    Raises
    ------
    UserError
        When the run has no sealed losses or too few, was packed, or was trained with dropout.
    """

    name: ClassVar[str] = "forgetting"
    summary: ClassVar[str] = "what is left of each reading, against the recorded loss before it: by age, batch, rate"
    needs: ClassVar[tuple[Need, ...]] = (
        a_checkpoint,
        a_whole_record,
        needs.sealed_samples,
        needs.one_loss_per_row,
        needs.sealed_losses,
        needs.no_dropout,
    )

    @cached_property
    def _all_groups(self) -> Groups:
        return Groups.of(self.run, self.max_samples, self.seed)

    @cached_property
    def groups(self) -> Groups:
        """The groups of the run; of sealed samples only those of documents that were measured."""
        groups = self._all_groups
        measured = np.isin(groups.documents[groups.sealed], self.curve.ids)
        return replace(groups, withheld=groups.sealed[~measured])

    @cached_property
    def readings(self) -> Readings:
        """The first reading of each sample."""
        return Readings.of(self.run, self.groups)

    @cached_property
    def curve(self) -> Curve:
        """Loss of sealed documents at every step."""
        from wellread.record.reader import Record

        table = Record.open(self.run.record).sealed()
        steps, ids, losses = (table[name].to_numpy() for name in ("step", "sample_id", "loss"))
        before = steps <= self._all_groups.last
        documents = self._all_groups.documents[ids[before]]
        if len(documents) - len(np.unique(documents)) < FEWEST_REPEATS:
            raise UserError(
                f"{self.run.record}: hardly any sealed document was measured twice, so no change of their losses is "
                "known; train further, or with a larger --eval_samples or a smaller --eval_every"
            )
        return fit(steps[before], documents, losses[before].astype(np.float64))

    def size(self, step: int) -> int:
        """Samples of all groups at `step`."""
        return self.groups.all(step).size

    def notes(self) -> Iterable[str]:
        """What is left out or uncertain, and why."""
        yield from self.groups.notes([checkpoint.step for checkpoint in self.checkpoints])
        steps = np.unique(self.curve.steps)
        if len(steps) < FEWEST_STEPS:
            yield (
                f"warning: sealed losses were measured at {len(steps)} steps only ({', '.join(map(str, steps))}): "
                "between them the curve is a guess, and differences may have a wrong sign; train with --eval_every"
            )
        elif far := int(self.curve.is_far(self.readings.steps).sum()):
            yield (
                f"warning: {far:,} of {plural(self.readings.steps.size, 'first reading')} are far from any step at "
                "which sealed losses were measured: the curve is a guess there, and differences may have a wrong sign; "
                "train with --eval_every"
            )
        if why := Randomness.why_no_control(self.run):
            yield (
                f"warning: {why}, and so may the losses that they would have without reading; {UNREAD} is not a "
                "control, but shows how much"
            )
        if why := selection(self.run, [checkpoint.step for checkpoint in self.checkpoints]):
            yield f"warning: {why}, and so may the change of their losses without reading"

    def score(self, checkpoint: Checkpoint, reporter: Reporter) -> Scores:
        """Scores of all groups at `checkpoint`."""
        ids = self.groups.all(checkpoint.step)
        return scores_of(self.run, checkpoint, self.groups.corpus, ids, reporter, self.device, self.verify)

    def measure(self, checkpoint: Checkpoint, scores: Scores, reporter: Reporter) -> Iterator[Result]:
        """Compare each cohort with the sealed samples; only count scores that are not finite."""
        step = checkpoint.step
        bad = int((~np.isfinite(scores.log_likelihood)).sum())
        if bad:
            reporter.note(f"step {step:,}: {bad:,} scores are not finite; nothing is compared")
            counted = {"metric": "not_finite", "group": "all", "value": float(bad), "n": scores.sample_id.size}
            yield self.result(checkpoint, task=self.name, **counted)
            return
        groups = self.groups.at(step)
        sealed = Sealed(scores.at(groups[SEALED]).mean, self.groups.documents[groups[SEALED]])
        cohorts = [*self.readings.cohorts(self.groups, step), (UNREAD, groups[UNREAD])]
        for name, members in cohorts:
            if members.size < 2:
                if members.size:
                    reporter.note(f"step {step:,}: 1 sample in {name}; left out")
                continue
            cohort = self._cohort(members, scores)
            row = {"task": self.name, "group": name, "n": members.size}
            yield self.result(checkpoint, metric=DIFFERENCE, **row, **recorded_difference(cohort, sealed, self.curve))
            yield self.result(checkpoint, metric=PLAIN, **row, **plain_difference(cohort, sealed))

    def _cohort(self, ids: Ints, scores: Scores) -> Cohort:
        readings = self.readings
        return Cohort(scores.at(ids).mean, readings.losses[ids], readings.batches[ids], self.groups.documents[ids])

    def headline(self, results: Sequence[Result]) -> str:
        """The difference of all read samples, and the control."""
        parts = [f"{each.group} {with_interval(each)}" for each in results if _is_main(each)]
        return f"difference from sealed: {', '.join(parts) or 'none'}"

    @classmethod
    def overview(cls, results: Sequence[Result]) -> tuple[list[str], list[list[object]]]:
        """One row per checkpoint; the table on disk has all cohorts."""
        return overview(results)

    @classmethod
    def section(cls, run: RunDirectory, results: Sequence[Result]) -> Section | None:
        """Main result, the picture with its control, all cohorts of the last checkpoint."""
        return section(run, results)


def _is_main(result: Result) -> bool:
    """Whether a result is the difference of all read samples or of the control."""
    return result.metric == DIFFERENCE and result.group in (READ, UNREAD)
