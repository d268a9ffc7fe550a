"""Memorization in the report: what can be extracted, and whether what was read late is memorized more."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval.groups import READ
from eval.section import Picture, Section, Table, p_value

if TYPE_CHECKING:
    from wellread.results import Result
    from wellread.run import RunDirectory

BLOCK = "block:"
"""Groups with the counts of blocks of samples, in the order of reading."""
ORDER = ("step", "memorized", "p", "rate at the end / at the start", "from", "to", "detectable", "power of the plot")


def section(
    run: RunDirectory, results: Sequence[Result], heads: Sequence[str], rows: Sequence[Sequence[object]]
) -> Section:
    """The section of a run whose results are `rows` below `heads`."""
    order = list(order_rows(results))
    tables = [Table("Results of memorization", heads, rows)]
    if order:
        tables.append(
            Table(
                "Training order: is what is read late memorized more? p by permutation; the rate is that of "
                "extractible samples; detectable: the smallest ratio seen with probability 80%; power of the plot: "
                "probability that the Q-Q plot deviates at that ratio",
                ORDER,
                order,
            )
        )
    return Section(
        heading="Memorization: which samples can be extracted from each checkpoint, greedy, or in n draws?",
        n=f"{max((each.n for each in results), default=0):,} samples in the largest group; "
        f"{len(results):,} results in eval/memorization.parquet.",
        help="0 of N comes with its 95% upper limit, from the number of documents; sealed samples are the control, "
        "since what is extracted there was guessed.",
        tables=tables,
        pictures=list(_pictures(results)),
        commands=[
            (
                "Extract from all checkpoints and write this page again",
                f"wellread memorization {shlex.quote(str(run.path))}",
            )
        ],
    )


def order_rows(results: Sequence[Result]) -> Iterator[list[object]]:
    """One row per checkpoint whose order was tested."""
    of = {(each.step, each.metric): each for each in results if each.group == READ}
    for step in sorted({each.step for each in results if each.metric == "order_p"}):
        ratio = of.get((step, "order_ratio"))
        ends = [ratio.value, ratio.ci_low, ratio.ci_high] if ratio else [None, None, None]
        memorized = sum(each.value for each in blocks(results, step))
        more = [of[step, name].value for name in ("order_detectable", "order_plot_power")]
        yield [f"{step}", int(memorized), p_value(of[step, "order_p"].value), *ends, *more]


def blocks(results: Sequence[Result], step: int) -> list[Result]:
    """Counts of the blocks of a checkpoint, in the order of reading."""
    return [each for each in results if each.step == step and each.group.startswith(BLOCK)]


def _pictures(results: Sequence[Result]) -> Iterator[Picture]:
    last = max((each.step for each in results), default=0)
    counts = np.array([round(each.value) for each in blocks(results, last)], dtype=np.int64)
    if counts.sum():
        from wellread.plots.memorization import poisson_qq

        yield Picture(
            f"Memorized samples of {counts.size} blocks at step {last:,}",
            poisson_qq(counts),
            f"Q-Q plot of {counts.size} counts, {counts.min()} to {counts.max()}, mean {counts.mean():.3g}, variance "
            f"{counts.var(ddof=1) if counts.size > 1 else 0:.3g}.",
            "Blocks of samples in the order of reading; larger points are several blocks. Points on the line are as a "
            "Poisson distribution predicts. A trend hardly shows here: see the table for p and for the power of both.",
        )
