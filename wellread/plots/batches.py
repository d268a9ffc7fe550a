"""Figure of a value of each batch of a run, over the steps of its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wellread.plots.curves import color_of, step_axis, tooltips, value_axis
from wellread.plots.figure import Figure, rows, view
from wellread.plots.loss import MAX_POINTS, averaged, running_mean
from wellread.plots.style import BLUE, SKY, Floats, Ints

EACH = "each batch"


def batch_curve(values: Floats, checkpoints: Sequence[int], label: str) -> Figure:
    """The value of each batch as a small point, and a running mean, on the axis of `step_curves` of the same run.

    Of long runs, batches are shown that are evenly spaced on the axis; the mean is over all batches.

    Parameters
    ----------
    values
        Value of each batch, float64[batches], at least one of them finite; others are left out, as skipped batches.
        Batch b is at step b, the number of batches read before it.
    checkpoints
        Steps of the checkpoints.
    label
        Title of the vertical axis, with the unit.
    """
    import altair as alt

    defined = np.flatnonzero(np.isfinite(values))
    assert defined.size, "no batch has a value"
    ticks = sorted({0, *checkpoints, max(len(values) - 1, *checkpoints, 0)})
    points = defined[_evenly(defined, min((step for step in ticks if step > 0), default=1))]
    window = averaged(defined.size)
    mean, parts = f"mean of {window} batches", [rows(step=points, value=values[points], series=EACH)]
    if window > 1:
        means = np.interp(points, defined, running_mean(values[defined], window))
        parts.append(rows(step=points, value=means, series=mean))
    color = color_of([EACH, mean][: len(parts)], [SKY, BLUE])
    encoding: dict[str, Any] = {"x": step_axis(ticks), "y": value_axis(label, alt.Y("value:Q")), "color": color}
    layers = [
        view(parts[0]).mark_circle(size=9, opacity=1, fillOpacity=0.55).encode(**encoding, tooltip=tooltips()[:3])
    ]
    layers += [view(part).mark_line().encode(**encoding) for part in parts[1:]]
    return Figure(alt.layer(*layers))


def _evenly(steps: Ints, linear_until: int) -> Ints:
    """Places of at most `MAX_POINTS` steps that are evenly spaced on an axis that is linear until a step, then log."""
    if steps.size <= MAX_POINTS:
        return np.arange(steps.size)
    on_axis = np.log1p(steps / linear_until)
    evenly = np.linspace(on_axis[0], on_axis[-1], MAX_POINTS)
    return np.unique(np.searchsorted(on_axis, evenly).clip(max=steps.size - 1))
