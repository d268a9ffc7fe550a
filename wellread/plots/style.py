"""Common style and helpers of all plots: figures, step axes, and rendering to bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Format = Literal["png", "svg"]
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#767676", "#222222"
"""Okabe & Ito 2008; distinguishable with color blindness and in grayscale."""
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "path",
    "svg.hashsalt": "wellread",  # makes the bytes reproducible
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """A new figure in this module's style, created without pyplot and without a display."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        yield Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def render(figure: Any, image: Format) -> bytes:
    """The figure as an image; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    no_date = {"Date": None} if image == "svg" else {"Software": None}
    figure.savefig(buffer, format=image, metadata=no_date)
    return buffer.getvalue()


def step_axis(axes: Any, steps: Sequence[int]) -> None:
    """Symmetric log axis with its label: linear from step 0 to the first checkpoint, logarithmic after it."""
    from matplotlib.ticker import NullLocator

    axes.set_xlabel("step")
    positive = [step for step in steps if step > 0]
    if not positive:
        return
    axes.set_xlabel(f"step (logarithmic from step {positive[0]:,})")
    linear_part = 0.4
    axes.set_xscale("symlog", linthresh=positive[0], linscale=linear_part)
    place = {step: linear_part + np.log10(step / positive[0]) if step else 0.0 for step in steps}
    ticks = [steps[-1]]
    for step in reversed(steps):
        if place[ticks[-1]] - place[step] > 0.07 * place[steps[-1]]:  # otherwise labels overlap
            ticks.append(step)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(left=-0.08 * positive[0])
