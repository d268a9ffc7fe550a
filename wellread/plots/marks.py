"""Figure of whether each checkpoint has learned which forms coins picked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wellread.plots.curves import group_curves
from wellread.plots.style import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from wellread.plots.figure import Figure
    from wellread.results import Result

COLORS = {"read": BLUE, "unread": ORANGE, "sealed": GREY}


def excess_by_step(results: Sequence[Result]) -> Figure:
    """How much more likely the forms are that coins picked, a line per group of samples."""
    return group_curves(results, "excess", "excess of the picked form (nats)", colors=COLORS, chance=0.0)
