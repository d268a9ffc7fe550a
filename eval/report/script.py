"""The parts of the page's script: the bundle that draws figures, their specifications, and data as JSON."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from wellread.plots.style import CATEGORIES, DARK

if TYPE_CHECKING:
    from wellread.plots.figure import Figure

COLORS = sorted({*CATEGORIES, *DARK})
"""Colors of figures, which the page shows through its own variables, so that they follow the page's scheme."""


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from vl-convert; 0.9 MB."""
    import vl_convert

    from wellread.plots.figure import VEGA_LITE

    script = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE))
    assert "</script" not in script.lower(), "the script would end early in a page"
    assert "<!--" not in script, "the script would be read as a comment in a page"
    return script


def for_page(figure: Figure, alt: str) -> dict[str, Any]:
    """The specification for the page: as wide as its place, in the colors of the page."""
    spec = figure.spec()
    data = {key: spec.pop(key) for key in ("datasets", "data") if key in spec}
    page: dict[str, Any] = _with_variables(spec)
    page["config"]["background"] = "transparent"
    return page | data | {"width": "container", "description": alt}


def _with_variables(part: Any) -> Any:
    """Replace each color by its variable; data is already taken out."""
    if isinstance(part, dict):
        return {key: value if key == "domain" else _with_variables(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_with_variables(value) for value in part]
    return f"var({variable(part)})" if isinstance(part, str) and part in COLORS else part


def variable(color: str) -> str:
    """Name of the variable of a color."""
    return f"--plot-{color[1:]}"


def palette(*, dark: bool) -> str:
    """Declarations of the variables."""
    return " ".join(f"{variable(color)}: {DARK.get(color, color) if dark else color};" for color in COLORS)


def as_json(data: Any) -> str:
    """JSON that can be in a script element: no `<` ends the element or begins a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
