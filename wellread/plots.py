"""The one plotting module: numbers in, the bytes of a picture out. No title and no names, so nothing to escape."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from wellread.results import Result

Format = Literal["png", "svg"]
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#767676", "#222222"
"""Okabe & Ito 2008, told apart with any colour vision and in grey."""
LOOK = {"read": (BLUE, "o", "-"), "not yet read": (ORANGE, "s", "--"), "shuffled": (GREY, "", ":")}
"""Colour, marker and line of the groups that are compared with the sealed holdout."""
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
    "svg.hashsalt": "wellread",  # the same picture gives the same bytes
}
MAX_POINTS = 2000
"""Points of a raw curve; more cannot be seen and only make the file heavy."""


def loss_curve(
    steps: Ints,
    losses: Floats,
    *,
    holdout: Sequence[tuple[int, float]] = (),
    reference: tuple[str, float] | None = None,
    image: Format = "svg",
) -> bytes:
    """Training loss of each batch, its running mean, and the holdout's loss at checkpoints.

    Parameters
    ----------
    steps, losses
        Batches read before each batch, int[k] ascending, and its mean loss per target token, nats, float[k].
    holdout
        Pairs of step and mean loss, nats.
    reference
        Name and loss of a level to be compared with, nats.
    """
    from matplotlib.ticker import MaxNLocator

    window = min(max(5, len(losses) // 25), len(losses)) | 1  # odd: as many before as after
    with _figure(7.2, 3.8) as figure:
        axes = figure.subplots()
        keep = slice(None, None, -(-len(steps) // MAX_POINTS) or 1)
        axes.plot(steps[keep], losses[keep], color=BLUE, alpha=0.4, linewidth=1, label="each batch")
        if window > 1:
            axes.plot(steps[keep], _running_mean(losses, window)[keep], color=BLUE, label=f"mean of {window} batches")
        if holdout:
            points = np.array(holdout)
            axes.plot(points[:, 0], points[:, 1], color=ORANGE, marker="o", markersize=5, label="sealed holdout")
        if reference:
            axes.axhline(reference[1], color=INK, linewidth=1, linestyle=(0, (4, 3)), label=reference[0])
        axes.set(xlabel="step", ylabel="loss (nats per target token)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.02)
        axes.legend()
        return _bytes(figure, image)


def auc_by_step(results: Sequence[Result], *, image: Format = "svg") -> bytes:
    """AUC against the step, one line per group, with 95% intervals as bands; groups without results are left out."""
    with _figure(7.2, 3.8) as figure:
        axes = figure.subplots()
        for group, (colour, marker, line) in LOOK.items():
            rows = sorted((r for r in results if r.metric == "auc" and r.group == group), key=lambda r: r.step)
            if not rows:
                continue
            steps = [r.step for r in rows]
            axes.plot(steps, [r.value for r in rows], line, color=colour, marker=marker, markersize=5, label=group)
            ends = [[r.value if end is None else end for r, end in pairs] for pairs in _ends(rows)]
            axes.fill_between(steps, *ends, color=colour, alpha=0.16, linewidth=0)
        axes.axhline(0.5, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set(xlabel="step", ylabel="AUC against sealed")
        _step_axis(axes, sorted({r.step for r in results if r.metric == "auc"}))
        axes.margins(y=0.12)
        axes.legend(loc="upper left")
        return _bytes(figure, image)


def roc(fpr: Floats, tpr: Floats, *, nonmembers: int, image: Format = "svg") -> bytes:
    """ROC curve twice: on linear axes, and on log axes, where the few safest guesses can be seen.

    Parameters
    ----------
    fpr, tpr
        Rates from (0, 0) to (1, 1), float[k] each, ascending.
    nonmembers
        Number of non-members: below 1 / nonmembers there is nothing to see.
    """
    from matplotlib.ticker import FuncFormatter

    with _figure(7.2, 3.7) as figure:
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
        return _bytes(figure, image)


def score_histogram(groups: Mapping[str, Floats], *, image: Format = "svg") -> bytes:
    """Scores of each group (at most four), as densities over the same bins."""
    return _histogram(groups, "mean log-likelihood per target token (nats)", 40, image)


def length_histogram(groups: Mapping[str, Ints], *, image: Format = "svg") -> bytes:
    """Lengths in tokens of the samples of each group (at most four), as densities over the same bins."""
    return _histogram(groups, "tokens per sample", 50, image)


def _histogram(groups: Mapping[str, NDArray[Any]], label: str, bins: int, image: Format) -> bytes:
    values = np.concatenate(list(groups.values()))
    edges = np.histogram_bin_edges(values, bins)
    if np.issubdtype(values.dtype, np.integer):  # whole bins: else some hold more whole numbers than others
        width = max(1, -(-int(np.ptp(values) + 1) // bins))
        edges = np.arange(values.min(), values.max() + width + 1, width) - 0.5
    with _figure(7.2, 3.4) as figure:
        axes = figure.subplots()
        for (group, scores), colour in zip(groups.items(), (BLUE, ORANGE, GREEN, PURPLE), strict=False):
            density, _ = np.histogram(scores, edges, density=True)
            axes.stairs(density, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(density, edges, color=colour, linewidth=1.6, label=f"{group} ({len(scores):,})")
        axes.set(xlabel=label, ylabel="density")
        axes.legend()
        return _bytes(figure, image)


def _ends(rows: Sequence[Result]) -> Iterator[list[tuple[Result, float | None]]]:
    yield [(row, row.ci_low) for row in rows]
    yield [(row, row.ci_high) for row in rows]


def _running_mean(values: Floats, window: int) -> Floats:
    """Mean of `window` values around each, of fewer near the ends; float[k]."""
    half, total = window // 2, np.concatenate([[0.0], np.cumsum(values)])
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.asarray((total[stop] - total[start]) / (stop - start))


def _step_axis(axes: Any, steps: Sequence[int]) -> None:
    """Symmetric log axis: step 0 is there, and beyond the first checkpoint the steps are on a log scale."""
    from matplotlib.ticker import NullLocator

    positive = [step for step in steps if step > 0]
    if not positive:
        return
    linear_part = 0.4
    axes.set_xscale("symlog", linthresh=positive[0], linscale=linear_part)
    place = {step: linear_part + np.log10(step / positive[0]) if step else 0.0 for step in steps}
    ticks = [steps[-1]]
    for step in reversed(steps):
        if place[ticks[-1]] - place[step] > 0.07 * place[steps[-1]]:  # else the labels touch
            ticks.append(step)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(left=-0.08 * positive[0])


@contextmanager
def _figure(width: float, height: float) -> Iterator[Any]:
    """A figure of its own, in this module's style: neither pyplot nor a display is touched."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        yield Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def _bytes(figure: Any, image: Format) -> bytes:
    buffer = io.BytesIO()
    no_date = {"Date": None} if image == "svg" else {"Software": None}
    figure.savefig(buffer, format=image, metadata=no_date)
    return buffer.getvalue()
