"""Columns with content that nothing reads: the difference between what a row has and what its schema consumes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from wellread.data.rows.instruct import TEXTS, Schema, columns_of, extra_columns
from wellread.data.rows.templates import Template
from wellread.data.sources.source import Row, Source, has_content
from wellread.errors import UserError
from wellread.units import plural

LISTED = 10
"""Maximum number of columns that an error lists."""


def consumed(schema: Schema, source: Source, template: Template) -> set[str]:
    """All columns that reading a row with this template uses."""
    if schema.name == "hc3":
        return {*schema.columns.values()}
    optional = ["category", "system", "history"]
    if "messages" not in schema.columns and template.takes_context():
        optional.append("context")
    texts = ("messages",) if "messages" in schema.columns else TEXTS  # `example` refuses a lost context
    columns = {schema.columns[name] for name in texts if name in schema.columns}
    columns |= {column for name, column in extra_columns(schema).items() if name in template.fields}
    return columns.union(*(columns_of(name, schema, source) for name in optional))


@dataclass
class Unused:
    """Counts rows of a data set with content in columns that nothing reads."""

    consumed: Collection[str]
    ignore: Collection[str] = ()
    """Columns that the user allows to be left out."""
    columns: Counter[str] = field(default_factory=Counter)
    """Column -> number of rows in which it has content."""
    keys: Counter[str] = field(default_factory=Counter)
    """The same for ignored keys inside columns, as COLUMN.KEY."""
    rows: int = 0
    """Number of documents of plain text that `add_document` has counted."""
    instead: Counter[str] = field(default_factory=Counter)
    """Column -> number of documents without text in which it has content."""
    _last: int = 0

    def add(self, row: Row, ignored: Iterable[str] = ()) -> None:
        """Count a row, once although rows are read several times.

        Parameters
        ----------
        ignored : iterable of str
            Keys inside its columns, as COLUMN.KEY, with content that the user ignores.
        """
        if row.fields is None or row.number <= self._last:
            return
        self._last = row.number
        for column in row.fields.keys() - self.consumed:
            if has_content(row.fields[column]):
                self.columns[column] += 1
        self.keys.update({*ignored})

    def add_document(self, number: int, columns: Mapping[str, bool], is_empty: bool) -> None:
        """Count a document of plain text.

        Parameters
        ----------
        columns : mapping
            The other columns of its row with content, and whether each contains text.
        """
        if number > self._last:
            self._last = number
            self.rows += 1
            self.columns.update(columns.keys())
            self.instead.update(name for name, is_text in columns.items() if is_text and is_empty)

    @property
    def ignored(self) -> dict[str, int]:
        """Columns with content that is not read, because the user ignores it or it is not text of a document.

        With their number of rows.
        """
        columns = {column: n for column, n in self.columns.items() if self.rows or column in self.ignore}
        return dict(sorted((columns | self.keys).items()))

    def check(self, where: str) -> None:
        """Raise UserError when columns that are not ignored have content.

        Columns next to plain text may have some, unless most texts are empty.
        """
        if self.rows:
            self._check_texts(where)
            return
        refused = sorted(self.columns.keys() - set(self.ignore))
        if not refused:
            return
        names = ", ".join(f"{column!r} ({plural(self.columns[column], 'row')})" for column in refused[:LISTED])
        more = f" and {len(refused) - LISTED} more" * (len(refused) > LISTED)
        raise UserError(
            f"{where}: nothing reads the content of column{'s' * (len(refused) > 1)} {names}{more}; remove it, "
            f"or describe the data set in YAML with columns: or ignore: [{_listed(refused)}] (docs/data.md)"
        )

    def _check_texts(self, where: str) -> None:
        ignored = {*self.ignore, *(name for name in self.instead if "meta" in self.ignore and _is_inner(name))}
        full = sorted(name for name, n in self.instead.items() if 2 * n >= self.rows and name not in ignored)
        if full:
            is_inner = _is_inner(full[0])  # columns: names columns only
            remedy = f"with schema: text and columns: {{text: {full[0]}}}, or " * (not is_inner)
            raise UserError(
                f"{where}: most texts are empty, but column{'s' * (len(full) > 1)} {', '.join(map(repr, full))} "
                f"next to them {'have' if len(full) > 1 else 'has'} content; {'move it into text, or ' * is_inner}"
                f"describe the data set in YAML {remedy}with ignore: [{_listed(full)}] (docs/data.md)"
            )


def _is_inner(name: str) -> bool:
    """Whether it is an entry of the object ``meta`` of a document."""
    return name.startswith("meta.")


def _listed(names: Iterable[str]) -> str:
    """Names as YAML writes them in a list."""
    return ", ".join(name if re.fullmatch(r"[A-Za-z_][\w-]*", name) else repr(name) for name in names)
