"""Figures of saturation: each output metric over the steps, and each metric of what was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eval.saturation.inputs import InputMeans

if TYPE_CHECKING:
    from wellread.plots.figure import Figure
    from wellread.results import Result


def figures_of(results: Sequence[Result], inputs: Mapping[str, InputMeans]) -> dict[str, Figure]:
    """Name of a file -> figure: `output-METRIC` with a line per group, `read-METRIC` per interval and cumulative."""
    from wellread.plots.curves import Point, step_curves

    figures = {}
    for metric in dict.fromkeys(result.metric for result in results):
        series: dict[str, list[Point]] = {}
        for result in (each for each in results if each.metric == metric):
            points = series.setdefault(result.group, [])
            points.append(Point.of(result))
        figures[f"output-{metric}"] = step_curves(series, metric.replace("_", " "))
    steps = sorted({result.step for result in results})
    for metric, means in inputs.items():
        spans = {"since the previous checkpoint": means.interval, "since the start": means.cumulative}
        series = {
            name: [Point(step, float(value)) for step, value in zip(steps, values, strict=True) if value == value]
            for name, values in spans.items()
        }
        if any(series.values()):
            figures[f"read-{metric}"] = step_curves(series, f"{metric.replace('_', ' ')} of what was read")
    return figures
