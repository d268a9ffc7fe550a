"""Tables that are kept in one Parquet file, whose metadata `settings` say to what they belong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

KEY = b"settings"
"""Key of the metadata."""


@dataclass(frozen=True)
class KeptTable:
    """A table on disk that belongs to settings; with other settings it is as if it were missing."""

    path: Path
    settings: Mapping[str, Any]
    """To what it belongs: weights, and how it was computed."""

    def locked(self) -> AbstractContextManager[None]:
        """The lock of the file: who adds rows to those in the file takes it before reading them."""
        from eval.locks import locked

        return locked(self.path)

    def read(self) -> Any:
        """The Arrow table; None if the file is missing or belongs to others."""
        from wellread.results import read_table

        if not self.path.is_file():
            return None
        table = read_table(self.path)
        return table if (table.schema.metadata or {}).get(KEY) == self._metadata else None

    def write(self, table: Any) -> None:
        """Replace the file, atomically."""
        from wellread.results import write_table

        write_table(self.path, table.replace_schema_metadata({KEY: self._metadata}))

    @property
    def _metadata(self) -> bytes:
        return json.dumps(dict(self.settings), sort_keys=True).encode()


def settings_in(file: Path) -> dict[str, Any]:
    """The settings to which the content of a kept file belongs; empty if there is no file or it states none."""
    from wellread.results import open_table, unreadable_named

    if not file.is_file():
        return {}
    with open_table(file) as table, unreadable_named(file):
        settings = json.loads((table.schema_arrow.metadata or {}).get(KEY, b"{}"))
    return settings if isinstance(settings, dict) else {}
