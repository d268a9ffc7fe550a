"""Common style of all figures: colors, fonts, sizes, and the colors that a dark page replaces."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
"""Okabe & Ito 2008; distinguishable with color blindness."""
GREY, INK, GRID = "#767676", "#222222", "#e6e6e6"
CATEGORIES = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, GREY)
"""Colors of series, in this order."""
DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 4], [1, 3], [12, 4])
"""Dashes of series, in the same order: they distinguish lines without color."""
DARK = {BLUE: SKY, SKY: BLUE, ORANGE: AMBER, AMBER: ORANGE, GREY: "#8b949e", INK: "#e6e9ec", GRID: "#2f353c"}
"""Color -> color on a dark page; the others are visible on both."""

FONT = "Liberation Sans, Helvetica Neue, Helvetica, Arial, DejaVu Sans, sans-serif"
"""The first is part of vl-convert, so that a picture does not depend on the fonts of the machine."""
WIDTH, HEIGHT = 560, 340
"""Size of a figure with its axes and legend, in pixels of 1/96 inch."""
PNG_SCALE = 2
"""Pixels of a PNG per pixel of the figure."""

_TEXT = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal"}
CONFIG: dict[str, Any] = {
    "font": FONT,
    "background": "#ffffff",
    "view": {"stroke": None},
    "range": {"category": list(CATEGORIES)},
    "axis": _TEXT
    | {"domainColor": GREY, "tickColor": GREY, "gridColor": GRID, "titlePadding": 8, "labelOverlap": "greedy"}
    | {"labelSeparation": 6},
    "legend": _TEXT
    | {"orient": "top", "title": None, "symbolStrokeWidth": 2, "symbolSize": 150, "columns": 3}
    | {"columnPadding": 24},
    "line": {"strokeWidth": 2, "strokeCap": "round", "strokeJoin": "round"},
    "point": {"size": 36, "filled": True, "opacity": 1},
    "area": {"opacity": 0.18, "line": False},
    "rule": {"color": INK, "strokeDash": [4, 3]},
}
"""Configuration of every Vega-Lite specification."""
