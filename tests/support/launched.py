"""A running launch that a test watches, pauses and kills."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from support.waiting import PATIENCE, wait_until


class Launched:
    """A running launch: its output, its ranks, its end."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []

    def until(self, beginning: str) -> None:
        """Read its output up to the first line that begins with `beginning`, unless that line was already read."""
        assert self.process.stdout is not None
        while not any(line.startswith(beginning) for line in self.lines):
            line = self.process.stdout.readline()
            if not line:
                pytest.fail(f"ended with {self.process.wait()} before {beginning!r}:\n{self.output}")
            self.lines.append(line)

    def ranks(self) -> list[psutil.Process]:
        """Its training processes, by rank."""
        processes = [p for p in psutil.Process(self.process.pid).children(recursive=True) if "train" in p.cmdline()]
        return sorted(processes, key=lambda p: int(p.environ()["RANK"]))

    def end(self) -> int:
        """Wait for its end; return the exit code."""
        self.lines += self.process.communicate(timeout=PATIENCE)[0].splitlines(keepends=True)
        return self.process.returncode

    @property
    def output(self) -> str:
        return "".join(self.lines)


def assert_gone(processes: list[psutil.Process]) -> None:
    """Wait until they have ended. A zombie has ended, too: it only waits for its parent."""
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def status(path: Path, field: str) -> str:
    """A field of /proc/…/status of a process or thread."""
    return next(line for line in path.read_text().splitlines() if line.startswith(f"{field}:")).split()[1]


def hold(process: psutil.Process) -> None:
    """Pause all threads of a process: it runs no step and handles no signal before `resume`."""
    process.suspend()
    threads = Path(f"/proc/{process.pid}/task")
    wait_until(lambda: all(status(t / "status", "State") == "T" for t in threads.iterdir()), f"{process} stopped")


def is_pending(process: psutil.Process, number: int) -> bool:
    """Whether signal `number` was sent to a paused process."""
    return bool(int(status(Path(f"/proc/{process.pid}/status"), "ShdPnd"), 16) >> (number - 1) & 1)
