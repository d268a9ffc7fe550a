"""Runs as a user starts them: `launch run`, stopped by SIGTERM, resumed, verified."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from scripts.gpu_check.machine import ROOT, environment, last_line
from wellread.checkpoint import list_checkpoints
from wellread.files import read_json
from wellread.run import RunDirectory

LONGEST_TRACE = 5000
"""Characters of a failed program's output in the file of --json."""
STOPPED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Place:
    """Where a check of real runs writes, and until when."""

    folder: Path
    device: str
    limit: float
    """Seconds."""


def stopped_and_resumed(task: dict[str, Any], place: Place) -> Iterator[dict[str, Any]]:
    """Stop a run after some steps, resume and verify it; compare it with a run that was not stopped."""
    with Programs(place) as programs:
        other = programs.start(command(place, task, "other"))
        row = _stopped(task, place, programs)
        if row["trained"]:
            code, text = other.finish()
            if code:
                row |= failed("the run without a stop failed", text)
            else:
                row |= compared(*(RunDirectory(place.folder / name) for name in ("run", "other")))
                if not row["record_equal"]:
                    row |= {"trained": False, "why": "the record differs from that of a run without a stop"}
        yield _in_time(row, programs, place)


def _stopped(task: dict[str, Any], place: Place, programs: Programs) -> dict[str, Any]:
    """Start, stop after `stop_at` steps, start again, verify; the keys of the row."""
    row: dict[str, Any] = {"trained": False}
    began = time.perf_counter()
    first = programs.start(command(place, task, "run"))
    stopped_at, lines = 0, list[str]()
    for line in first.output:
        lines.append(line)
        match = re.match(r"step\s+(\d+)/", line)
        if match and not stopped_at:
            row.setdefault("seconds_to_first_step", time.perf_counter() - began)
            if int(match[1]) >= task["stop_at"]:
                stopped_at = int(match[1])
                first.process.send_signal(signal.SIGTERM)
    code = first.process.wait()
    row |= {"stopped_at": stopped_at, "exit_code": code}
    if code != STOPPED:
        text = "".join(lines)
        return row | failed(f"exit code {code} after SIGTERM, expected {STOPPED}", text)
    code, text = programs.start(command(place, task, "run")).finish()
    if code:
        return row | failed("the resumed run failed", text)
    if "resuming from step" not in text:
        return row | {"why": "the second start did not resume"}
    code, text = programs.start(verification(place)).finish()
    if code:
        return row | failed("verify", text)
    return row | {"trained": True, "verified": True}


def finished(task: dict[str, Any], place: Place) -> Iterator[dict[str, Any]]:
    """Train a run to its end and verify it."""
    with Programs(place) as programs:
        code, text = programs.start(command(place, task, "run")).finish()
        if code:
            yield _in_time(failed("the run failed", text), programs, place)
            return
        losses = [float(match) for match in re.findall(r"^step .*?loss (\S+)", text, re.MULTILINE)]
        row: dict[str, Any] = {"trained": True, "first_loss": losses[0], "last_loss": losses[-1], "verified": True}
        code, text = programs.start(verification(place)).finish()
        if code:
            row |= failed("verify", text) | {"verified": False}
        yield _in_time(row, programs, place)


def failed(what: str, output: str) -> dict[str, Any]:
    """The keys of a row whose program failed with this output."""
    return {"trained": False, "why": f"{what}: {last_line(output)}", "trace": output[-LONGEST_TRACE:]}


def _in_time(row: dict[str, Any], programs: Programs, place: Place) -> dict[str, Any]:
    late = programs.late and not row["trained"]
    return row | {"why": f"timed out after {place.limit:.0f} s ({row.get('why')})"} if late else row


def verification(place: Place) -> list[str]:
    """The command that verifies the run."""
    return [sys.executable, "-m", "wellread", "verify", str(place.folder / "run")]


RUNS = {"stopped and resumed": stopped_and_resumed, "finished": finished}
"""Jobs of checks that need no worker."""


def command(place: Place, task: dict[str, Any], name: str) -> list[str]:
    """The command of a run in the folder `name`."""
    flags = {"corpora": place.folder / "corpora", "out": place.folder / name, "then": "none", "snapshot": "off"}
    arguments = [f"--{key}={value}" for key, value in {**task["settings"], **flags}.items()]
    return [sys.executable, "-m", "launch", "run", "finetune", *arguments]


def compared(run: RunDirectory, other: RunDirectory) -> dict[str, Any]:
    """Compare record and weights of two runs that read the same."""
    import torch
    from safetensors.torch import load_file

    ends = [list_checkpoints(each.checkpoints)[-1] for each in (run, other)]
    weights = [load_file(end.model / "model.safetensors") for end in ends]
    differences = [(weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]]
    return {
        "record_equal": ends[0].step == ends[1].step and ends[0].head == ends[1].head,
        "weights_equal": all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]),
        "largest_difference": max(differences),
        "device": read_json(run.plan_file)["device"],
    }


class Programs:
    """Programs that end at a time limit, with their children."""

    def __init__(self, place: Place) -> None:
        self._place, self._processes = place, list[subprocess.Popen[str]]()
        self.late = False
        """Whether the time limit has ended them."""
        self._timer = threading.Timer(place.limit, self._stop)
        self._timer.daemon = True

    def __enter__(self) -> Programs:
        self._place.folder.mkdir(parents=True)
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._end()
        for process in self._processes:
            process.wait()
        shutil.rmtree(self._place.folder, ignore_errors=True)

    def start(self, arguments: list[str]) -> Program:
        """Start a program; its output is one stream of text."""
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=environment(self._place.device) | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._processes.append(process)
        if self.late:
            process.kill()
        assert process.stdout
        return Program(process, process.stdout)

    def _stop(self) -> None:
        self.late = True
        self._end()

    def _end(self) -> None:
        for process in self._processes:
            process.kill()  # its ranks end with it


@dataclass(frozen=True)
class Program:
    """A program that runs."""

    process: subprocess.Popen[str]
    output: IO[str]

    def finish(self) -> tuple[int, str]:
        """Wait until it ends; return its exit code and its output."""
        text = self.output.read()
        return self.process.wait(), text
