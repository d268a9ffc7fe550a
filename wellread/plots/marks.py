"""Figure of whether each checkpoint has learned which forms coins picked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wellread.plots.curves import Point, step_curves
from wellread.plots.style import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from wellread.plots.figure import Figure
    from wellread.results import Result

COLORS = {"read": BLUE, "unread": ORANGE, "sealed": GREY}


def excess_by_step(results: Sequence[Result]) -> Figure:
    """How much more likely the forms are that coins picked, a line per group of samples."""
    series = {
        group: [Point.of(each) for each in results if (each.metric, each.group) == ("excess", group)]
        for group in COLORS
    }
    lines = {group: points for group, points in series.items() if points}
    colors = [COLORS[group] for group in lines]
    return step_curves(lines, "excess of the picked form (nats)", chance=0.0, colors=colors)
