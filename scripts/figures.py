"""Write the figures of the documents from the tables of a run.

python -m scripts.figures RUN [DIR]      (default: docs)

A figure is written if the run has the results that it shows: DIR/auc.png those of `wellread membership RUN`,
DIR/forgetting.png those of `wellread forgetting RUN`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wellread.cli import run_program
from wellread.errors import UserError

if TYPE_CHECKING:
    from wellread.plots.figure import Figure
    from wellread.results import Result


def auc(results: Sequence[Result]) -> Figure:
    """AUC of the loss by step, with both controls."""
    from wellread.plots.membership import auc_by_step

    return auc_by_step([each for each in results if each.task == "membership/loss"])


def forgetting(results: Sequence[Result]) -> Figure:
    """What is left of readings by step, with the control."""
    from wellread.plots.forgetting import forgetting_by_step

    return forgetting_by_step(results)


FIGURES: dict[str, tuple[str, Callable[[Sequence[Result]], Figure]]] = {
    "auc": ("membership", auc),
    "forgetting": ("forgetting", forgetting),
}
"""Name of the file -> name of the evaluation, and function of its results."""


def main(argv: list[str]) -> int:
    """Write the figures; return the exit code."""
    from wellread.files import write_atomic
    from wellread.results import read
    from wellread.run import RunDirectory

    if not 1 <= len(argv) <= 2 or argv[0].startswith("-"):
        print(__doc__)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    run, target = RunDirectory.open(argv[0]), Path(argv[1] if len(argv) == 2 else "docs")
    tables = {name: run.eval / f"{of}.parquet" for name, (of, _) in FIGURES.items()}
    available = [name for name, table in tables.items() if table.exists()]
    if not available:
        commands = " or ".join(f"wellread {of} {run.path}" for of, _ in FIGURES.values())
        raise UserError(f"{run.path}: no results to draw; run {commands} first")
    target.mkdir(parents=True, exist_ok=True)
    for name in available:
        write_atomic(target / f"{name}.png", FIGURES[name][1](read(tables[name])).png())
        print(target / f"{name}.png")
    return 0


if __name__ == "__main__":
    run_program(main)
