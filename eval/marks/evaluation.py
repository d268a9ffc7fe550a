"""Has a checkpoint learned which form a coin picked at each marked place? Run with

wellread marks runs/NAME
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from eval.evaluation import PerCheckpoint
from eval.groups import READ, Groups
from eval.kept import How, kept_scores, tokens_of
from eval.marks.statistics import describe
from eval.marks.variants import Variants, places_of, registered, texts_of
from eval.needs import Need, a_checkpoint, a_whole_record
from eval.section import Picture, with_interval
from wellread.config import Dtype
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.scores import Scores

if TYPE_CHECKING:
    from eval.progress import Reporter
    from eval.separation import Ints
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.marks import Marks
    from wellread.corpus.tokenizer import Tokenizer
    from wellread.results import Result
    from wellread.run import RunDirectory


def marks(run: RunDirectory) -> None:
    """A corpus with marks."""
    if Corpus.open(run.corpus).marks is None:
        raise UserError(f"{run.path}: its corpus has no marks; train with --marks")


@dataclass(frozen=True, kw_only=True)
class MarksEvaluation(PerCheckpoint[Scores]):
    """At each place the form that a coin picked against the other one; p-values by redraws of the coins.

    Raises
    ------
    UserError
        When a setting is not valid.
    """

    max_samples: int = 500
    """Samples per group whose places are scored."""
    dtype: Dtype = "fp32"
    """Precision of the forward pass; each has its own kept columns."""

    name: ClassVar[str] = "marks"
    summary: ClassVar[str] = "whether each checkpoint has learned the forms that coins picked at marked places"
    more_help: ClassVar[str] = "\n  wellread marks --model pythia-70m --corpus runs/tiny-sample/corpus"
    needs: ClassVar[tuple[Need, ...]] = (a_checkpoint, marks, a_whole_record)

    @classmethod
    def applies(cls, run: RunDirectory) -> bool:
        """Whether the corpus of the run has marks."""
        return Corpus.open(run.corpus).marks is not None

    @cached_property
    def _corpus(self) -> Corpus:
        return Corpus.open(self.run.corpus)

    @cached_property
    def _marks(self) -> Marks:
        draw = self._corpus.marks
        assert draw
        return registered(self._corpus.path, draw.seed, draw.sha256)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from wellread.corpus.tokenizer import Tokenizer

        return Tokenizer.load(self._corpus.tokenizer)

    @cached_property
    def _groups(self) -> Groups:
        return Groups.of(self.run, self.max_samples, self.seed)

    def _rows(self, step: int) -> dict[str, Ints]:
        """Rows of marks.parquet of each group at `step`, ascending."""
        return {
            group: np.flatnonzero(np.isin(self._marks.sample_id, ids)) for group, ids in self._groups.at(step).items()
        }

    def size(self, step: int) -> int:
        """Texts that are scored at `step`: two for each place."""
        return 2 * sum(rows.size for rows in self._rows(step).values())

    def notes(self) -> Iterator[str]:
        """The draw, and what is left out."""
        draw = self._corpus.marks
        assert draw
        yield f"marks: {draw.places:,} places in {draw.documents:,} documents; registered as {draw.sha256}"
        yield from self._groups.notes([checkpoint.step for checkpoint in self.checkpoints])

    def score(self, checkpoint: Checkpoint, reporter: Reporter) -> Scores:
        """Log-likelihoods of both forms of all places, from kept token columns; the model runs for missing ones."""
        rows = np.sort(np.concatenate(list(self._rows(checkpoint.step).values())))
        variants = Variants.of(self._marks, rows, self._tokenizer, self._corpus.longest)
        how = How(device=self.device, verify=self.verify, dtype=self.dtype, variant=self.name)
        file = tokens_of(self.run, checkpoint, variants, variants.ids, reporter, how)
        return kept_scores(file, variants, variants.ids)

    def measure(self, checkpoint: Checkpoint, scores: Scores, reporter: Reporter) -> Iterator[Result]:
        """Results of each group."""
        for group, rows in self._rows(checkpoint.step).items():
            if not rows.size:
                continue
            places = places_of(self._marks, rows, scores.at(texts_of(rows)).log_likelihood)
            for metric, row, n in describe(places, self.seed):
                yield self.result(checkpoint, task=self.name, group=group, metric=metric, n=n, **row)

    def headline(self, results: Sequence[Result]) -> str:
        """p of each group."""
        return "p: " + ", ".join(f"{each.group} {each.value:.4f}" for each in results if each.metric == "p")

    @classmethod
    def overview(cls, results: Sequence[Result]) -> tuple[list[str], list[list[object]]]:
        """Each group at each checkpoint."""
        return ["step", "group", "places", "p", "excess", "taken likelier"], [
            [f"{step}", *row] for (step, _), row in rows_of(results).items()
        ]

    @classmethod
    def pictures(cls, results: Sequence[Result]) -> Sequence[Picture]:
        """Excess by step."""
        from wellread.plots.marks import excess_by_step

        defined = [each for each in results if each.metric == "excess"]
        if not defined:
            return ()
        last = [each for each in defined if each.step == defined[-1].step]
        values = "; ".join(f"{each.group} {with_interval(each)}" for each in last)
        alt = f"Excess of the forms that coins picked, in nats, against the step. At step {last[0].step:,}: {values}."
        caption = (
            "How much more likely the form is that a coin picked than the model's preference in its pair says. A model "
            "that has not read the marks knows no coin: 0, the dashed line. Sealed samples are the control; bands are "
            "95% intervals."
        )
        return [Picture("Forms that coins picked", excess_by_step(defined), alt, caption)]

    @classmethod
    def conclusions(cls, results: Sequence[Result]) -> Iterator[str]:
        """Whether the last checkpoint has learned the coins."""
        last = [each for each in results if each.metric == "p" and each.group == READ][-1:]
        for each in last:
            verdict = "has learned" if each.value <= LEVEL else "cannot be shown to have learned"
            yield f"step {each.step:,} {verdict} the coins of the places that it has read (p = {each.value:.4f})"


LEVEL = 0.01
"""A checkpoint with a p-value up to this is said to have learned the coins."""


def rows_of(results: Sequence[Result]) -> dict[tuple[int, str], list[object]]:
    """Group, number of places, p, excess and share of each step and group."""
    by_key = {(each.step, each.group, each.metric): each for each in results}
    rows = dict[tuple[int, str], list[object]]()
    for (step, group, metric), each in by_key.items():
        if metric == "p":
            excess, share = (by_key[step, group, name] for name in ("excess", "taken_likelier"))
            rows[step, group] = [group, each.n, each.value, with_interval(excess), with_interval(share)]
    return rows
