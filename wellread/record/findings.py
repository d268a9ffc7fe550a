"""What the parts of verify find: one line per problem, with file and field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.errors import UserError

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
        same = type(value) is type(expected) or (isinstance(value, dict) and isinstance(expected, dict))
        if same and value == expected:
            return True
        if isinstance(value, int | float) and isinstance(expected, int | float) and value == expected:
            return True
        self.add(f"{place}: {field}: {_short(value)}, expected {_short(expected)}{source and f' ({source})'}")
        return False

    def expect_all(self, place: Path | str, values: dict[str, tuple[object, object]], source: str = "") -> None:
        """`expect` for several fields: name -> (value, expected value)."""
        for field, (value, expected) in values.items():
            self.expect(place, field, value, expected, source)

    def expect_column(
        self, place: Path | str, column: str, values: NDArray[Any], expected: NDArray[Any], row: str = "row"
    ) -> None:
        """Add a problem for each row of a column that differs from the expected values; of many only the first."""
        if len(values) != len(expected):
            self.add(f"{place}: {column}: {len(values):,} rows, expected {len(expected):,}")
            return
        wrong = np.flatnonzero(np.asarray(values != expected))
        for i in wrong[:SHOWN]:
            self.add(f"{place}: {column}: {row} {i}: {_short(values[i])}, expected {_short(expected[i])}")
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
