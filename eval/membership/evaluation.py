"""Can scores of a checkpoint distinguish read samples from sealed ones? Run with

    wellread membership runs/NAME

What a checkpoint has read is known from the record. Scores are functions of the log-probabilities of a sample's target
tokens (`eval.membership.scores`), and a higher one means "more likely a member".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from eval.boards import write_scalars
from eval.evaluation import PerCheckpoint
from eval.groups import READ, SEALED, UNREAD, Groups
from eval.kept import How
from eval.membership import summary, tables, vulnerable
from eval.membership.checks import FILE as CHECKS
from eval.membership.checks import Checks, Row, Samples, with_corrected_p
from eval.membership.compare import Comparer, Side, describe
from eval.membership.divisions import DIVISIONS, divide
from eval.membership.inputs import Source
from eval.membership.recall import Prefix, reserve
from eval.membership.references import began_pretrained, reference_of
from eval.membership.scores import columns, passes, select_scores
from eval.membership.section import section
from eval.membership.set_tests import SetTests, select_tests
from eval.membership.whole_sets import write_transcript
from eval.needs import Need, a_checkpoint, a_whole_record
from eval.randomness import Randomness
from eval.selection import selection
from eval.separation import ALPHAS, Floats, Ints, nonmembers_needed
from wellread.config import Dtype
from wellread.errors import UserError
from wellread.files import require_folder
from wellread.units import plural

if TYPE_CHECKING:
    from eval.progress import Reporter
    from eval.section import Section
    from wellread.checkpoint import Checkpoint
    from wellread.results import Result
    from wellread.run import RunDirectory

Values = dict[str, Floats]
"""Name of each score -> its values for the samples of all groups, float64[n]."""


@dataclass(frozen=True, kw_only=True)
class Membership(PerCheckpoint[Values]):
    """Scores of samples at each checkpoint, compared by group.

    At checkpoint step-N, samples read in batches 0 ... N-1 (`read`) are compared with the sealed holdout. There are two
    controls: samples that are read only later (`unread`), and shuffled labels (`shuffled`), the result of chance.
    For a packed corpus, segments are compared, each scored by itself, as without packing. Token columns are kept in
    `eval/tokens/`: another call runs the model only for samples that are missing or belong to other weights.
    `max_samples` per group are drawn by `seed`, as far as possible the same ones at every checkpoint.

    Raises
    ------
    UserError
        When a setting is not valid.
    """

    scores: str | None = None
    """Scores: loss, zlib, lowercase, min_k, min_k++, with a reference model reference, ez (default: all of these), and
    only on request recall, gradnorm."""
    k: str = "0.1,0.2,0.3,0.5"
    """Fractions of tokens for min_k and min_k++."""
    groups: str | None = None
    """Groups compared with sealed samples: read, unread, age, times, category (default: read,unread)."""
    reference: str | None = None
    """Reference model: own (step 0), none, or MODEL (default: own if the run began from pretrained weights)."""
    dtype: Dtype = "fp32"
    """Precision of the forward pass; each has its own kept columns."""
    bootstrap: int = 1000
    """Number of bootstrap resamples per interval, and of shuffles for the control."""
    vulnerable: int | None = None
    """Only list this many samples by the range of their recorded losses (LT-IQR); no model runs (default: off)."""
    tests: str | None = None
    """Tests of groups at the last evaluated checkpoint: order, inference, none (default: all that the order allows)."""
    transcript: str | None = None
    """Parquet file of what that checkpoint had read, in order, for the published script of the order test."""

    name: ClassVar[str] = "membership"
    summary: ClassVar[str] = "compare scores of read and sealed samples at each checkpoint: AUC, ROC, report"
    more_help: ClassVar[str] = (
        "\n  wellread membership --model pythia-70m --members a.jsonl --nonmembers b.jsonl\n\n"
        "The last form compares any texts, without a run; wellread membership --model pythia-70m --help has its flags."
    )
    needs: ClassVar[tuple[Need, ...]] = (a_checkpoint, a_whole_record)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bootstrap < 100:
            raise UserError(f"--bootstrap {self.bootstrap}: too few for an interval; give at least 100")
        if self.max_samples < 2:
            raise UserError(f"--max_samples {self.max_samples}: nothing to compare; give at least 2")
        if self.vulnerable is not None and self.steps is not None:
            raise UserError("--vulnerable: uses the losses of all batches; leave out --steps")
        if self.transcript:
            require_folder(Path(self.transcript).expanduser())
            if why := Randomness.of(self.run).why_not():
                raise UserError(f"--transcript {self.transcript}: {why}; leave it out")
        if self.tests:
            select_tests(self.tests, self.run)
        _ = self._fractions, self._group_names, columns(self._score_names, self._fractions)

    @cached_property
    def _fractions(self) -> list[float]:
        return fractions(self.k)

    @property
    def _score_names(self) -> list[str]:
        return [name.strip() for name in self.scores.split(",")] if self.scores is not None else []

    @cached_property
    def _group_names(self) -> list[str]:
        names = [name.strip() for name in self.groups.split(",")] if self.groups is not None else [READ, UNREAD]
        for name in names:
            if name not in DIVISIONS:
                raise UserError(f"--groups {name}: not a group; choose from {', '.join(DIVISIONS)}")
        why = self._why_no_unread
        if not why or UNREAD not in names:
            return names
        if self.groups is not None:
            raise UserError(f"--groups unread: {why}; leave it out")
        return [READ]

    def listing(self) -> tuple[list[str], list[list[object]], str] | None:
        """The most vulnerable samples, with `vulnerable`."""
        return vulnerable.listing(self.run, self.vulnerable) if self.vulnerable is not None else None

    @cached_property
    def _why_no_unread(self) -> str:
        """Why unread samples are not a control; empty if they are, or if there is no order yet."""
        return Randomness.why_no_control(self.run)

    @cached_property
    def checks(self) -> Checks:
        """Gates and copies of the run's samples."""
        samples = Samples.of(self.division.corpus, self.division.documents)
        return Checks(samples, self.seed, self.run.eval / CHECKS)

    @cached_property
    def set_tests(self) -> SetTests:
        """Tests of all samples of a group together."""
        return SetTests(self.run, self.division, select_tests(self.tests, self.run), self.seed)

    @cached_property
    def division(self) -> Groups:
        """The groups of the run, without the documents of the prefix of recall."""
        return self._reserved[0]

    @cached_property
    def _reserved(self) -> tuple[Groups, Prefix | None]:
        """The groups, and the prefix of recall if it is requested."""
        groups = Groups.of(self.run, self.max_samples, self.seed)
        return reserve(groups) if "recall" in self._score_names else (groups, None)

    @cached_property
    def source(self) -> Source:
        """The samples, and what their scores are computed from."""
        reference = reference_of(self.run, self.reference, self.division.corpus)
        add = "--reference own or --reference MODEL"
        scores = select_scores(self._score_names, self._fractions, has_reference=reference is not None, add=add)
        how = How(device=self.device, verify=self.verify, dtype=self.dtype)
        return Source(self.run, self.division.corpus, scores, how, reference, self._reserved[1])

    def size(self, step: int) -> int:
        """Samples of all groups at `step`, as often as they are scored."""
        return self.division.all(step).size * passes(self.source.scores)

    def notes(self) -> Iterator[str]:
        """What is left out, and why."""
        sealed = min(self.division.sealed.size, self.max_samples)
        yield from self.division.notes([checkpoint.step for checkpoint in self.checkpoints])
        if self.groups is None and UNREAD not in self._group_names:
            yield f"unread samples are not a control and are left out: {self._why_no_unread}"
        if why := selection(self.run, [checkpoint.step for checkpoint in self.checkpoints]):
            yield f"warning: {why}; look at the gates"
        if self.reference is None and self.source.reference is None and began_pretrained(self.run):
            yield "step 0 has no checkpoint, so there is no reference model; reference and ez are left out"
        if self.division.withheld is not None:
            yield f"recall: its prefix is of {plural(self.division.withheld.size, 'sealed sample')}, in no group"
        if not sealed:
            yield (
                f"no sample is sealed, so only the losses of {self._remaining} samples are measured; to compare them, "
                "train with --holdout above 0"
            )
        few = [alpha for alpha in ALPHAS if 0 < sealed < nonmembers_needed(alpha)]
        if few:
            rates = ", ".join(f"{100 * alpha:g}%" for alpha in few)
            needed = ", ".join(f"{nonmembers_needed(alpha):,}" for alpha in few)
            yield f"no TPR at {rates} FPR: it needs {needed} sealed samples, but only {sealed:,} are scored"

    @property
    def _remaining(self) -> str:
        """The groups that a run without sealed samples has."""
        groups = [self.division.at(checkpoint.step) for checkpoint in self.checkpoints]
        return " and ".join(name for name in (READ, UNREAD) if any(each[name].size for each in groups))

    def score(self, checkpoint: Checkpoint, reporter: Reporter) -> Values:
        """Values of all scores for the samples of all groups at `checkpoint`."""
        ids = self.division.all(checkpoint.step)
        return self.source.values(self.source.files(checkpoint, ids, reporter), ids)

    def results(self, reporter: Reporter) -> Iterator[Result]:
        """Score and measure one checkpoint after the other; keep the scores of single samples, and write scalars."""
        rows: list[Any] = []
        every: list[Result] = []
        for checkpoint in self.checkpoints:
            values = self.score(checkpoint, reporter)
            results = list(self.measure(checkpoint, values, reporter))
            reporter.finish(checkpoint.step, self.headline(results))
            rows.append(
                tables.sample_rows(checkpoint.step, self.division.at(checkpoint.step), self._ids(checkpoint), values)
            )
            every += results
        tables.write_samples(self.run, rows)
        if self.transcript:
            self._write_transcript(Path(self.transcript).expanduser(), reporter)
        every = list(with_corrected_p(every))
        write_scalars(self.run, self.name, every)
        yield from every

    def measure(self, checkpoint: Checkpoint, scores: Values, reporter: Reporter) -> Iterator[Result]:
        """Compare the groups; only count the samples without a score where the run has diverged."""
        ids = self._ids(checkpoint)
        groups = self.division.at(checkpoint.step)
        few = [f"{name} ({members.size})" for name, members in groups.items() if members.size == 1]
        if few:  # an empty group is expected: nothing is read at step 0, and all is read after an epoch
            reporter.note(f"step {checkpoint.step:,}: fewer than 2 samples in {', '.join(few)}; left out")
        divided = divide(self._group_names, self.division, checkpoint.step)
        pairs = divided | self.checks.without_copies(divided)
        comparer = Comparer(self.bootstrap, self.seed)
        for column in self.source.scores:
            if column.score.needs == "reference" and checkpoint == self.source.reference:
                continue  # the model is its own reference
            values = scores[column.name]
            sides = {name: self._side(members, ids, values) for name, members in groups.items() if members.size > 1}
            rows = list(describe(sides, is_loss=column.name == "loss"))
            undefined = int(np.isnan(values).sum())
            if undefined:
                reporter.note(
                    f"step {checkpoint.step:,}: {column.name} is not defined for {undefined:,} of {ids.size:,} samples"
                )
            compared = {
                name: (self._side(members, ids, values), self._side(sealed, ids, values))
                for name, (members, sealed) in pairs.items()
            }
            rows += comparer.rows(compared, SEALED)
            for row in rows:
                yield self.result(checkpoint, task=f"{self.name}/{column.name}", **row)
        for task, row in self._check(checkpoint, divided, scores, reporter):
            yield self.result(checkpoint, task=task, **row)

    def _check(
        self, checkpoint: Checkpoint, pairs: dict[str, tuple[Ints, Ints]], scores: Values, reporter: Reporter
    ) -> Iterator[tuple[str, Row]]:
        """Gates and copies of each group and its non-members; at the last checkpoint, the tests of groups."""
        step, small = checkpoint.step, self.checks.too_small(pairs)
        if small:
            reporter.note(f"step {step:,}: no gate for {', '.join(small)}: fewer than 10 documents on a side")
        yield from self.checks.rows(pairs)
        self.checks.keep()
        if checkpoint == self.checkpoints[-1]:
            yield from self.set_tests.rows(step, scores, reporter.note)

    def _write_transcript(self, path: Path, reporter: Reporter) -> None:
        from wellread.corpus.read import Corpus

        step = self.checkpoints[-1].step
        n = write_transcript(path, Corpus.open(self.run.corpus), self.set_tests.readings(step))
        reporter.note(f"{path}: {n:,} samples that step {step:,} had read, in order of their last reading")

    def _ids(self, checkpoint: Checkpoint) -> Ints:
        return self.division.all(checkpoint.step)

    def _side(self, members: Ints, ids: Ints, values: Floats) -> Side:
        return Side(values[np.searchsorted(ids, members)], self.division.documents[members])

    def headline(self, results: Sequence[Result]) -> str:
        """The AUC of each group, of the first score."""
        return summary.headline(results)

    @classmethod
    def overview(cls, results: Sequence[Result]) -> tuple[list[str], list[list[object]]]:
        """Main results of the loss at each checkpoint, of all scores at the last; the table on disk has all."""
        return summary.overview(results)

    @classmethod
    def conclusions(cls, results: Sequence[Result]) -> Iterator[str]:
        """Tests of groups, copies, and whether the ground truth is suspect."""
        return summary.conclusions(results)

    @classmethod
    def section(cls, run: RunDirectory, results: Sequence[Result]) -> Section | None:
        """Main result, remarks, AUC per checkpoint, ROC curve and scores."""
        return section(run, results)


def fractions(words: str) -> list[float]:
    """The fractions of `--k`.

    Raises
    ------
    UserError
        When one is not a number above 0 and up to 1.
    """
    values = []
    for word in words.split(","):
        try:
            value = float(word)
        except ValueError:
            value = 0.0
        if not 0 < value <= 1:
            raise UserError(f"--k {word}: expected fractions of tokens above 0 and up to 1, e.g. 0.1,0.2")
        values.append(value)
    return list(dict.fromkeys(values))
