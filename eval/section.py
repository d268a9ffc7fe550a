"""Section of an evaluation in the report of a run."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wellread.results import Result


@dataclass(frozen=True)
class Picture:
    """A plot in the report."""

    heading: str
    image: bytes
    """SVG."""
    alt: str
    caption: str

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.image).decode()


@dataclass(frozen=True)
class Column:
    """A column that an evaluation adds to the table of checkpoints."""

    heading: tuple[str, ...]
    """Lines of the heading."""
    cells: Mapping[int, str]
    """Step -> text; a missing step shows a dash."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What an evaluation adds to the report: a section, pictures, table columns and commands."""

    template: str
    """Jinja template of the complete `<section>`; values are escaped."""
    values: Mapping[str, Any]
    """Variables of the template."""
    pictures: Sequence[Picture] = ()
    columns: Sequence[Column] = ()
    commands: Sequence[tuple[str, str]] = ()
    """Next steps: purpose and command of each."""


def with_interval(result: Result | None) -> str:
    """A value with its 95% interval; a dash without a result."""
    if result is None:
        return "–"
    if result.ci_low is None or result.ci_high is None:
        return f"{result.value:.3f}"
    return f"{result.value:.3f} [{result.ci_low:.3f}, {result.ci_high:.3f}]"
