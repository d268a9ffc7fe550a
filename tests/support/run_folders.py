"""Run directories as launch and the ranks write them, without a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from wellread.config import RunConfig
from wellread.files import write_json
from wellread.run import RunDirectory

STEPS = 40

ENDED = {"ended": "2026-11-21T06:49:23+0000"}

HELD = """
import sys, time
from pathlib import Path
from wellread.run import RunDirectory
with RunDirectory(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def attempt(**more: Any) -> dict[str, Any]:
    world = {"ranks": 2, "nodes": 1, "ranks_per_node": 2, "device": "cpu", "hosts": ["localhost"], "host": "here"}
    return {"started": "2026-11-21T06:49:12+0000", "cluster": "local", "strategy": "ddp"} | world | more


def job(number: int, kind: str = "finetune", submitted: str = "2026-11-21T06:49:11+0000") -> dict[str, Any]:
    return {"id": str(number), "kind": kind, "submitted": submitted, "tasks": 1, "folder": "/code"}


def run_folder(
    path: Path,
    *attempts: dict[str, Any],
    saved: tuple[int, ...] = (),
    jobs: tuple[dict[str, Any], ...] = (),
    report: dict[str, Any] | None = None,
) -> RunDirectory:
    """Create a run directory as launch and the ranks write it, without a run."""
    run = RunDirectory(path)
    for folder in (run.log, run.checkpoints, run.submit):
        folder.mkdir(parents=True)
    run.write_config(RunConfig.of(out=str(path)))
    numbered = [{"attempt": number} | about for number, about in enumerate(attempts, 1)]
    write_json(run.manifest_file, {"version": 1, "identity": {"steps": STEPS}, "attempts": numbered})
    for step in saved:
        (run.checkpoints / f"step-{step:08d}").mkdir()
        write_json(run.checkpoints / f"step-{step:08d}" / "checkpoint.json", {"step": step})
    if jobs:
        write_json(run.submit / "jobs.json", list(jobs))
    if report:
        write_json(run.log / "progress.json", report)
    return run


def progress(attempt: int, step: int, ago: float = 0, **more: Any) -> dict[str, Any]:
    rates = {"tokens": 1000 * step, "loss": 2.5, "seconds_per_step": 0.5, "tokens_per_second": 2000.0}
    return {"attempt": attempt, "step": step, "steps": STEPS, "last_saved": 0, "time": time.time() - ago} | rates | more


QUEUED = attempt(cluster="slurm", job="7", restart=0)
