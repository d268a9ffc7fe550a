"""Hashes of large files, kept with the size, time of change and inode of each, so that a file is read once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from wellread.errors import UserError
from wellread.files import read_json, sha256_file, write_json


@dataclass(frozen=True)
class KeptHashes:
    """sha256 of files by name, in a JSON file."""

    file: Path | None = None
    """Where they are kept; None: nowhere."""
    again: bool = False
    """Whether to hash files again that have not changed since."""
    _used: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _entries(self) -> dict[str, Any]:
        """What was kept before; empty when there is nothing, or nothing readable."""
        try:
            return {} if self.file is None or self.again else dict(read_json(self.file, {...: dict}))
        except (OSError, UserError):
            return {}

    def sha256(self, path: Path, name: str | None = None) -> str:
        """Hex sha256 of a file.

        Parameters
        ----------
        name
            What it is kept as (default: its absolute path).
        """
        name, status = name or str(path.resolve()), path.stat()
        key = [status.st_size, status.st_mtime_ns, status.st_ino]
        entry = self._used.get(name, self._entries.get(name))
        if not isinstance(entry, dict) or entry.get("file") != key:
            entry = {"file": key, "sha256": sha256_file(path)}
        self._used[name] = entry
        return str(entry["sha256"])

    def keep(self) -> None:
        """Write what is new."""
        entries = self._entries | self._used
        if self.file and entries != self._entries:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, entries)
