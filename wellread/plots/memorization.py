"""Figures of memorization."""

from __future__ import annotations

import numpy as np

from wellread.plots.figure import Figure, rows, view
from wellread.plots.style import BLUE, INK, Ints


def poisson_quantiles(counts: Ints) -> tuple[Ints, Ints]:
    """Quantiles of a Poisson distribution with the mean of the counts, and the counts, ascending; int64[n] each.

    Plotting positions are (i - 1/2) / n (Hazen 1914).
    """
    from scipy.stats import poisson

    ordered = np.sort(counts)
    positions = (np.arange(ordered.size) + 0.5) / ordered.size
    return poisson.ppf(positions, ordered.mean()).astype(np.int64), ordered


def poisson_qq(counts: Ints) -> Figure:
    """Counts of blocks against quantiles of a Poisson distribution; points on the line are as it predicts."""
    import altair as alt

    expected, ordered = poisson_quantiles(counts)
    places, times = np.unique(np.stack([expected, ordered]), axis=1, return_counts=True)
    ends = np.array([0, max(int(expected.max()), int(ordered.max()), 1)])
    x = alt.X("expected:Q").title("memorized samples of a block, Poisson distribution").axis(tickMinStep=1)
    y = alt.Y("observed:Q").title("as observed").axis(tickMinStep=1)
    points = view(rows(expected=places[0], observed=places[1], blocks=times)).encode(x=x, y=y)
    line = view(rows(expected=ends, observed=ends)).encode(x=x, y=y)
    size = alt.Size("blocks:Q").scale(range=[40, 400]).legend(None)
    return Figure(
        alt.layer(
            line.mark_line(color=INK, strokeDash=[4, 3], strokeWidth=1.5),
            points.mark_point(color=BLUE).encode(size=size, tooltip=["expected:Q", "observed:Q", "blocks:Q"]),
        )
    )
