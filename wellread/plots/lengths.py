"""Figure of the lengths of samples."""

from __future__ import annotations

from collections.abc import Mapping

from wellread.plots.figure import Figure
from wellread.plots.histogram import histogram
from wellread.plots.style import Ints


def length_histogram(groups: Mapping[str, Ints]) -> Figure:
    """Density of the lengths of samples, in tokens, for each group (at most four), over the same bins."""
    return histogram(groups, "tokens per sample", 50)
