"""What an evaluation adds to the report of a run."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wellread.results import Result


@dataclass(frozen=True)
class Picture:
    """A plot as the page shows it."""

    heading: str
    image: bytes
    """SVG."""
    alt: str
    caption: str

    @property
    def uri(self) -> str:
        """The picture itself, as an address."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.image).decode()


@dataclass(frozen=True)
class Column:
    """A column of the table of checkpoints."""

    heading: tuple[str, ...]
    """One text per line."""
    cells: Mapping[int, str]
    """Step -> text; a step that is not here shows a dash."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page, and what else belongs to an evaluation there."""

    template: str
    """Jinja template of a whole `<section>`; what it prints is escaped."""
    values: Mapping[str, Any]
    """What the template names."""
    pictures: Sequence[Picture] = ()
    columns: Sequence[Column] = ()
    commands: Sequence[tuple[str, str]] = ()
    """How to go on: what for, and the command."""


def with_interval(result: Result | None) -> str:
    """A value with its 95% interval; a dash for no result."""
    if result is None:
        return "–"
    if result.ci_low is None or result.ci_high is None:
        return f"{result.value:.3f}"
    return f"{result.value:.3f} [{result.ci_low:.3f}, {result.ci_high:.3f}]"
