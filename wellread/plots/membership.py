"""Figures of how well a score distinguishes read samples from sealed ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from wellread.plots.curves import color_of, group_curves
from wellread.plots.figure import Figure, rows, view
from wellread.plots.histogram import histogram
from wellread.plots.style import BLUE, GREY, ORANGE, Floats

if TYPE_CHECKING:
    from wellread.results import Result

COLORS = {"read": BLUE, "unread": ORANGE, "shuffled": GREY}
"""Color of each group that is compared with the sealed holdout."""


def auc_by_step(results: Sequence[Result], *, suspect: bool = False) -> Figure:
    """AUC by step, one line per group, with 95% confidence bands; groups without results are omitted.

    Parameters
    ----------
    suspect
        Whether the axis says that the groups can be distinguished without the model.
    """
    label = "AUC against sealed" + " (ground truth suspect)" * suspect
    return group_curves(results, "auc", label, colors=COLORS, chance=0.5)


def roc(fpr: Floats, tpr: Floats, *, nonmembers: int, log: bool = False) -> Figure:
    """ROC curve on linear or on log axes; log axes show very low false-positive rates.

    Parameters
    ----------
    fpr, tpr
        False- and true-positive rates from (0, 0) to (1, 1), float[k] each, ascending.
    nonmembers
        Number of non-members: the curve has no points below a false-positive rate of 1 / nonmembers.
    log
        Whether both axes are logarithmic; they start at a rate of 1 / nonmembers.
    """
    import altair as alt

    lowest = 1 / max(nonmembers, 10) if log else 0.0
    scale = alt.Scale(type="log" if log else "linear", domain=[lowest, 1], nice=False, clamp=True)
    axis = alt.Axis(format="~g", values=_decades(lowest)) if log else alt.Axis(format=".1f")
    x = alt.X("fpr:Q").title("false-positive rate").scale(scale).axis(axis)
    y = alt.Y("tpr:Q").title("true-positive rate").scale(scale).axis(axis)
    names = ["read against sealed", "chance"]
    color = color_of(names, [BLUE, GREY])
    dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=names, range=[[1, 0], [4, 3]]))
    diagonal = np.array([lowest, 1.0])
    curve, chance = rows(fpr=fpr, tpr=tpr, series=names[0]), rows(fpr=diagonal, tpr=diagonal, series=names[1])
    layers = [
        view(chance).mark_line(strokeWidth=1.2),
        view(curve).mark_line(interpolate="step-after"),
    ]
    return Figure(alt.layer(*(layer.encode(x=x, y=y, color=color, strokeDash=dash) for layer in layers)), height=400)


def rocs(curves: Mapping[str, tuple[Floats, Floats]]) -> Figure:
    """ROC curves of several models (at most seven in color) on linear axes.

    Parameters
    ----------
    curves
        Name -> false- and true-positive rates from (0, 0) to (1, 1), float[k] each, ascending.
    """
    import altair as alt

    table = [row for name, (fpr, tpr) in curves.items() for row in rows(fpr=fpr, tpr=tpr, series=name)]
    scale = alt.Scale(domain=[0, 1], nice=False)
    x = alt.X("fpr:Q").title("false-positive rate").scale(scale)
    y = alt.Y("tpr:Q").title("true-positive rate").scale(scale)
    diagonal = view(rows(fpr=np.array([0.0, 1.0]), tpr=np.array([0.0, 1.0]))).mark_line(color=GREY, strokeDash=[4, 3])
    lines = view(table).mark_line(interpolate="step-after").encode(x=x, y=y, color=color_of(list(curves)))
    return Figure(alt.layer(diagonal.encode(x=x, y=y), lines), height=400)


def _decades(lowest: float) -> list[float]:
    """Powers of ten from `lowest` to 1."""
    return [10.0**power for power in range(int(np.ceil(np.log10(lowest))), 1)]


def score_histogram(groups: Mapping[str, Floats]) -> Figure:
    """Density of the scores of each group (at most four), over the same bins."""
    return histogram(groups, "mean log-likelihood per target token (nats)", 40)
