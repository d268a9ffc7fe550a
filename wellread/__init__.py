"""Launch LLM training across nodes, and know exactly what every checkpoint has read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from wellread.record.opened import Run

__all__ = ["__version__", "open_run"]
__version__ = "0.2.0.dev0"


def open_run(path: str | Path) -> Run:
    """Open a run, e.g. ``wellread.open_run("runs/tiny-sample")``, to query what it has read.

    Raises
    ------
    UserError
        When `path` is not a run directory.
    """
    from wellread.record.opened import Run

    return Run.open(path)
