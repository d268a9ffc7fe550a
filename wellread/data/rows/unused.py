"""Columns with content that nothing reads: the difference between what a row has and what its schema consumes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from wellread.data.rows.content import has_content
from wellread.data.sources.source import Row
from wellread.errors import UserError

LISTED = 10
"""Maximum number of columns that an error lists."""


@dataclass
class Unused:
    """Counts rows of a data set with content in columns that nothing reads."""

    consumed: Collection[str]
    ignore: Collection[str] = ()
    """Columns that the user allows to be left out."""
    columns: Counter[str] = field(default_factory=Counter)
    """Column -> number of rows in which it has content."""
    _last: int = 0

    def add(self, row: Row) -> None:
        """Count a row, once although rows are read several times."""
        if row.fields is None or row.number <= self._last:
            return
        self._last = row.number
        for column in row.fields.keys() - self.consumed:
            if has_content(row.fields[column]):
                self.columns[column] += 1

    @property
    def ignored(self) -> dict[str, int]:
        """Columns with content that the user ignores, with their number of rows."""
        return {column: n for column, n in sorted(self.columns.items()) if column in self.ignore}

    def check(self, where: str) -> None:
        """Raise UserError when columns that are not ignored have content."""
        refused = sorted(self.columns.keys() - set(self.ignore))
        if not refused:
            return
        names = ", ".join(f"{column!r} ({self.columns[column]:,} rows)" for column in refused[:LISTED])
        more = f" and {len(refused) - LISTED} more" * (len(refused) > LISTED)
        raise UserError(
            f"{where}: nothing reads the content of column{'s' * (len(refused) > 1)} {names}{more}; remove it, "
            f"or describe the data set in YAML with columns: or ignore: [{', '.join(refused)}] (docs/data.md)"
        )
