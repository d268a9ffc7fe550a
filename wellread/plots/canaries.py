"""Figure of which canaries each checkpoint remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wellread.plots.curves import Point, step_curves
from wellread.plots.style import CATEGORIES
from wellread.units import plural

if TYPE_CHECKING:
    from wellread.plots.figure import Figure
    from wellread.results import Result


def found_by_step(results: Sequence[Result], level: float) -> Figure:
    """Share of canaries with a p-value up to `level`, a line per dose: the seven with the most readings."""
    series: dict[int, list[Point]] = {}
    for each in results:
        if (each.metric, each.group) == ("found", "all"):
            series.setdefault(int(each.task.rpartition("_")[2]), []).append(Point.of(each))
    doses = sorted(series)[-len(CATEGORIES) :]
    lines = {plural(dose, "reading"): series[dose] for dose in doses}
    return step_curves(lines, f"share of canaries with p up to {level:g}", chance=level)
