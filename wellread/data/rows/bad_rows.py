"""Malformed rows: how many may be skipped, and how they are reported."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from wellread.errors import UserError

LISTED = 20
"""Maximum number of malformed rows that an error lists."""


@dataclass
class BadRows:
    """Collects malformed rows, of which `allowed` may be skipped."""

    allowed: int
    count: int = 0
    lines: list[str] = field(default_factory=list)
    """One line per malformed row, at most max(allowed, LISTED)."""

    def add(self, line: str) -> None:
        """Add a malformed row; `line` says where it is and what is wrong."""
        self.count += 1
        if self.count <= max(self.allowed, LISTED):
            self.lines.append(line)

    def check(self) -> None:
        """Raise an error when there are more malformed rows than allowed.

        Raises
        ------
        UserError
            Lists the first malformed rows.
        """
        if self.count <= self.allowed:
            return
        more = f"; and {self.count - LISTED} more" * (self.count > LISTED)
        raise UserError(
            f"{self.count} malformed row{'s' * (self.count > 1)}, {self.allowed} allowed: "
            f"{'; '.join(self.lines[:LISTED])}{more}; "
            f"fix them, or skip them with --max_bad_rows {self.count}"
        )

    def say(self) -> None:
        """Print one line per malformed row on stderr."""
        for line in self.lines:
            print(f"skipping {line}", file=sys.stderr)
