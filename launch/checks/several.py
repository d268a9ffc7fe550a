"""The doctor's checks of several machines: each sends a report through srun or ssh, and the reports are compared.

The backend of the cluster starts the checks on the nodes (`launch.backends`).
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.checks import software
from launch.checks.check import Check
from launch.checks.node import MARK, Report, Request, code_hash
from launch.cluster import ClusterFile
from wellread.provenance import ROOT

MOST_NODES = 8
"""Largest number of nodes that are checked when --nodes is not set."""
SECONDS_PER_NODE = 150
"""How long the checks of one node may take; importing torch from a cold network filesystem is slow."""
SECONDS_TO_BUILD = 1800
SKEW, WORST_SKEW = 2.0, 30.0
"""Seconds of difference between two clocks that give a warning, and a failure: ninja and make compare file times."""
SHARED = f"put {ROOT}, its runs/ and its Python on a filesystem that all nodes mount at the same path"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Output of a command that ran the checks on one or more nodes."""

    reports: list[tuple[Report, float]]
    """Each with the time when it arrived."""
    code: int
    stderr: list[str]
    """Lines of stderr, including those of ssh or srun."""
    in_time: bool


def say(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def node_command(cluster: ClusterFile, request: Request) -> list[str]:
    """Return the command that runs the checks on a node of `cluster`."""
    return [cluster.python or sys.executable, "-m", "launch.checks.node", json.dumps(asdict(request))]


def of_node(report: Report, at: float, request: Request, gpus: int) -> Iterator[Check]:
    """Yield the checks in a node's report and the comparisons with this machine."""
    yield from report.checks
    yield _shared(report, request)
    yield clock(report.host, at - report.time)
    yield _versions(report, software.versions())
    if gpus:
        enough = report.gpus >= gpus
        yield Check(
            check="gpus",
            where=report.host,
            state="ok" if enough else "failed",
            found=f"{report.gpus} of {gpus} in the cluster file or hostfile",
            remedy="" if enough else "correct gres: or slots=, or check nvidia-smi on that node",
        )


def _shared(report: Report, request: Request) -> Check:
    """Check that a node sees this machine's code and the file that the doctor wrote."""
    visible = request.token is not None and report.token == Path(request.token).name
    same = report.code == code_hash()
    parts = [
        "sees files written here" if visible else f"does not see a file written to {request.runs}",
        "same code" if same else f"the code in {report.root} differs",
    ]
    return Check(
        check="shared folder",
        where=report.host,
        state="ok" if visible and same else "failed",
        found=", ".join(parts),
        remedy="" if visible and same else SHARED,
    )


def clock(host: str, seconds: float) -> Check:
    """Compare a node's clock with this machine's.

    Parameters
    ----------
    seconds : float
        How far the node's clock is behind, including the transfer time of the report.
    """
    off = abs(seconds)
    if off < SKEW:
        return Check(check="clock", where=host, state="ok", found=f"within {SKEW:g} s of this machine's")
    return Check(
        check="clock",
        where=host,
        state="warning" if off <= WORST_SKEW else "failed",
        found=f"{off:.0f} s {'behind' if seconds > 0 else 'ahead of'} this machine's",
        remedy="synchronize the clocks: systemctl enable --now systemd-timesyncd, or chrony",
    )


def _versions(report: Report, local: dict[str, str]) -> Check:
    names = sorted({*local, *report.versions})
    differences = [
        f"{name} {report.versions.get(name, 'missing')} (here {local.get(name, 'missing')})"
        for name in names
        if report.versions.get(name) != local.get(name)
    ]
    return Check(
        check="versions",
        where=report.host,
        state="failed" if differences else "ok",
        found=", ".join(differences) or "same as here",
        remedy="use one environment on all nodes: python: in the cluster file" if differences else "",
    )


@contextmanager
def shared_file(runs: Path) -> Iterator[Path]:
    """Create a file in the folder of runs that contains its own name; remove it at the end."""
    runs.mkdir(parents=True, exist_ok=True)
    path = runs / f".doctor-{secrets.token_hex(8)}"
    try:
        path.write_text(path.name, encoding="utf-8")
        yield path
    finally:
        path.unlink(missing_ok=True)


def ask(command: list[str], seconds: float, environment: dict[str, str] | None = None) -> Answer:
    """Run a command that prints reports of nodes, for at most `seconds`."""
    late = threading.Event()
    pieces: dict[str, str] = {}
    arrivals: dict[str, float] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout
        timer = threading.Timer(seconds, _give_up, (process, late))
        timer.start()
        try:
            for line in process.stdout:
                mark, separator, piece = line.partition(MARK)[2].partition(" ")
                if separator:
                    pieces[mark] = pieces.get(mark, "") + piece.removesuffix("\n")
                    arrivals[mark] = time.time()
            code = process.wait()
        finally:
            timer.cancel()
            _end(process)
            process.stdout.close()
        stderr.seek(0)
        lines = [" ".join(line.split()) for line in stderr if line.strip()]
    reports = []
    for mark, text in pieces.items():
        with suppress(ValueError):  # incomplete
            reports.append((Report.of(text), arrivals[mark]))
    return Answer(
        reports=sorted(reports, key=lambda it: it[0].host), code=code, stderr=lines, in_time=not late.is_set()
    )


def _give_up(process: subprocess.Popen[str], late: threading.Event) -> None:
    late.set()
    _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
