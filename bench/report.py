"""How long the report of a run with 20 checkpoints takes, how large it is, and how soon a browser has drawn it.

    python -m bench.report [--run RUN]

Without RUN, the tiny model is fine-tuned on the sample data, and its membership is evaluated. Only the report is
measured.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench.trainer import call, run_command
from eval.report.page import write
from wellread.checkpoint import list_checkpoints
from wellread.run import RunDirectory

CHECKPOINTS = 20
GOALS = {"seconds to write": 20.0, "MB": 8.0, "seconds to draw": 2.0}
"""Upper limits."""
BROWSER = ("--headless", "--no-sandbox", "--disable-gpu", "--timeout=20000", "--dump-dom")


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


def seconds_to_draw(page: Path) -> float | None:
    """Seconds from the start of loading until all figures are drawn, as the page says; None without Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [browser, *BROWSER, f"--user-data-dir={profile}", page.resolve().as_uri()]
        html = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r'data-drawn="(\d+)"', html)
    assert match, "the page was not drawn in time"
    return int(match.group(1)) / 1000


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
        if (seconds := seconds_to_draw(page)) is not None:
            measured["seconds to draw"] = seconds
        print(f"{len(list_checkpoints(run.checkpoints))} checkpoints")
        for what, value in measured.items():
            print(f"{what}: {value:.2f}, goal at most {GOALS[what]:g}: {'met' if value <= GOALS[what] else 'missed'}")


if __name__ == "__main__":
    main()
