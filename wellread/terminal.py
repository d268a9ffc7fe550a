"""Printing answers: with rich (an extra) on a terminal; in a pipe as plain lines, for grep and cut."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from wellread.escapes import Own, prose
from wellread.escapes import one_line as one_line
from wellread.escapes import visible as visible
from wellread.streams import OfRich
from wellread.units import plural as plural

if TYPE_CHECKING:
    from rich.console import Console

NARROW = 4
"""Spaces before a sample's text."""
SECONDS_BETWEEN_LINES = 30.0
"""How often a long task without a terminal says how far it is."""
BORDER = 3
"""Characters between two columns of a table on a terminal."""


def say(line: str = "", style: str = "") -> None:
    """Print one line; `style` is a style of rich, used only on a terminal."""
    if style and _styled():
        from rich.text import Text

        console().print(Text(visible(line), style=style), soft_wrap=True)
    else:
        print(line)


def say_aside(lines: Iterable[str]) -> None:
    """Print lines on standard error: what a user should know, but what is not the answer."""
    for line in lines:
        print(visible(line), file=sys.stderr)


def console(stderr: bool = False, **settings: Any) -> Console:
    """A console of rich on standard output or standard error, to which only rich writes control characters."""
    from rich.console import Console

    return Console(file=OfRich(sys.stderr if stderr else sys.stdout), **settings)  # type: ignore[arg-type]


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how far a task is, on standard error: a bar on a terminal, elsewhere a line now and then.

    Parameters
    ----------
    label : str
        What is done, e.g. tokenizing.
    total : int, optional
        How many items there are, if that is known.

    Yields
    ------
    callable
        Takes the number of items that are finished.
    """
    if sys.stderr.isatty():
        from rich.progress import Progress

        with Progress(console=console(stderr=True)) as bar:
            task = bar.add_task(label, total=total)
            yield lambda number: bar.update(task, completed=number)
        return
    last = time.monotonic()

    def say_now_and_then(number: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            of = f" of {total:,} ({number / total:.0%})" if total else ""
            print(f"{label}: {number:,}{of}", file=sys.stderr, flush=True)

    yield say_now_and_then


def _styled() -> bool:
    """Whether lines are styled: on a terminal, if rich is installed."""
    return sys.stdout.isatty() and find_spec("rich") is not None


def say_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and their values, one per line, aligned."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        say(f"{name.ljust(width)}  {value}")


def say_text(text: str) -> None:
    """Print a sample's text, indented, with visible control characters."""
    for line in prose(text).split("\n"):
        say(Own(f"{'':{NARROW}}{line}".rstrip()))


def say_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns of numbers are aligned right."""
    heads, cells = [cell(head) for head in heads], [[cell(value) for value in row] for row in rows]
    numbers = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(heads))]
    if _styled():
        _say_rich(heads, cells, numbers)
        return
    widths = [max(len(row[i]) for row in [heads, *cells]) for i in range(len(heads))]
    for row in [heads, *cells]:
        padded = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numbers, strict=True)]
        print(Own("  ".join(padded).rstrip()))


def say_narrow_table(heads: Sequence[str], rows: Sequence[Sequence[object]], width: int = 80) -> None:
    """As `say_table`, in several tables of at most `width` columns of text.

    The further tables leave out rows without a value, and begin with the first columns: with as many of them as
    distinguish their rows.
    """
    sizes = [max(len(cell(row[i])) for row in [heads, *rows]) + BORDER for i in range(len(heads))]
    start = 0
    while start < len(heads):
        for repeated in range(min(start, 1), max(start, 1) + 1):
            columns = [*range(repeated), start]
            while columns[-1] + 1 < len(heads) and sum(sizes[k] for k in columns) + sizes[columns[-1] + 1] < width:
                columns.append(columns[-1] + 1)
            filled = [row for row in rows if not start or any(row[k] is not None for k in columns[repeated:])]
            if not start or len({tuple(row[:repeated]) for row in filled}) == len(filled):
                break
        say_table([heads[k] for k in columns], [[row[k] for k in columns] for row in filled])
        start = columns[-1] + 1


def _say_rich(heads: Sequence[str], cells: list[list[str]], numbers: list[bool]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    for head, is_number in zip(heads, numbers, strict=True):
        table.add_column(Text(head), justify="right" if is_number else "left")
    for row in cells:
        table.add_row(*map(Text, row))
    console().print(table)


def cell(value: object) -> str:
    """A value as text: integers with thousands separators, floats with four decimals, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else visible(str(value))
