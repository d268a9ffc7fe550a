"""Figure of what is left of readings at each checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wellread.plots.curves import Point, step_curves
from wellread.plots.style import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from wellread.plots.figure import Figure
    from wellread.results import Result

SERIES = {"read": ("difference", "read", BLUE), "control: unread": ("difference", "unread", ORANGE)}
"""Name in the legend -> metric, group, color."""
WITHOUT_RECORD = {"read, without the record": ("plain_difference", "read", GREY)}


def forgetting_by_step(results: Sequence[Result]) -> Figure:
    """Difference of read samples and of the control by step, and the plain difference, with 95% bands."""
    series, colors = {}, []
    for name, (metric, group, color) in (SERIES | WITHOUT_RECORD).items():
        points = [Point.of(each) for each in results if (each.metric, each.group) == (metric, group)]
        if points:
            series[name] = points
            colors.append(color)
    return step_curves(series, "difference from sealed (nats per token)", chance=0.0, colors=colors)
