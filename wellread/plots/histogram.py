"""Densities of several groups of samples over the same bins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.plots.curves import color_of
from wellread.plots.figure import Figure, rows, view


def histogram(groups: Mapping[str, NDArray[Any]], label: str, bins: int) -> Figure:
    """Density of the values of each group (at most four), over about `bins` common bins."""
    import altair as alt

    values = np.concatenate(list(groups.values()))
    edges = np.histogram_bin_edges(values, bins)
    if np.issubdtype(values.dtype, np.integer):  # integer widths: otherwise some bins contain more integers than others
        width = max(1, -(-int(np.ptp(values) + 1) // bins))
        edges = np.arange(values.min(), values.max() + width + 1, width) - 0.5
    table: list[dict[str, Any]] = []
    for group, of_group in groups.items():
        density, _ = np.histogram(of_group, edges, density=True)
        heights = np.concatenate([[0.0], density, [0.0]])  # from the axis up and down again
        table += rows(value=np.concatenate([edges, edges[-1:]]), density=heights, series=f"{group} ({of_group.size:,})")
    names = list(dict.fromkeys(row["series"] for row in table))
    x = alt.X("value:Q").title(label).scale(zero=False, nice=False).axis(grid=False)
    base = view(table).encode(x=x, y=alt.Y("density:Q").stack(None), color=color_of(names, symbol="square"))
    return Figure(
        alt.layer(
            base.mark_area(interpolate="step-before", opacity=0.25),
            base.mark_line(interpolate="step-before", strokeWidth=1.6),
        )
    )
