"""Histograms of several groups of samples over the same bins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.plots.style import BLUE, GREEN, ORANGE, PURPLE, Format, new_figure, render


def histogram(groups: Mapping[str, NDArray[Any]], label: str, bins: int, image: Format) -> bytes:
    """Density of the values of each group (at most four), over about `bins` common bins."""
    values = np.concatenate(list(groups.values()))
    edges = np.histogram_bin_edges(values, bins)
    if np.issubdtype(values.dtype, np.integer):  # integer widths: otherwise some bins contain more integers than others
        width = max(1, -(-int(np.ptp(values) + 1) // bins))
        edges = np.arange(values.min(), values.max() + width + 1, width) - 0.5
    with new_figure(7.2, 3.4) as figure:
        axes = figure.subplots()
        for (group, scores), color in zip(groups.items(), (BLUE, ORANGE, GREEN, PURPLE), strict=False):
            density, _ = np.histogram(scores, edges, density=True)
            axes.stairs(density, edges, fill=True, color=color, alpha=0.25)
            axes.stairs(density, edges, color=color, linewidth=1.6, label=f"{group} ({len(scores):,})")
        axes.set(xlabel=label, ylabel="density")
        axes.legend()
        return render(figure, image)
