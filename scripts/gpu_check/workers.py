"""Worker processes (`scripts.gpu_check.worker`): started when needed, reused, and ended at a time limit."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from launch import cluster as clusters
from launch.backends import base as backends
from scripts.gpu_check.machine import ROOT, environment, last_line
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan

LONGEST_TRACE = 5000
"""Characters of a log in the row of a worker that was ended or died."""
SECONDS_TO_SHOW = 0.5
"""Time for a worker to write where it hangs."""
SECONDS_TO_START = 150.0
"""Time in which a worker must have imported everything."""


def free_port() -> int:
    """A free port, on which ranks connect."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def variables_of(device: str) -> dict[str, str]:
    """The environment of a rank on this device, as the local cluster sets it."""
    machine = Machine(device=device, ranks_per_node=1)
    backend = backends.of(clusters.load("local"))
    plan = Plan(
        model="",
        machine=machine,
        counts=Counts(samples=1, trainable=1, sealed=0, exact=True),
        batch_size=1,
        micro_batch_size=1,
        accumulation=1,
        dtype="bf16",
        engine="torch",
        strategy="ddp",
        strategy_reason="",
        seq_len=1,
        steps=1,
        epochs=1,
        warmup_steps=0,
        save_steps=(),
    )
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    return environment(device) | backend.environment(plan) | rank | {"MASTER_PORT": str(free_port())}


class Worker:
    """One worker process."""

    def __init__(self, device: str, folder: Path) -> None:
        self.device = device
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._log = self._folder / "log"
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scripts.gpu_check.worker", device],
                cwd=ROOT,
                env=variables_of(device),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        self._started, self._ends = False, False
        self.numbers = 0
        """Number of tasks so far."""

    def _read(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                with suppress(ValueError):
                    self._messages.put(json.loads(line))
        self._messages.put(None)

    @property
    def usable(self) -> bool:
        """Whether it can run a task."""
        return not self._ends and self._process.poll() is None

    def run(self, task: dict[str, Any], limit: float) -> Iterator[dict[str, Any]]:
        """Run a task for at most `limit` seconds; yield its rows as they come. A failure is a row that says why."""
        end = time.monotonic() + limit
        if not self._started:
            row = self._wait(min(limit, SECONDS_TO_START), lambda row: None)
            if row:
                yield row
                return
            self._started = True
        self.numbers += 1
        task = task | {"folder": str(self._folder / f"task-{self.numbers}")}
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            yield self._ended("start")
            return
        rows: queue.Queue[dict[str, Any]] = queue.Queue()
        failed = None
        while failed is None:
            failed = self._wait(end - time.monotonic(), rows.put, one=True)
            while not rows.empty():
                yield rows.get()
        if failed:
            yield failed

    def _wait(self, limit: float, add: Any, one: bool = False) -> dict[str, Any] | None:
        """Read messages until the task ends; return {} then, a row if it failed, None after a row if `one`."""
        until, phase = time.monotonic() + limit, "start"
        while True:
            try:
                message = self._messages.get(timeout=max(0.01, until - time.monotonic()))
            except queue.Empty:
                if self._started:
                    self._process.send_signal(signal.SIGUSR1)  # it writes the stacks of its threads to its log
                    time.sleep(SECONDS_TO_SHOW)
                self.kill()
                return {"trained": False, "why": f"timed out after {limit:.0f} s in {phase}", "trace": self._tail()}
            if message is None:
                return self._ended(phase)
            if "phase" in message:
                phase = message["phase"]
            elif "row" in message:
                add(message["row"])
                if one:
                    return None
            else:
                self._ends = not message["more"]  # it may still be there for a moment
                return {}

    def _ended(self, phase: str) -> dict[str, Any]:
        code = self._process.wait()
        self.kill()
        log = self._tail()
        why = f"the process ended with code {code} in {phase}: {last_line(log)}"
        return {"trained": False, "why": why, "trace": log}

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-LONGEST_TRACE:]

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()


class Workers:
    """The workers that wait for a task, by device.

    One thread starts all of them and never ends: the kernel ends a worker with the thread that started it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._idle = folder, list[Worker]()
        self._lock = threading.Lock()
        self._starter = ThreadPoolExecutor(1)

    def _start(self, device: str) -> Worker:
        return self._starter.submit(Worker, device, self._folder).result()

    def prepare(self, device: str) -> None:
        """Start a worker that imports what it needs while something else happens."""
        self._give_back(self._start(device))

    def run(self, device: str, task: dict[str, Any], limit: float) -> Iterator[dict[str, Any]]:
        """Run a task in a worker for at most `limit` seconds; yield its rows."""
        worker = self._take(device) or self._start(device)
        try:
            yield from worker.run(task, limit)
        except GeneratorExit:
            worker.kill()
            raise
        self._give_back(worker)

    def retire(self, device: str, remaining: int = 1) -> None:
        """End idle workers, except `remaining` on this device: each one keeps memory of the GPU and of the host."""
        with self._lock:
            staying = [worker for worker in self._idle if worker.device == device and worker.usable][:remaining]
            for worker in self._idle:
                if worker not in staying:
                    worker.kill()
            self._idle = staying

    def _take(self, device: str) -> Worker | None:
        with self._lock:
            for worker in self._idle:
                if not worker.usable:
                    worker.kill()
            self._idle = [worker for worker in self._idle if worker.usable]
            match = next((worker for worker in self._idle if worker.device == device), None)
            if match:
                self._idle.remove(match)
            return match

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            self._idle.append(worker)


def out_folder() -> Path | None:
    """The folder in $OUT, which also gets the results, if that variable is set."""
    return Path(os.environ["OUT"]) if os.environ.get("OUT") else None
