"""The development SLURM cluster: commands, nodes, and runs on it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.programs import ROOT, Program
from support.waiting import PATIENCE
from wellread.record.reader import Record
from wellread.record.verify import verify
from wellread.record.writer import COLUMNS
from wellread.run import RunDirectory

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}
EXACT = [name for name in COLUMNS if name != "loss"]


def call(*command: object, check: bool = True) -> str:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert not check or result.returncode == 0, f"{command} gave {result.returncode}: {result.stdout}{result.stderr}"
    return result.stdout


def until(what: str, holds: Callable[[], Any]) -> Any:
    """The first true value of `holds`. On a timeout the test fails with the state of the cluster."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if answer := holds():
            return answer
        time.sleep(0.2)
    pytest.fail(f"timed out after {PATIENCE:.0f} s: {what}\n{cluster_says()}")


def cluster_says() -> str:
    """Nodes, jobs and the last log lines of SLURM."""
    result = [call("scontrol", "show", *words, check=False) for words in (("node", "-o"), ("job", "-o"))]
    log = Path(os.environ["SLURM_CONF"]).with_name("log") / "slurmctld.log"
    return "\n".join([*result, *log.read_text().splitlines()[-60:]])


class Launched:
    """A run on the cluster, its state in SLURM, and its files."""

    def __init__(self, program: Program, out: Path, flags: list[object], cluster: Path | str) -> None:
        self.program, self.path = program, out
        self.result: Any = None
        self.planned: Any = None
        self.flags = [*flags, "--out", out, "--cluster", cluster]

    def launch(self, *more: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.program("launch", "run", "finetune", *self.flags, *more, check=check)

    @property
    def job(self) -> str:
        jobs = json.loads((self.path / "submit" / "jobs.json").read_text())
        return str([job["id"] for job in jobs if job["kind"] == "finetune"][-1])

    def state(self) -> str:
        match = re.search(r"JobState=(\S+)", call("scontrol", "show", "job", self.job))
        assert match
        return match.group(1)

    def status(self) -> dict[str, Any]:
        result = self.program("launch", "status", self.path, "--json", check=True)
        answer: dict[str, Any] = json.loads(result.stdout)[0]
        return answer

    def log(self, attempt: int) -> str:
        path = self.path / "log" / f"attempt-{attempt:03d}-rank-0.log"
        return path.read_text() if path.exists() else ""

    def attempts(self) -> list[dict[str, Any]]:
        attempts: list[dict[str, Any]] = RunDirectory(self.path).manifest()["attempts"]
        return attempts

    def await_log(self, attempt: int, text: str) -> str:
        logged: str = until(f"{text!r} in attempt {attempt}", lambda: text in self.log(attempt) and self.log(attempt))
        return logged

    def hurry(self) -> None:
        """Start a requeued job now, instead of after two minutes."""
        call("scontrol", "update", f"JobId={self.job}", "StartTime=now", check=False)

    def requeued(self, attempt: int) -> str:
        """Wait until the requeued job runs again as `attempt`; return the log of rank 0."""
        until("queued again", lambda: self.state() == "PENDING" or self.log(attempt))
        time.sleep(3)  # nodes refuse a start in the second of the requeue, and the job would fail
        self.hurry()
        return self.await_log(attempt, "resuming from")

    def end(self) -> str:
        until("the end of the job", lambda: self.state() in ENDED)
        return self.state()

    def steps(self) -> list[psutil.Process]:
        """Processes of SLURM that run the job's steps, on both nodes."""
        title = f"slurmstepd: [{self.job}."
        return [
            one for one in psutil.process_iter(["cmdline"]) if " ".join(one.info["cmdline"] or []).startswith(title)
        ]

    def ranks(self) -> list[psutil.Process]:
        """Processes of the ranks on both nodes, in the order of their ranks."""
        words = f"finetune train {self.path}"
        ranks = []
        for process in psutil.process_iter(["cmdline"]):
            with suppress(psutil.NoSuchProcess):
                if " ".join(process.info["cmdline"] or []).endswith(words):
                    ranks.append((int(process.environ()["RANK"]), process))
        return [process for _, process in sorted(ranks, key=lambda pair: pair[0])]

    def rows(self) -> list[dict[str, object]]:
        listed: list[dict[str, object]] = Record.open(self.path / "record").table(EXACT).to_pylist()
        return listed

    def verified(self) -> None:
        assert verify(RunDirectory.open(self.path)) == []


def node(verb: str, name: str) -> None:
    call(ROOT / "scripts" / "slurm_node.sh", verb, name)


def restore(name: str) -> None:
    node("restore", name)
    until(
        f"{name} in service",
        lambda: re.search(r"State=(IDLE|MIXED|ALLOCATED)\b(?!\S*\*)", call("scontrol", "show", "node", name)),
    )
