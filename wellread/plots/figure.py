"""A figure: a Vega-Lite specification, and the same figure as SVG and PNG, without a browser and without network.

To add a figure, write in the file of its subject a function that returns ``Figure(chart)``: `chart` is an Altair chart
of one view or of layers, each begun with ``view(rows(…))``. `wellread.plots.curves` has lines over steps with
bands, and the axis of steps; `wellread.plots.histogram` has densities. Sizes and fonts are those of `style`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.plots.style import CONFIG, HEIGHT, PNG_SCALE, WIDTH

DIGITS = 6
"""Significant digits of numbers in a figure; more cannot be seen, and make the page larger."""
VEGA_LITE = "6.4"
"""Version of the specifications, which Altair and vl-convert must both know."""
MOST_KEPT = 64
"""Figures that are kept as SVG, some 10 KiB each."""

Column = Sequence[Any] | NDArray[Any] | str | float


@dataclass(frozen=True)
class Figure:
    """A figure of one view. Equal charts give equal bytes."""

    chart: Any
    """An Altair chart: one view, or layers of one view."""
    height: int = HEIGHT
    """Height with axes and legend, in pixels."""

    def spec(self) -> dict[str, Any]:
        """The Vega-Lite specification, of plain JSON types, with its data.

        Raises
        ------
        ValueError
            When a number is not finite.
        """
        return dict(json.loads(self._spec))

    @cached_property
    def _spec(self) -> str:
        """The specification as JSON; Altair takes longer to make it than to make the chart."""
        size = {"width": WIDTH, "height": self.height, "autosize": {"type": "fit", "contains": "padding"}}
        spec: dict[str, Any] = self.chart.properties(**size).to_dict(validate=False) | {"config": CONFIG}
        spec["$schema"] = f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE}.json"
        try:
            return json.dumps(spec, allow_nan=False)
        except ValueError as error:
            raise ValueError("a figure has a number that is not finite: filter such rows, and say so") from error

    def svg(self) -> bytes:
        """The figure as SVG, with text as text."""
        return _svg(self._spec).encode()

    def png(self) -> bytes:
        """The figure as PNG, of twice the size."""
        import vl_convert

        return bytes(vl_convert.svg_to_png(_svg(self._spec), scale=PNG_SCALE))


@contextmanager
def unchecked() -> Iterator[None]:
    """Make charts in half the time: Altair does not compare each part with its schema, as it does in tests."""
    from altair.utils.schemapi import debug_mode

    with debug_mode(False):
        yield


@lru_cache(MOST_KEPT)
def _svg(spec: str) -> str:
    """SVG of a specification, as JSON. Vega draws each only once for the pictures of a command and its report."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE, allowed_base_urls=[]))


def view(table: list[dict[str, Any]]) -> Any:
    """An Altair chart of these rows, to which mark and encoding are added."""
    import altair as alt

    return alt.Chart(alt.InlineData(values=table))


def rows(**columns: Column) -> list[dict[str, Any]]:
    """Rows for `view` from columns of equal length; a single text or number is repeated.

    Numbers become plain Python numbers, floats of six significant digits.
    """
    lengths = {len(values) for values in columns.values() if not isinstance(values, str | float | int)}
    assert len(lengths) == 1, "columns have different lengths"
    plain = [_plain(values, *lengths) for values in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*plain, strict=True)]


def _plain(column: Column, length: int) -> list[Any]:
    if isinstance(column, str | float | int):
        return [column] * length
    values = column.tolist() if isinstance(column, np.ndarray) else column
    return [float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value for value in values]
