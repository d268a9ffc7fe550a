"""Figure of the training loss of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wellread.plots.curves import color_of, value_axis
from wellread.plots.figure import Figure, rows, view
from wellread.plots.style import BLUE, DASHES, ORANGE, SKY, Floats, Ints

if TYPE_CHECKING:
    from altair import X

MAX_POINTS = 1000
"""Most points of a curve; more are not visible and only make the file larger."""
LABEL = "loss (nats per target token)"


def loss_curve(
    steps: Ints,
    losses: Floats,
    *,
    holdout: Sequence[tuple[int, float]] = (),
    reference: tuple[str, float] | None = None,
) -> Figure:
    """Training loss of each batch, its moving average, and the loss on the holdout at checkpoints.

    Parameters
    ----------
    steps, losses
        Number of batches read before each batch, int[k] ascending; mean loss per target of each batch, nats, float[k].
    holdout
        Pairs of step and mean loss, nats.
    reference
        Name and loss of a horizontal line to compare with, nats.
    """
    import altair as alt

    window = averaged(len(losses))
    keep = slice(None, None, -(-len(steps) // MAX_POINTS) or 1)
    looks = {"each batch": (SKY, 1.0), f"mean of {window} batches": (BLUE, 2.0), "sealed holdout": (ORANGE, 2.0)}
    batch, mean, sealed = looks
    tables = [rows(step=steps[keep], loss=losses[keep], series=batch)]
    if window > 1:
        tables.append(rows(step=steps[keep], loss=running_mean(losses, window)[keep], series=mean))
    if holdout:
        at, values = zip(*holdout, strict=True)
        tables.append(rows(step=at, loss=values, series=sealed))
    names = [str(table[0]["series"]) for table in tables]
    color = color_of(names, [looks[name][0] for name in names])
    encoding: dict[str, Any] = {"x": _steps(), "y": value_axis(LABEL, alt.Y("loss:Q")), "color": color}
    layers = [
        view(table).mark_line(strokeWidth=looks[name][1]).encode(**encoding)
        for name, table in zip(names, tables, strict=True)
    ]
    if holdout:
        tooltip = [alt.Tooltip("step:Q", format=","), alt.Tooltip("loss:Q", format=".4~g")]
        layers.append(view(tables[-1]).mark_point().encode(**encoding, tooltip=tooltip))
    if len(steps) == 1:
        layers.append(view(tables[0]).mark_point().encode(**encoding))
    if reference:
        layers += _reference(*reference)
    return Figure(alt.layer(*layers))


def compare_losses(runs: Mapping[str, tuple[Ints, Floats]]) -> Figure:
    """Moving average of the training loss of several runs (at most seven): name -> steps, losses as in `loss_curve`."""
    import altair as alt

    table: list[dict[str, Any]] = []
    for name, (steps, losses) in runs.items():
        keep = slice(None, None, -(-len(steps) // MAX_POINTS) or 1)
        table += rows(step=steps[keep], loss=running_mean(losses, averaged(len(losses)))[keep], series=name)
    dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=list(runs), range=list(DASHES[: len(runs)])))
    y = value_axis(LABEL, alt.Y("loss:Q"))
    return Figure(view(table).mark_line().encode(x=_steps(), y=y, color=color_of(list(runs)), strokeDash=dash))


def _steps() -> X:
    import altair as alt

    return alt.X("step:Q").title("step").scale(nice=False).axis(format=",d", tickMinStep=1, grid=False)


def averaged(batches: int) -> int:
    """Batches of the moving average: an odd number, the same number of batches on both sides."""
    return min(max(5, batches // 25), batches) | 1


def _reference(name: str, loss: float) -> list[Any]:
    """A dashed line and its name."""
    import altair as alt

    base = view(rows(loss=[loss], name=[name])).encode(y=alt.Y("loss:Q"))
    text = base.mark_text(align="right", baseline="bottom", dy=-3, fontSize=12).encode(
        x=alt.value("width"), text="name:N"
    )
    return [base.mark_rule(), text]


def running_mean(values: Floats, window: int) -> Floats:
    """Mean of the `window` values around each value, fewer near the ends; float[k]."""
    half, total = window // 2, np.concatenate([[0.0], np.cumsum(values)])
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.asarray((total[stop] - total[start]) / (stop - start))
