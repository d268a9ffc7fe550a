"""Lines over the steps of a run, with intervals as bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from wellread.plots.figure import Figure, rows, view
from wellread.plots.style import CATEGORIES, DASHES

if TYPE_CHECKING:
    from altair import Color, X, Y

    from wellread.results import Result

CLOSEST_LABELS = 0.07
"""Least distance between two labels of the axis of steps, as a part of its length."""
LONGEST_NAME = 320
"""Width of the longest name in a legend, in pixels; longer ones end with an ellipsis."""


class Point(NamedTuple):
    """A value at a step, with its interval if it has one."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, result: Result) -> Point:
        """The value of a result, with its interval."""
        return cls(result.step, result.value, result.ci_low, result.ci_high)


def step_curves(
    series: Mapping[str, Sequence[Point]],
    label: str,
    *,
    chance: float | None = None,
    colors: Sequence[str] = CATEGORIES,
) -> Figure:
    """One line per series (at most seven) over the steps, with its 95% intervals as a band.

    Parameters
    ----------
    series
        Name -> points in any order. At least one point in all.
    label
        Title of the vertical axis, with the unit.
    chance
        Value of a dashed horizontal line.
    colors
        One color of `style` per series.
    """
    import altair as alt

    assert len(series) <= len(CATEGORIES), "more series than colors: draw several figures"
    table = [row for name, points in series.items() if points for row in _rows(name, points)]
    names, singles = list(series), {name for name, points in series.items() if len(points) == 1}
    dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=names, range=list(DASHES[: len(names)])))
    y, low = value_axis(label, alt.Y("value:Q")), value_axis(label, alt.Y("low:Q"))
    x, color = step_axis(sorted({row["step"] for row in table})), color_of(names, colors)
    intervals = [row for row in table if row["low"] is not None]
    layers = [
        view([row for row in intervals if row["series"] not in singles]).mark_area().encode(y=low, y2="high:Q"),
        view([row for row in intervals if row["series"] in singles])  # a band needs two points
        .mark_rule(strokeDash=[1, 0], strokeWidth=2, opacity=0.4)
        .encode(y=low, y2="high:Q"),
        view(table).mark_line().encode(y=y, strokeDash=dash),
        view(table).mark_point().encode(y=y, tooltip=tooltips()),
    ]
    layers = [layer.encode(x=x, color=color) for layer in layers if layer.data.values]
    if chance is not None:
        layers.insert(0, view([{"value": chance}]).mark_rule().encode(y=y))
    return Figure(alt.layer(*layers))


def group_curves(
    results: Sequence[Result], metric: str, label: str, *, colors: Mapping[str, str], chance: float
) -> Figure:
    """`step_curves` of one metric, a line per group of `colors`; groups without results are omitted."""
    series = {group: [Point.of(r) for r in results if (r.metric, r.group) == (metric, group)] for group in colors}
    lines = {group: points for group, points in series.items() if points}
    return step_curves(lines, label, chance=chance, colors=[colors[group] for group in lines])


def _rows(name: str, points: Sequence[Point]) -> list[dict[str, Any]]:
    steps, values, low, high = zip(*sorted(points), strict=True)
    return rows(step=steps, value=values, low=low, high=high, series=name)


def value_axis(label: str, y: Y) -> Y:
    """A vertical axis that need not start at 0."""
    return y.title(label).scale(zero=False, nice=True)


def color_of(names: Sequence[str], colors: Sequence[str] = CATEGORIES, *, symbol: str = "stroke") -> Color:
    """Color by the column `series`; a `symbol` in the legend is a line unless it is another shape of Vega-Lite."""
    import altair as alt

    scale = alt.Scale(domain=list(names), range=list(colors[: len(names)]))
    return alt.Color("series:N", scale=scale, legend=alt.Legend(symbolType=symbol, labelLimit=LONGEST_NAME))


def tooltips() -> list[Any]:
    """What is shown at a point: series, step, value and interval."""
    import altair as alt

    value = [alt.Tooltip(f"{name}:Q", title=title, format=".4~g") for name, title in _PARTS]
    return [alt.Tooltip("series:N"), alt.Tooltip("step:Q", format=","), *value]


_PARTS = (("value", "value"), ("low", "from"), ("high", "to"))


def step_axis(steps: Sequence[int]) -> X:
    """Axis of the column `step`: linear around 0, logarithmic after the first checkpoint; shows 0.

    Parameters
    ----------
    steps
        All steps, ascending.
    """
    import altair as alt

    positive = [step for step in steps if step > 0]
    if not positive:
        return alt.X("step:Q").title("step").axis(values=list(steps), grid=False)
    place = {step: math.log1p(step / positive[0]) for step in steps}
    ticks = [steps[-1]]
    for step in reversed(steps):
        if place[ticks[-1]] - place[step] > CLOSEST_LABELS * place[steps[-1]]:  # otherwise labels overlap
            ticks.append(step)
    scale = alt.Scale(type="symlog", constant=positive[0], domain=[steps[0], steps[-1]], nice=False)
    axis = alt.Axis(values=ticks[::-1], format=",d", labelOverlap="greedy", grid=False)
    return alt.X("step:Q").title(f"step (logarithmic from step {positive[0]:,})").scale(scale).axis(axis)
