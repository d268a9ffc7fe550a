"""When did each metric of a run stop changing, and what had the model read until then? Run with

    wellread saturation runs/NAME

Metrics are those of single texts and samples that other evaluations have kept, such as `wellread generations`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from eval.evaluation import Evaluation
from eval.needs import Need, a_checkpoint, a_whole_record
from eval.saturation import outputs, perplexity, table
from eval.saturation.collect import MetricCurve, beyond, curves_of, refuse_different_runs
from eval.saturation.fits import FORMS, fit
from eval.saturation.verdict import judge
from eval.section import p_value
from wellread.errors import UserError
from wellread.run import RunDirectory

if TYPE_CHECKING:
    from eval.progress import Reporter
    from eval.section import Section
    from wellread.checkpoint import Checkpoint
    from wellread.config import OptimConfig
    from wellread.planning.plan import Plan


@dataclass(frozen=True)
class Saturation(Evaluation):
    """A verdict about each metric of a run: whether it has saturated, at which step, after how many tokens.

    It needs no model of the curve; fitted curves are a second line, in `eval/saturation/fits.parquet`. The summary of
    the run, with what it read until each checkpoint, is `eval/saturation/summary.parquet`.

    Raises
    ------
    UserError
        When `margin` is not between 0 and 1, or `seed` is negative.
    """

    _: KW_ONLY
    margin: float = 0.05
    """Largest remaining change of a saturated metric, as a share of its total change."""
    only: str | None = None
    """Metrics, e.g. bits_per_byte,greedy/words (default: all)."""
    csv: bool = False
    """Whether to write the summary also as eval/saturation/summary.csv."""
    metrics: bool = False
    """Whether to measure the texts that were read, if the corpus has no text metrics."""
    perplexity: str | None = None
    """Model under which the perplexity of what was read is measured: RUN@step-N, a directory, or a name that --model
    accepts (default: only the recorded loss)."""
    seed: int = 0
    """Seed of the random halves and signs."""
    more_runs: Sequence[str] = ()
    """Further runs, whose metrics are judged in the same way and compared."""

    name: ClassVar[str] = "saturation"
    summary: ClassVar[str] = "when each metric stops changing, at which learning rate, and what was read until then"
    several: ClassVar[bool] = True
    switches: ClassVar[dict[str, str]] = {
        "csv": "Write the summary also as eval/saturation/summary.csv.",
        "metrics": "Measure the texts that were read, unless the corpus has text metrics.",
    }
    needs: ClassVar[tuple[Need, ...]] = (a_checkpoint, a_whole_record)

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise UserError(f"--margin {self.margin:g}: must be above 0 and below 1")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be at least 0")

    def work(self) -> int:
        """Number of samples that are scored under another model; without one, 1."""
        runs = [self.run, *map(RunDirectory.open, self.more_runs)]
        if len({run.path.resolve() for run in runs}) < len(runs):
            raise UserError("saturation: a run is named twice; name each run once")
        return sum(perplexity.size(run) for run in runs) if self.perplexity else 1

    def results(self, reporter: Reporter) -> Iterator[table.Row]:
        """Judge each metric; write fits, summary and figures. The other runs get their own tables."""
        other_runs = self._other_runs()
        judged = list(self._judged(reporter))
        tables = [(self.run.name, judged)]
        for other in other_runs:
            for need in other.needs:
                need(other.run)
            rows = list(other._judged(reporter))
            other.write(rows)
            tables.append((str(other.run.path), rows))
        for line in outputs.differences(tables, [self._curves, *(other._curves for other in other_runs)]):
            reporter.note(line)
        if other_runs:
            runs, curves = zip(*((each.run, each._curves) for each in (self, *other_runs)), strict=True)
            for line in outputs.write_bands(runs, curves):
                reporter.note(line)
        yield from judged

    def write(self, results: Sequence[Any]) -> None:
        """Write its table."""
        table.write(self.table(self.run), results)

    @classmethod
    def stored(cls, run: RunDirectory) -> list[Any]:
        """Rows of its table."""
        return table.read(path) if (path := cls.table(run)).exists() else []

    @classmethod
    def overview(cls, results: Sequence[Any]) -> tuple[list[str], list[list[object]]]:
        """The table, without the tokens."""
        heads = ["metric", "verdict", "step", "learning_rate", "p", "n"]
        return heads, [[p_value(row.p) if head == "p" else getattr(row, head) for head in heads] for row in results]

    @classmethod
    def section(cls, run: RunDirectory, results: Sequence[Any]) -> Section | None:
        """Verdicts, fits, and curves of what the model writes and reads."""
        from eval.saturation.section import section

        return section(run, results) if results else None

    def _judged(self, reporter: Reporter) -> Iterator[table.Row]:
        """Rows of this run; writes all of its other files."""
        fits = []
        for metric in self._curves:
            curve = metric.curve
            if (curve.values == curve.values[0, 0]).all():
                reporter.note(f"{curve.metric}: {curve.values[0, 0]:g} for every text at every checkpoint; no test")
            judgment = judge(curve, margin=self.margin, seed=self.seed)
            checkpoint = None if judgment.place is None else metric.checkpoints[judgment.place]
            yield table.Row(
                metric=curve.metric,
                verdict=judgment.verdict,
                step=checkpoint.step if checkpoint else None,
                tokens=checkpoint.tokens if checkpoint else None,
                learning_rate=self._rate(checkpoint) if checkpoint else None,
                n=judgment.n,
                p=judgment.p,
            )
            if metric.form:
                fits.append({"metric": curve.metric, **asdict(fit(curve, FORMS[metric.form]))})
        for last in sorted({metric.checkpoints[-1].step for metric in self._curves}):
            for line in beyond(self.run, last):
                reporter.note(line)
        outputs.write_fits(self.run, fits)
        if self.metrics:
            outputs.measure_read(self.run)
        if self.perplexity:
            outputs.measure_perplexity(self.run, self.perplexity, reporter)
        for note in outputs.write_summary(self.run, csv=self.csv):
            reporter.note(note)

    @cached_property
    def _schedule(self) -> tuple[Plan, OptimConfig]:
        """Plan of the run, and settings of its optimizer."""
        from wellread.planning.plan import Plan

        return Plan.open(self.run.plan_file), self.run.config().optim

    def _rate(self, checkpoint: Checkpoint) -> float:
        """Learning rate of the last batch that a checkpoint has learned from."""
        from wellread.planning.rate import planned_rate

        return planned_rate(max(0, checkpoint.step - 1), *self._schedule)

    @cached_property
    def _curves(self) -> list[MetricCurve]:
        return curves_of(self.run, [word.strip() for word in self.only.split(",")] if self.only else ())

    def _other_runs(self) -> list[Saturation]:
        """This evaluation of the other runs; UserError when two runs have no metric in common."""
        evaluations = []
        for name in self.more_runs:
            other = RunDirectory.open(name)
            other.refuse_links()
            evaluations.append(replace(self, run=other, more_runs=()))
        metrics = {metric.curve.metric for metric in self._curves}
        refuse_different_runs([(each.run, each._curves) for each in (self, *evaluations)])
        for each in evaluations:
            if not metrics & {metric.curve.metric for metric in each._curves}:
                raise UserError(f"{self.run.path} and {each.run.path}: no metric in common; evaluate both alike")
        return evaluations
