"""The process that runs tasks of `make gpu-check`, one after another: python -m scripts.gpu_check.worker DEVICE

Each line of standard input is a task as JSON, with the name of its job and a folder. Each line of standard output is a
phase that begins, a row, or the end of the task. What libraries print goes to standard error.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wellread.train.rank import die_with_launcher, leave

Rows = Iterator[dict[str, Any]]
Phase = Callable[[str], None]
LONGEST_TRACE = 5000
"""Characters of a traceback in the file of --json."""
MOST_LEFT = 2**28
"""A worker ends if its tasks leave more bytes than this on the GPU, so that the next rows measure only themselves."""


def ceilings(task: dict[str, Any], folder: Path, phase: Phase) -> Rows:
    """See `scripts.gpu_check.ceilings`."""
    from scripts.gpu_check.ceilings import measured

    return measured(task["size"], phase)


def train(task: dict[str, Any], folder: Path, phase: Phase) -> Rows:
    """Train a trial with the real loop."""
    from scripts.gpu_check.synthetic import Trial
    from scripts.gpu_check.trial import run_trial

    yield run_trial(Trial(**task), folder, phase)


def trainer(task: dict[str, Any], folder: Path, phase: Phase) -> Rows:
    """Train the rows of a trial with Hugging Face's Trainer."""
    from scripts.gpu_check.synthetic import Trial
    from scripts.gpu_check.trainer import run_trainer

    yield run_trainer(Trial(**task), folder, phase)


JOBS: dict[str, Callable[[dict[str, Any], Path, Phase], Rows]] = {
    "ceilings": ceilings,
    "train": train,
    "trainer": trainer,
}


def run(line: str, say: Callable[[dict[str, Any]], None]) -> bool:
    """Run a task; return whether this process can run another one."""
    task = json.loads(line)
    folder = Path(task.pop("folder"))
    job = JOBS[task.pop("job")]
    began = time.perf_counter()
    try:
        for row in job(task, folder, lambda name: say({"phase": name})):
            say({"row": row | {"took": time.perf_counter() - began}})
            began = time.perf_counter()
    except Exception as error:
        say({"row": failure(error) | {"took": time.perf_counter() - began}})
        error.__traceback__ = None  # its frames keep tensors
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    from scripts.gpu_check.trial import leftover

    more = leftover() <= MOST_LEFT
    say({"end": True, "more": more})
    return more


def failure(error: Exception) -> dict[str, Any]:
    """The keys of a row that failed: running out of memory is a result like any other."""
    from wellread.train.shortage import shown_by

    trace = traceback.format_exc()
    print(trace, file=sys.stderr, flush=True)
    shortage = shown_by(error, trace)
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = f"{type(error).__name__}: {lines[0] if lines else ''}".removesuffix(": ")
    why = f"out of {shortage.place} memory: {message}" if shortage else message
    return {"trained": False, "why": why, "trace": trace[-LONGEST_TRACE:]}


def main(device: str) -> None:
    """Import what every task needs, join a process group of one rank, then run tasks until the input ends."""
    die_with_launcher()
    faulthandler.register(signal.SIGUSR1, file=sys.stderr)  # a worker that hangs shows where before it is ended
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    say({"phase": "start"})
    import accelerate  # noqa: F401
    import torch
    import transformers.modeling_utils  # noqa: F401

    from wellread.train import ranks

    ranks.start(device)
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")
    say({"end": True, "more": True})
    for line in sys.stdin:
        if not run(line, say):
            break
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
