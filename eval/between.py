"""How several runs differ: mean, range and standard deviation of each metric over them, at the steps that all have.

For runs that differ only in their seed, this is what chance makes of a metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.section import Table

if TYPE_CHECKING:
    from pathlib import Path

    from wellread.plots.figure import Figure
    from wellread.run import RunDirectory

Values = Mapping[str, Mapping[int, float]]
"""Metric of a run, e.g. `greedy/words` -> step -> value."""
OF_SEEDS = {"seed", "order.seed", "order.ids", "order.canaries", "order.inserted"}
"""Keys of the identity of a run that follow from its seed."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """One metric of several runs at one step."""

    metric: str
    step: int
    mean: float
    low: float
    """Value of the lowest run."""
    high: float
    sd: float
    """Standard deviation between runs, with n - 1 in the denominator."""
    runs: int


def bands(runs: Sequence[Values]) -> list[Band]:
    """The bands of two or more runs: of each metric that all have, at each step that all have; steps ascend."""
    assert len(runs) > 1
    rows = []
    for metric in runs[0]:
        if not all(metric in run for run in runs):
            continue
        for step in sorted(set[int].intersection(*(set(run[metric]) for run in runs))):
            values = np.array([run[metric][step] for run in runs])
            low, high, mean, sd = (float(f(values)) for f in (np.min, np.max, np.mean, _sd))
            rows.append(Band(metric=metric, step=step, mean=mean, low=low, high=high, sd=sd, runs=len(runs)))
    return rows


def figures_of(rows: Sequence[Band]) -> dict[str, Figure]:
    """Metric without its group -> figure: a line with the mean of each group, a band from lowest to highest run."""
    from wellread.plots.curves import Point, step_curves

    series: dict[str, dict[str, list[Point]]] = {}
    for row in rows:
        group, _, metric = row.metric.rpartition("/")
        series.setdefault(metric, {}).setdefault(group, []).append(Point(row.step, row.mean, row.low, row.high))
    return {
        metric: step_curves(of_groups, f"{metric.replace('_', ' ')}, mean and range of runs")
        for metric, of_groups in series.items()
    }


def table_of(rows: Sequence[Band]) -> Table:
    """The bands at the last step of each metric."""
    last = {row.metric: row for row in rows}
    return Table(
        f"Metrics of {rows[0].runs} runs at the last step that all have",
        ("metric", "step", "mean", "lowest", "highest", "SD between runs"),
        [[row.metric, row.step, row.mean, row.low, row.high, row.sd] for row in last.values()],
    )


def write(path: Path, rows: Sequence[Band], runs: Sequence[RunDirectory]) -> None:
    """Write the bands as Parquet, atomically; the metadata `runs` has the paths of the runs, one per line."""
    import pyarrow as pa

    from wellread.results import write_table

    real = ("mean", "low", "high", "sd")
    types = {"metric": pa.string(), "step": pa.int64(), **dict.fromkeys(real, pa.float64()), "runs": pa.int64()}
    about = {"runs": "\n".join(str(run.path) for run in runs)}
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()], metadata=about)
    write_table(path, pa.Table.from_pylist([asdict(row) for row in rows], schema=schema))


def other_differences(runs: Sequence[RunDirectory]) -> list[str]:
    """Settings in the identities of runs that differ although they do not follow from the seed."""
    identities = [dict(_flat(run.manifest()["identity"])) for run in runs]
    keys = dict.fromkeys(key for identity in identities for key in identity)
    return [key for key in keys if key not in OF_SEEDS and len({str(each.get(key)) for each in identities}) > 1]


def _sd(values: Any) -> float:
    return float(np.std(values, ddof=1))


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
