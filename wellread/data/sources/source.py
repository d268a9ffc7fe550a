"""One data set, and one row of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set: local files or a set of the hub."""

    name: str
    schemas: tuple[str, ...] = ()
    """Schemas that it may have (none: any that fits its columns)."""
    paths: tuple[Path, ...] = ()
    """Its files, in the order in which they are read."""
    hub: str | None = None
    revision: str | None = None
    """Commit or branch of the hub set."""
    hub_files: str | None = None
    """JSON files of the hub set, where its own loader can no longer be used."""
    published_rows: int | None = None
    columns: dict[str, str] = field(default_factory=dict)
    """Field -> column, where the columns are the user's own."""
    template: str | None = None
    """The set's own template (None: that of its schema)."""
    answers: str = "both"
    """Sets with two authors: whose answers."""
    subsets: tuple[str, ...] = ()
    """Sets with subsets: which of them (empty: all)."""
    generated: int | None = None
    """Stories to be made up, for the set that is no file."""
    limit: int | None = None
    """Rows to take (None: all)."""
    asked: str = ""
    """How ``--data`` spells it, options included, where it is no file."""
    weight: float | None = None
    """Share of the mixture's samples."""

    @property
    def where(self) -> str:
        """What an error names: its file, the folder of its files, or the hub set."""
        if not self.paths:
            return self.hub or self.name
        return str(self.paths[0] if len(self.paths) == 1 else self.paths[0].parent)


@dataclass(frozen=True)
class Row:
    """One row as it was read; `fields` is None where it could not be, and `error` says why."""

    number: int
    """From 1: line of a .jsonl file, else place in the set; the rows of further files count on."""
    fields: dict[str, Any] | None
    error: str | None = None
    path: Path | None = field(default=None, compare=False)
    """Its file, where the set has several."""
    before: int = field(default=0, compare=False)
    """Number of the last row before its file."""

    def where(self, source: Source) -> str:
        """Say file and row, as the file numbers it."""
        return f"{self.path or source.where} row {self.number - self.before}"
