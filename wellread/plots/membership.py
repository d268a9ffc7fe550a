"""Plots of how well a score distinguishes read samples from sealed ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from wellread.plots.histogram import histogram
from wellread.plots.style import BLUE, GREY, INK, ORANGE, Floats, Format, new_figure, render, step_axis

if TYPE_CHECKING:
    from wellread.results import Result

LOOK = {"read": (BLUE, "o", "-"), "not yet read": (ORANGE, "s", "--"), "shuffled": (GREY, "", ":")}
"""Color, marker and line style of each group that is compared with the sealed holdout."""


def auc_by_step(results: Sequence[Result], *, image: Format = "svg") -> bytes:
    """AUC by step, one line per group, with 95% confidence bands; groups without results are omitted."""
    with new_figure(7.2, 3.8) as figure:
        axes = figure.subplots()
        for group, (color, marker, line) in LOOK.items():
            rows = sorted((r for r in results if r.metric == "auc" and r.group == group), key=lambda r: r.step)
            if not rows:
                continue
            steps = [r.step for r in rows]
            axes.plot(steps, [r.value for r in rows], line, color=color, marker=marker, markersize=5, label=group)
            ends = [[r.value if end is None else end for r, end in pairs] for pairs in _ends(rows)]
            axes.fill_between(steps, *ends, color=color, alpha=0.16, linewidth=0)
        axes.axhline(0.5, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_ylabel("AUC against sealed")
        step_axis(axes, sorted({r.step for r in results if r.metric == "auc"}))
        axes.margins(y=0.12)
        axes.legend(loc="upper left")
        return render(figure, image)


def roc(fpr: Floats, tpr: Floats, *, nonmembers: int, image: Format = "svg") -> bytes:
    """ROC curve on linear axes and on log axes; the log axes show very low false-positive rates.

    Parameters
    ----------
    fpr, tpr
        False- and true-positive rates from (0, 0) to (1, 1), float[k] each, ascending.
    nonmembers
        Number of non-members: the curve has no points below a false-positive rate of 1 / nonmembers.
    """
    from matplotlib.ticker import FuncFormatter

    with new_figure(7.2, 3.7) as figure:
        linear, log = figure.subplots(1, 2)
        lowest = 1 / max(nonmembers, 10)
        for axes, start in ((linear, 0.0), (log, lowest)):
            chance = np.geomspace(lowest, 1, 50) if axes is log else np.array([0.0, 1.0])
            axes.plot(chance, chance, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="chance")
            axes.plot(fpr, tpr, color=BLUE, drawstyle="steps-post", label="read against sealed")
            axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
            axes.set(xlim=(start, 1), ylim=(start, 1.02))
            axes.set_box_aspect(1)
        log.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1.1))
        for axis in (log.xaxis, log.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        linear.legend(loc="lower right")
        return render(figure, image)


def score_histogram(groups: Mapping[str, Floats], *, image: Format = "svg") -> bytes:
    """Density of the scores of each group (at most four), over the same bins."""
    return histogram(groups, "mean log-likelihood per target token (nats)", 40, image)


def _ends(rows: Sequence[Result]) -> Iterator[list[tuple[Result, float | None]]]:
    yield [(row, row.ci_low) for row in rows]
    yield [(row, row.ci_high) for row in rows]
