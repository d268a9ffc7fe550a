"""Figures of saturation: each output metric over the steps, each metric of what was read, and of each batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.saturation.summary import READ

if TYPE_CHECKING:
    from eval.separation import Floats
    from wellread.plots.curves import Point
    from wellread.plots.figure import Figure

SPANS = {f"{READ}interval": "since the previous checkpoint", f"{READ}cumulative": "since the start"}
"""Beginning of the names of columns of what was read -> name of the line."""


def figures_of(summary: Any) -> dict[str, Figure]:
    """Name of a file -> figure: `output-METRIC` with a line per group, `read-METRIC` per interval and cumulative.

    Parameters
    ----------
    summary
        The Arrow table of `eval.saturation.summary.summary`.
    """
    from wellread.plots.curves import step_curves

    columns = summary.to_pydict()
    figures: dict[str, dict[str, list[Point]]] = {}
    for name in columns:
        group, slash, metric = name.partition("/")
        if slash and not name.endswith(("_low", "_high")):
            side = "read" if group in SPANS else "output"
            figures.setdefault(f"{side}-{metric}", {})[SPANS.get(group, group)] = _points(columns, name)
    return {
        name: step_curves(series, _label(*name.split("-", 1)))
        for name, series in figures.items()
        if any(series.values())
    }


def batch_figures(batches: Mapping[str, Floats], steps: Sequence[int]) -> dict[str, Figure]:
    """`batch-METRIC` for each metric that some batch has.

    Parameters
    ----------
    batches
        Metric -> value of each batch, float64[batches]; NaN: none.
    steps
        Steps of the summary.
    """
    from wellread.plots.batches import batch_curve

    return {
        f"batch-{name}": batch_curve(values, steps, _label("read", name))
        for name, values in batches.items()
        if np.isfinite(values).any()
    }


def _points(columns: Mapping[str, list[Any]], name: str) -> list[Point]:
    from wellread.plots.curves import Point

    ends = [columns.get(f"{name}{end}", [None] * len(columns[name])) for end in ("_low", "_high")]
    places = zip(columns["step"], columns[name], *ends, strict=True)
    return [Point(*place) for place in places if place[1] is not None]


def _label(side: str, metric: str) -> str:
    words = metric.replace("_", " ")
    return f"{words} of what was read" if side == "read" else words
