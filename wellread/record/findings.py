"""What the parts of verify find: one line per problem, with file and field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.errors import UserError
from wellread.files import checksum
from wellread.shapes import unknown_keys

SHOWN = 5
"""Most rows of one column that are named."""
LONGEST = 200
"""Characters of a reason or a value that a line repeats."""


class Findings:
    """Problems of a run, one line each."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def add(self, *lines: str) -> None:
        """Add problems."""
        self.problems += lines

    def expect(self, place: Path | str, field: str, value: object, expected: object, source: str = "") -> bool:
        """Add a problem unless a field has the expected value; return whether it has.

        Parameters
        ----------
        source : str
            What the expected value comes from.
        """
        if value == expected and isinstance(value, bool) == isinstance(expected, bool):
            return True
        self.add(f"{place}: {field}: {_short(value)}, expected {_short(expected)}{source and f' ({source})'}")
        return False

    def expect_all(self, place: Path | str, values: dict[str, tuple[object, object]], source: str = "") -> None:
        """`expect` for several fields: name -> (value, expected value)."""
        for field, (value, expected) in values.items():
            self.expect(place, field, value, expected, source)

    def expect_checksum(self, place: Path | str, content: dict[str, Any]) -> None:
        """Compare the checksum of a JSON file with its content; older files have none."""
        if content.get("checksum") is not None:
            self.expect(place, "checksum", content["checksum"], checksum(content), "its content")

    def expect_keys(self, place: Path | str, content: Any, shape: Any) -> None:
        """Add a problem for each key that this version of the file does not have, also in inner objects."""
        self.add(*(f"{place}: {key}: is not a key of this file" for key in unknown_keys(content, shape, "")))

    def add_rows(self, line: str, rows: Sequence[int]) -> None:
        """Add a problem for each row; of many only the first. `line` has ``{}`` for the row."""
        self.add(*(line.format(row) for row in rows[:SHOWN]))
        if len(rows) > SHOWN:
            self.add(f"{line.format('…')}: {len(rows) - SHOWN:,} more")

    def expect_column(
        self,
        place: Path | str,
        column: str,
        values: NDArray[Any],
        expected: NDArray[Any],
        row: str = "row",
        start: int = 0,
    ) -> None:
        """Add a problem for each row of a column that differs from the expected values; of many only the first."""
        if len(values) != len(expected):
            self.add(f"{place}: {column}: {len(values):,} rows, expected {len(expected):,}")
            return
        wrong = np.flatnonzero(np.asarray(values != expected))
        for i in wrong[:SHOWN]:
            self.add(f"{place}: {column}: {row} {start + i}: {_short(values[i])}, expected {_short(expected[i])}")
        if len(wrong) > SHOWN:
            self.add(f"{place}: {column}: and {len(wrong) - SHOWN:,} more rows")

    @contextmanager
    def reading(self, place: Path | str) -> Iterator[None]:
        """Turn any error about the content of a file into a problem that names it; the rest of the block is skipped."""
        try:
            yield
        except UserError as error:
            self.add(str(error))
        except OSError as error:
            self.add(f"{error.filename or place}: cannot be read ({error.strerror or error})")
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            reason = " ".join(str(error).split())[:LONGEST]
            self.add(f"{place}: damaged ({type(error).__name__}: {reason})")


def _short(value: object) -> str:
    text = str(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
