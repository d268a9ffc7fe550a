"""Sections of the report of a run: what an evaluation shows there.

To add a section, write one function that returns a `Section`, and a Jinja template next to it with its text. An
evaluation calls that function in `Evaluation.section`; the page adds heading, n, help, pictures, tables and commands.
All values are escaped, so text of the run may be in any of them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wellread.plots.figure import Figure
    from wellread.results import Result


@dataclass(frozen=True)
class Picture:
    """A figure in the report."""

    heading: str
    figure: Figure
    alt: str
    """What the figure shows, in one sentence with its most important numbers, for people who cannot see it."""
    caption: str

    @property
    def uri(self) -> str:
        """The figure as SVG, in a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.figure.svg()).decode()


@dataclass(frozen=True)
class Table:
    """A table, which readers can sort by each column."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[object]]
    """One value per head: whole numbers and floats are formatted, None is a dash, text is shown as it is.

    The first value names its row.
    """


@dataclass(frozen=True)
class Column:
    """A column that an evaluation adds to the table of checkpoints."""

    heading: tuple[str, ...]
    """Lines of the heading."""
    cells: Mapping[int, str]
    """Step -> text; a missing step shows a dash."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What an evaluation adds to the report. Only heading, n and help are required."""

    heading: str
    """The question that it answers."""
    n: str
    """How many samples, documents or checkpoints the numbers are about, in words."""
    help: str
    """How to read the numbers, in one sentence."""
    template: str = ""
    """Jinja template of its text, below n and help, as HTML without `<section>` and heading."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template."""
    data: Any = None
    """JSON for the page's script, which gets it by the variable `index` of the template.

    The variable `prefix` begins the ids of all sections of the same run: `#{{ prefix }}reading`.
    """
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    columns: Sequence[Column] = ()
    commands: Sequence[tuple[str, str]] = ()
    """Next steps: purpose and command of each."""


SLIDER = Path(__file__).with_name("slider.html.j2")
TEXTS = 8
"""Texts per checkpoint in a slider."""
LONGEST_TEXT = 600
"""Characters of a text in a slider; the page has to stay small."""


def slider(panels: Sequence[Mapping[str, Any]], otherwise: str) -> dict[str, Any]:
    """Arguments of a `Section` with a slider over checkpoints: ``Section(…, **slider(panels, otherwise))``.

    Parameters
    ----------
    panels
        For each checkpoint its `step`; `facts`, pairs of name and text; `texts`, each with `about` and `text`.
    otherwise
        What a reader without scripts is shown.
    """
    values = {"last": len(panels) - 1, "otherwise": otherwise}
    return {"template": SLIDER.read_text(encoding="utf-8"), "values": values, "data": panels}


def excerpt(text: str) -> str:
    """The beginning of a text, with an ellipsis if that is not all of it."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def p_value(value: float | None) -> str | None:
    """A p-value with three decimals, or one digit where it is below 0.001."""
    return None if value is None else f"{value:.0e}" if value < 0.001 else f"{value:.3f}"


def with_interval(result: Result | None) -> str:
    """A value with its 95% interval; a dash without a result."""
    if result is None:
        return "–"
    if result.ci_low is None or result.ci_high is None:
        return f"{result.value:.3f}"
    return f"{result.value:.3f} [{result.ci_low:.3f}, {result.ci_high:.3f}]"


def cell(value: object) -> str:
    """A value of a table as text."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
