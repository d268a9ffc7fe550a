"""How long samples are."""

from __future__ import annotations

from collections.abc import Mapping

from wellread.plots.histogram import histogram
from wellread.plots.style import Format, Ints


def length_histogram(groups: Mapping[str, Ints], *, image: Format = "svg") -> bytes:
    """Lengths in tokens of the samples of each group (at most four), as densities over the same bins."""
    return histogram(groups, "tokens per sample", 50, image)
