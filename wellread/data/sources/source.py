"""One data set, and one row of a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wellread.errors import UserError
from wellread.units import MIB, plural

MAX_DOCUMENT = 256 * MIB
"""Default of the most bytes of one document; a longer one is a mistake, or an archive that expands without end."""


def too_long(path: Path, what: str, limit: int) -> UserError:
    """The error for a document, or a row, with more bytes than allowed."""
    return UserError(
        f"{path}: {what} is longer than {limit / MIB:,.0f} MiB, the most that one document may have; "
        "divide it, or raise --max_document"
    )


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set: local files, a data set of the hub, or synthetic stories."""

    name: str
    schemas: tuple[str, ...] = ()
    """Schemas that it may have (empty: any that matches its columns)."""
    paths: tuple[Path, ...] = ()
    """Its files, in the order in which they are read."""
    in_folder: bool = False
    """Whether its files are all data files of a folder."""
    hub: str | None = None
    revision: str | None = None
    """Commit or branch of the hub data set."""
    hub_files: str | None = None
    """JSON files of the hub data set, if its loading script is no longer supported."""
    published_rows: int | None = None
    columns: dict[str, str] = field(default_factory=dict)
    """Field -> column, if the user names the columns."""
    ignore: tuple[str, ...] = ()
    """Columns and keys of messages that may have content that is not read."""
    template: str | None = None
    """Template of the data set (None: template of its schema)."""
    answers: str = "both"
    """Which author's answers to read: human, chatgpt or both."""
    subsets: tuple[str, ...] = ()
    """Which subsets to read (empty: all)."""
    generated: int | None = None
    """Number of synthetic stories to generate, for the data set ``stories``."""
    limit: int | None = None
    """Rows to take (None: all)."""
    spelling: str = ""
    """Name and options as written in ``--data``; empty for a file."""
    weight: float | None = None
    """Share of the mixture's samples."""
    max_document: int = MAX_DOCUMENT
    """Most bytes of a document or a row."""

    @property
    def file_count(self) -> str:
        """Number of files read from a folder, for messages; empty if it is not a folder."""
        return f" ({plural(len(self.paths), 'file')})" if self.in_folder else ""

    @property
    def where(self) -> str:
        """Its location for error messages: its file, the folder of its files, or the hub data set."""
        if not self.paths:
            return self.hub or self.name
        return str(self.paths[0] if len(self.paths) == 1 else self.paths[0].parent)


@dataclass(frozen=True)
class Unreadable:
    """A value that its file has but that Python cannot represent; it is an error only in a column that is used."""

    reason: str


@dataclass(frozen=True)
class Row:
    """One row; if it could not be read, `fields` is None and `error` says why."""

    number: int
    """Counted from 1 over all files of the data set; in a .jsonl file empty lines count too."""
    fields: dict[str, Any] | None
    error: str | None = None
    path: Path | None = field(default=None, compare=False)
    """Its file, if the data set has several."""
    before: int = field(default=0, compare=False)
    """Number of the last row before its file."""

    def where(self, source: Source) -> str:
        """Describe the location as file and row in the file."""
        return f"{self.path or source.where} row {self.number - self.before}"


def has_content(value: object) -> bool:
    """Whether a value is more than null, NaN, whitespace, or a list or object of these."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, dict):
        return any(map(has_content, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_content, value))
    return value is not None and value == value  # NaN differs from itself
