"""How long the report of a run with 20 checkpoints takes, how large it is, and how fast a browser opens it.

    python -m bench.report [--run RUN]

Without RUN, the tiny model is fine-tuned on the sample data, and its membership is evaluated. Only the report is
measured. The page is opened in headless Chromium, three times; the values are medians since it began to load: until it
can be used, and until all of its figures are drawn, one after the other.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.trainer import ROOT, call, run_command
from eval.report.page import write
from wellread.checkpoint import list_checkpoints
from wellread.run import RunDirectory

CHECKPOINTS = 20
GOALS = {"seconds to write": 20.0, "MB": 8.0, "seconds until it is open": 2.0, "seconds until all is drawn": 2.0}
"""Upper limits."""
OPENINGS = 3
OPEN = "performance.getEntriesByType('navigation')[0].loadEventEnd"
DRAWN = "document.documentElement.dataset.drawn"
"""Milliseconds since the page began to load, in the page."""


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


def opening(page: Path, folder: Path) -> dict[str, float]:
    """Seconds until a page is open, and until its figures are drawn, in a browser with a profile in `folder`."""
    sys.path.append(str(ROOT / "tests"))
    chromium = importlib.import_module("support.browser").chromium
    times: dict[str, list[float]] = {"seconds until it is open": [], "seconds until all is drawn": []}
    with chromium(folder) as browser:
        browser.show(1400)
        for _ in range(OPENINGS):
            browser.open(page.as_uri())
            browser.wait(f"{DRAWN} !== undefined")
            for name, script in zip(times, (OPEN, DRAWN), strict=True):
                times[name].append(float(browser.run(script)) / 1000)
    return {name: statistics.median(values) for name, values in times.items()}


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
        measured |= opening(page, Path(name) / "profile")
        print(f"{len(list_checkpoints(run.checkpoints))} checkpoints")
        for what, value in measured.items():
            print(f"{what}: {value:.2f}, goal at most {GOALS[what]:g}: {'met' if value <= GOALS[what] else 'missed'}")


if __name__ == "__main__":
    main()
