"""Plot of the training loss of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wellread.plots.style import BLUE, INK, ORANGE, Floats, Format, Ints, new_figure, render

MAX_POINTS = 2000
"""Most points of a curve; more are not visible and only make the file larger."""


def loss_curve(
    steps: Ints,
    losses: Floats,
    *,
    holdout: Sequence[tuple[int, float]] = (),
    reference: tuple[str, float] | None = None,
    image: Format = "svg",
) -> bytes:
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
    from matplotlib.ticker import MaxNLocator

    window = min(max(5, len(losses) // 25), len(losses)) | 1  # odd: the same number of batches on both sides
    with new_figure(7.2, 3.8) as figure:
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
        return render(figure, image)


def _running_mean(values: Floats, window: int) -> Floats:
    """Mean of the `window` values around each value, fewer near the ends; float[k]."""
    half, total = window // 2, np.concatenate([[0.0], np.cumsum(values)])
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.asarray((total[stop] - total[start]) / (stop - start))
