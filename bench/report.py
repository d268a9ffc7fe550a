"""How long the report of a run with 20 checkpoints takes, and how large it is.

    python -m bench.report [--run RUN]

Without RUN, the tiny model is fine-tuned on the sample data, and its membership is evaluated. Only the report is
measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from bench.trainer import call, run_command
from eval.report.page import write
from wellread.checkpoint import list_checkpoints
from wellread.run import RunDirectory

CHECKPOINTS = 20
GOALS = {"seconds to write": 20.0, "MB": 8.0}
"""Upper limits."""


def a_run(folder: Path) -> RunDirectory:
    """A run with an evaluation, in `folder`."""
    settings = {
        "model": "tiny",
        "data": "sample",
        "steps": 5 * (CHECKPOINTS - 1),
        "save_every": 5,
        "corpora": folder / "corpora",
        "out": folder / "run",
        "generations": 0,
    }
    command = run_command(settings, "finetune")
    call(command)
    call([command[0], "-m", "eval", "membership", str(folder / "run"), "--bootstrap", "100", "--scores", "loss"])
    return RunDirectory.open(folder / "run")


def main() -> None:
    """Measure, and compare with the goals."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, help="a run directory (default: a new run)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wellread-report-") as name:
        run = RunDirectory.open(options.run) if options.run else a_run(Path(name))
        began = time.perf_counter()
        page = write(run)
        measured = {"seconds to write": time.perf_counter() - began, "MB": page.stat().st_size / 1e6}
        print(f"{len(list_checkpoints(run.checkpoints))} checkpoints")
        for what, value in measured.items():
            print(f"{what}: {value:.2f}, goal at most {GOALS[what]:g}: {'met' if value <= GOALS[what] else 'missed'}")


if __name__ == "__main__":
    main()
