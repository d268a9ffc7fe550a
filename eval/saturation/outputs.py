"""What saturation writes next to its table: fits, the summary, figures; and how several runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eval import between
from eval.saturation import perplexity
from eval.saturation.inputs import InputMeans, batch_means, input_means
from eval.saturation.measured import measure, metrics_of, read_samples
from eval.saturation.summary import summary
from wellread.units import plural

if TYPE_CHECKING:
    from pathlib import Path

    from eval.progress import Reporter
    from eval.saturation.collect import MetricCurve
    from eval.saturation.table import Row
    from eval.separation import Floats
    from wellread.record.reader import Record
    from wellread.results import Result
    from wellread.run import RunDirectory

SUMMARY = "summary.parquet"
NUMBERS = ("chi2", "chi2_p", "runs_p", "asymptote", "ci_low", "ci_high")


def folder(run: RunDirectory) -> Path:
    """Directory of the files next to the table."""
    return run.eval / "saturation"


def write_fits(run: RunDirectory, fits: Sequence[dict[str, Any]]) -> None:
    """Write `fits.parquet`: a row per metric that has a form, with its verdict; undefined numbers are null."""
    import pyarrow as pa

    from wellread.results import write_table

    text, real = pa.string(), pa.float64()
    fields = [pa.field(name, text, nullable=False) for name in ("metric", "form", "verdict", "reason")]
    schema = pa.schema([*fields, *(pa.field(name, real) for name in NUMBERS)])
    rows = [row | {name: row[name] if isfinite(row[name]) else None for name in NUMBERS} for row in fits]
    write_table(folder(run) / "fits.parquet", pa.Table.from_pylist(rows, schema=schema))


def write_summary(run: RunDirectory, *, csv: bool) -> Iterator[str]:
    """Write the summary, its figures, and the means of each batch; yield what is missing, and what adds it."""
    from io import BytesIO

    from pyarrow.csv import write_csv

    from eval.generations.evaluation import Generations
    from eval.saturation.figures import batch_figures, figures_of
    from wellread.files import write_atomic
    from wellread.plots.figure import unchecked
    from wellread.results import write_table

    results, read = list(Generations.of_kept(run)), WhatWasRead.of(run)
    rows, batches = summary(results, inputs_of(read, results)), batch_means(*read)
    _write_batches(run, batches)
    write_table(folder(run) / SUMMARY, rows)
    if csv:
        buffer = BytesIO()
        write_csv(rows, buffer)
        write_atomic(folder(run) / "summary.csv", buffer.getvalue())
    with unchecked():
        figures = figures_of(rows) | batch_figures(batches, rows.column("step").to_pylist())
        for name, figure in figures.items():
            write_atomic(folder(run) / f"{name}.png", figure.png())
    yield from missing_metrics(run, read)


def measure_read(run: RunDirectory) -> None:
    """Measure the texts that a run has read, unless its corpus has text metrics."""
    from wellread.corpus.read import Corpus
    from wellread.data import sample_metrics
    from wellread.record.reader import Record

    corpus = Corpus.open(run.corpus)
    if not sample_metrics.has(corpus):
        measure(run, corpus, Record.open(run.record))


def measure_perplexity(run: RunDirectory, model: str, reporter: Reporter) -> None:
    """Measure the perplexity of what a run has read under a model."""
    from wellread.corpus.read import Corpus
    from wellread.record.reader import Record

    perplexity.measure(run, Corpus.open(run.corpus), Record.open(run.record), model, reporter)


def _write_batches(run: RunDirectory, batches: Mapping[str, Floats]) -> None:
    """Write `batches.parquet`: a row per batch with the means of what it has read; null for skipped batches."""
    import pyarrow as pa

    from wellread.results import write_table

    columns = {name: pa.array(values, from_pandas=True) for name, values in batches.items()}
    size = len(next(iter(columns.values()), []))
    write_table(folder(run) / "batches.parquet", pa.table({"batch": range(size), **columns}))


class WhatWasRead(NamedTuple):
    """The record of a run, and what is known of its samples: `eval.saturation.inputs` has the means."""

    record: Record
    metrics: Mapping[str, Floats]
    log_likelihoods: Mapping[str, Floats]
    """Under the models that were measured."""

    @classmethod
    def of(cls, run: RunDirectory) -> WhatWasRead:
        """Open record, corpus and metrics of a run; once for all that is written about them."""
        from wellread.corpus.read import Corpus
        from wellread.record.reader import Record

        corpus = Corpus.open(run.corpus)
        return cls(Record.open(run.record), metrics_of(run, corpus), perplexity.likelihoods(run, corpus))


def inputs_of(read: WhatWasRead, results: Sequence[Result]) -> dict[str, InputMeans]:
    """Input metrics of a run, at the steps that have output metrics; empty without such steps.

    Parameters
    ----------
    results
        The results of its generations.
    """
    steps = sorted({result.step for result in results})
    return input_means(read.record, steps, read.metrics, read.log_likelihoods) if steps else {}


def missing_metrics(run: RunDirectory, read: WhatWasRead) -> Iterator[str]:
    """The command that adds text metrics to what a run has read, if there are none; and metrics that are incomplete."""
    import shlex

    from wellread.data import text_metrics

    if text_metrics.NAMES[0] not in read.metrics:
        yield (
            "what was read has no text metrics, only losses; to add them: "
            f"wellread saturation {shlex.quote(str(run.path))} --metrics"
        )
    yield from _incomplete(read.record, {**read.metrics, **read.log_likelihoods})


def _incomplete(record: Record, values: Mapping[str, Floats]) -> Iterator[str]:
    """Names of metrics that some samples do not have that were read, such as those read after they were measured."""
    if not values:
        return
    ids = read_samples(record, len(next(iter(values.values()))))
    by_number: dict[int, list[str]] = {}
    for name, of_samples in values.items():
        by_number.setdefault(int(np.isnan(of_samples[ids]).sum()), []).append(name)
    for number, names in by_number.items():
        if number:
            yield (
                f"{', '.join(names)}: {number:,} of {plural(len(ids), 'sample')} that the run has read have no value "
                "and are not in the means"
            )


def differences(tables: Sequence[tuple[str, Sequence[Row]]], curves: Sequence[Sequence[MetricCurve]]) -> Iterator[str]:
    """How the verdicts and the last means of several runs differ, a line for each metric that all of them have."""
    if len(tables) < 2:
        return
    last = [{metric.curve.metric: float(metric.curve.means[-1]) for metric in of_run} for of_run in curves]
    by_metric = [{row.metric: row for row in rows} for _, rows in tables]
    for metric in by_metric[0]:
        if all(metric in rows for rows in by_metric):
            verdicts = [_words(rows[metric]) for rows in by_metric]
            ends = [means[metric] for means in last]
            parts = ", ".join(f"{name}: {words}" for (name, _), words in zip(tables, verdicts, strict=True))
            yield f"{metric}: {parts}; at the end {min(ends):.4g} to {max(ends):.4g}"


def write_bands(runs: Sequence[RunDirectory], curves: Sequence[Sequence[MetricCurve]]) -> Iterator[str]:
    """Write how several runs differ, as `runs.parquet` and figures of the first; yield what must be known about it.

    Parameters
    ----------
    curves
        The metrics of each run.
    """
    from wellread.files import write_atomic

    rows = between.bands([_means(of_run) for of_run in curves])
    target = folder(runs[0])
    between.write(target / "runs.parquet", rows, runs)
    for metric, figure in between.figures_of(rows).items():
        write_atomic(target / f"runs-{metric}.png", figure.png())
    if not rows:
        yield "the runs have no step in common, so there is no band between them"
    if settings := between.other_differences(runs):
        yield f"the runs differ not only in their seed, but also in {', '.join(settings)}"


def _means(curves: Sequence[MetricCurve]) -> between.Values:
    return {
        each.curve.metric: dict(zip(each.curve.steps.tolist(), each.curve.means.tolist(), strict=True))
        for each in curves
    }


def _words(row: Row) -> str:
    return row.verdict if row.step is None else f"{row.verdict} at step {row.step:,}"
