"""Which canaries does a checkpoint remember? Run with

wellread canaries runs/NAME
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from eval.canaries.statistics import combined_p, exact_share, exposure, p_values
from eval.evaluation import PerCheckpoint
from eval.groups import UNREAD, last_readings
from eval.intervals import clustered_mean
from eval.kept import How, tokens_of
from eval.membership.divisions import AGES
from eval.memorization.extraction import Suffixes
from eval.needs import Need, a_checkpoint, a_whole_record
from eval.section import Picture
from eval.separation import Floats, Ints
from wellread.config import Dtype
from wellread.corpus.canaries import TAG, Registration, Texts
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.units import plural

if TYPE_CHECKING:
    from eval.progress import Reporter
    from wellread.checkpoint import Checkpoint
    from wellread.results import Result
    from wellread.run import RunDirectory
    from wellread.tokens import Tokens

ALL = "all"
LEVEL = 0.05
"""A canary with a p-value up to this counts as found."""


def canaries(run: RunDirectory) -> None:
    """A corpus with canaries."""
    if Corpus.open(run.corpus).canaries is None:
        raise UserError(f"{run.path}: its corpus has no canaries; train with --canaries")


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of all registered texts at a checkpoint, by their number in `canaries.parquet`."""

    mean: Floats
    """Mean log-probability per target token, nats, float64[texts]; NaN where the model has diverged."""
    extractible: Floats
    """1.0 where greedy decoding returns the second half of the tokens after the first half, float64[texts]."""


@dataclass(frozen=True)
class _Dose:
    """The canaries of one dose at a checkpoint; those without a score are left out."""

    ids: Ints
    """Sample ids, int64[n]."""
    p: Floats
    mean: Floats
    extractible: Floats
    last: Ints
    """Batch of the last reading, -1 for none, int64[n]."""
    times: Ints
    """Number of readings so far, int64[n]."""

    def at(self, mask: NDArray[np.bool_]) -> _Dose:
        """Those of a mask, bool[n]."""
        return _Dose(*(getattr(self, name)[mask] for name in ("ids", "p", "mean", "extractible", "last", "times")))


@dataclass(frozen=True, kw_only=True)
class Canaries(PerCheckpoint[Scored]):
    """Each canary against controls of the same draw, which no batch has read.

    Raises
    ------
    UserError
        When a setting is not valid.
    """

    dtype: Dtype = "fp32"
    """Precision of the forward pass; each has its own kept columns."""

    name: ClassVar[str] = "canaries"
    summary: ClassVar[str] = "which canaries each checkpoint remembers, by dose, against their controls"
    without: ClassVar[frozenset[str]] = frozenset({"max_samples"})
    needs: ClassVar[tuple[Need, ...]] = (a_checkpoint, canaries, a_whole_record)

    @classmethod
    def applies(cls, run: RunDirectory) -> bool:
        """Whether the corpus of the run has canaries."""
        return Corpus.open(run.corpus).canaries is not None

    @cached_property
    def _corpus(self) -> Corpus:
        return Corpus.open(self.run.corpus)

    @cached_property
    def _registered(self) -> Registration:
        assert self._corpus.canaries
        return self._corpus.canaries

    @cached_property
    def _texts(self) -> Texts:
        """Canaries and controls.

        Raises
        ------
        UserError
            When they are not the registered ones.
        """
        texts = Texts.read(self._corpus.path)
        if texts.sha256(self._registered.seed) != self._registered.sha256:
            raise UserError(
                f"{self._corpus.path / 'canaries.parquet'}: not the registered canaries and controls; run wellread "
                "verify"
            )
        return texts

    def size(self, step: int) -> int:
        """Number of canaries and controls."""
        return self._registered.count + self._registered.controls

    def notes(self) -> Iterator[str]:
        """The draw, and the smallest p-value that it can give."""
        draw = self._registered
        yield (
            f"canaries: {draw.count:,}, against {draw.controls:,} controls: the smallest p of one "
            f"canary is {1 / (1 + draw.controls):.2g}; registered as {draw.sha256}"
        )

    def score(self, checkpoint: Checkpoint, reporter: Reporter) -> Scored:
        """Scores of all texts from kept token columns; the model runs for missing ones."""
        how = How(device=self.device, verify=self.verify, dtype=self.dtype, variant=self.name)
        numbers = np.arange(self.size(checkpoint.step))
        columns = tokens_of(self.run, checkpoint, self._texts, numbers, reporter, how).read(numbers)
        return Scored(columns.means(columns.logp), _extractible(columns))

    def measure(self, checkpoint: Checkpoint, scores: Scored, reporter: Reporter) -> Iterator[Result]:
        """Results of each dose, and of each canary."""
        controls = scores.mean[self._registered.count :]
        if undefined := int(np.isnan(controls).sum()):
            reporter.note(f"step {checkpoint.step:,}: {plural(undefined, 'control')} without a score count as higher")
            controls = np.where(np.isnan(controls), np.inf, controls)
        history = self._history(checkpoint.step)
        for repeats in self._registered.repeats:
            dose, undefined = self._dose(history, scores, controls, repeats)
            rows = [(ALL, "undefined", {"value": float(undefined)}, undefined + dose.ids.size)]
            for group, members in _groups(dose, checkpoint.step):
                rows += [(group, *row, members.ids.size) for row in self._of_group(group, members, controls)]
            rows += _singles(dose, checkpoint.step)
            for group, metric, row, n in rows:
                task = f"{TAG}{repeats}"
                yield self.result(checkpoint, task=task, group=group, metric=metric, n=n, **row)

    def _dose(self, history: tuple[Ints, Ints], scores: Scored, controls: Floats, repeats: int) -> tuple[_Dose, int]:
        """The canaries of a dose, and how many have no score."""
        numbers = np.flatnonzero(self._registered.doses == repeats)
        last, times = history
        mean = scores.mean[numbers]
        dose = _Dose(
            ids=self._corpus.n_ordinary + numbers,
            p=p_values(mean, controls),
            mean=mean,
            extractible=scores.extractible[numbers],
            last=last[numbers],
            times=times[numbers],
        )
        undefined = np.isnan(mean)
        return dose.at(~undefined), int(undefined.sum())

    def _history(self, step: int) -> tuple[Ints, Ints]:
        """Batch of the last reading before `step`, -1 for none, and number of readings, of each canary."""
        from wellread.record.reader import Record

        last, times = last_readings(Record.open(self.run.record), step, self._corpus.n_trainable)
        return last[self._corpus.n_ordinary :], times[self._corpus.n_ordinary :]

    def _of_group(self, group: str, dose: _Dose, controls: Floats) -> Iterator[tuple[str, dict[str, Any]]]:
        if group in (ALL, UNREAD):
            yield "p", {"value": combined_p(dose.mean, controls, self.seed)}
        yield "found", exact_share(int((dose.p <= LEVEL).sum()), dose.p.size)
        yield "exposure", clustered_mean(exposure(dose.p), dose.ids)
        yield "extractible", exact_share(int(dose.extractible.sum()), dose.p.size)

    def headline(self, results: Sequence[Result]) -> str:
        """Combined p of each dose."""
        rows = [each for each in results if each.metric == "p" and each.group == ALL]
        return "p: " + ", ".join(f"{each.task.partition('/')[2]} {each.value:.4f}" for each in rows)

    @classmethod
    def overview(cls, results: Sequence[Result]) -> tuple[list[str], list[list[object]]]:
        """Each dose at each checkpoint; the table on disk has each canary, and groups by age."""
        values = {(each.step, each.task, each.metric): each for each in results if each.group == ALL}
        rows: list[list[object]] = []
        for (step, task, metric), each in values.items():
            if metric == "p":
                p_05, extractible, bits = (values[step, task, name] for name in ("found", "extractible", "exposure"))
                count = round(extractible.value * extractible.n)
                rows.append([f"{step}", task.removeprefix(TAG), each.n, each.value, _words(p_05), bits.value, count])
        return ["step", "readings", "n", "p", "found", "exposure", "extractible"], rows

    @classmethod
    def pictures(cls, results: Sequence[Result]) -> Sequence[Picture]:
        """The share of canaries that is found, by dose."""
        from wellread.plots.canaries import found_by_step

        last = max(each.step for each in results)
        shares = [each for each in results if (each.step, each.metric, each.group) == (last, "found", ALL)]
        by_dose = "; ".join(f"{plural(int(each.task.removeprefix(TAG)), 'reading')}: {_words(each)}" for each in shares)
        alt = f"Share of canaries with p up to {LEVEL:g} against the step, by dose. At step {last:,}: {by_dose}."
        caption = (
            "A canary is found when few of its controls, texts of the same draw that no batch reads, have a higher "
            f"score. The dashed line is the share that is found by chance, {LEVEL:g}; bands are 95% intervals."
        )
        return [Picture("Canaries that are found", found_by_step(results, LEVEL), alt, caption)]


def _extractible(columns: Tokens) -> Floats:
    """Whether the second half of each text is what greedy decoding writes after the first half."""
    values = np.full(columns.sample_id.size, np.nan)
    for n in np.unique(columns.n_targets).tolist():  # a text of n + 1 tokens
        numbers = columns.sample_id[columns.n_targets == n]
        prefix = (n + 1) // 2
        suffixes = Suffixes.of(columns.at(numbers), prefix - 1, n + 1 - prefix)
        values[numbers] = suffixes.extractible
    return values


def _groups(dose: _Dose, step: int) -> Iterator[tuple[str, _Dose]]:
    """All canaries of a dose, those not read yet, and the others by steps since the last reading."""
    age = step - dose.last
    masks = {ALL: np.ones(dose.ids.size, dtype=np.bool_), UNREAD: dose.times == 0}
    for low, high in pairwise(AGES):
        masks[f"age:{low}-{high}"] = (dose.times > 0) & (low <= age) & (age < high)
    return ((name, dose.at(mask)) for name, mask in masks.items() if mask.any())


def _singles(dose: _Dose, step: int) -> Iterator[tuple[str, str, dict[str, Any], int]]:
    """Group, metric, value and n of each canary."""
    columns = {"p": dose.p, "exposure": exposure(dose.p), "extractible": dose.extractible, "readings": dose.times}
    for i, sample_id in enumerate(dose.ids.tolist()):
        for metric, values in columns.items():
            yield f"sample:{sample_id}", metric, {"value": float(values[i])}, 1
        if dose.times[i]:
            yield f"sample:{sample_id}", "steps_since", {"value": float(step - dose.last[i])}, 1


def _words(result: Result) -> str:
    """``3 of 8 [0.09, 0.76]``."""
    return f"{round(result.value * result.n)} of {result.n} [{result.ci_low:.2f}, {result.ci_high:.2f}]"
