"""Rows that cannot be used: how many are passed over, and what is said of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from wellread.errors import UserError

LISTED = 20
"""Broken rows that an error names."""


@dataclass
class BadRows:
    """Broken rows of some data, of which so many are allowed."""

    allowed: int
    count: int = 0
    lines: list[str] = field(default_factory=list)
    """One for each, up to as many as are allowed or listed."""

    def add(self, line: str) -> None:
        """Note a broken row by a line that says where it is and what is wrong."""
        self.count += 1
        if self.count <= max(self.allowed, LISTED):
            self.lines.append(line)

    def check(self) -> None:
        """Refuse data with more broken rows than are allowed.

        Raises
        ------
        UserError
            Names the first of them.
        """
        if self.count <= self.allowed:
            return
        more = f"; and {self.count - LISTED} more" * (self.count > LISTED)
        raise UserError(
            f"{self.count} broken row{'s' * (self.count > 1)}, {self.allowed} allowed: "
            f"{'; '.join(self.lines[:LISTED])}{more}; "
            f"mend them, or pass over them with --max_bad_rows {self.count}"
        )

    def say(self) -> None:
        """Print a line for each on stderr."""
        for line in self.lines:
            print(f"passing over {line}", file=sys.stderr)
