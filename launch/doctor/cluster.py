"""What the doctor checks of several machines: each tells of itself, through srun or ssh, and they have to agree."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launch import cluster as clusters
from launch.cluster import ClusterFile
from launch.doctor import software
from launch.doctor.check import Check
from launch.doctor.node import MARK, Report, Request, code_hash
from launch.hostfile import SSH_OPTIONS
from wellread.provenance import ROOT

SECONDS_IN_QUEUE = 20
SECONDS_PER_NODE = 150
"""How long one node may look at itself; torch from a cold network filesystem takes its time."""
SECONDS_TO_BUILD = 1800
SECONDS_TO_CONNECT = 10
SKEW, WORST_SKEW = 2.0, 30.0
"""Seconds between two clocks: ninja and make compare file times; logs and leases bear somewhat more."""
MEMORY_OF_JOB = "2G"
SHARED = f"{ROOT}, its runs/ and its Python have to lie where all nodes see them, under the same path"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back from a command that ran the node part somewhere."""

    reports: list[tuple[Report, float]]
    """Each with the time of its arrival."""
    code: int
    said: list[str]
    """Lines of stderr, ssh's or srun's among them."""
    in_time: bool


def ask_slurm(cluster: ClusterFile, nodes: int, request: Request) -> list[Check]:
    """Run the node part as a small job on `nodes` nodes, and compare what they tell."""
    name = f"wellread-doctor-{secrets.token_hex(6)}"
    command = srun_command(cluster, nodes, replace(request, in_job=True), name)
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_")) or k == "SLURM_CONF"}
    seconds = SECONDS_IN_QUEUE + SECONDS_PER_NODE + SECONDS_TO_BUILD * request.build
    done = False
    try:
        answer = _run(command, seconds, own)
        done = answer.in_time
    finally:
        if not done:  # the name is this job's alone
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(["scancel", "--name", name, "--user", getpass.getuser()], timeout=20, check=False)
    found = [check for report, at in answer.reports for check in _of_node(report, at, request, cluster.gpus)]
    if len(answer.reports) < nodes:
        found.append(_missing(cluster, nodes, answer, seconds))
    return found


def srun_command(cluster: ClusterFile, nodes: int, request: Request, name: str) -> list[str]:
    """What starts the node part on `nodes` nodes."""
    seconds = SECONDS_PER_NODE + SECONDS_TO_BUILD * request.build
    options = {
        "job-name": name,
        "nodes": nodes,
        "ntasks-per-node": 1,
        "immediate": SECONDS_IN_QUEUE,
        "time": -(-seconds // 60),
        "mem": MEMORY_OF_JOB,
        "chdir": ROOT,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "gres": cluster.gres,
        "reservation": cluster.sbatch.get("reservation"),
    }
    part = _node_command(cluster, request)
    if cluster.setup:
        part = ["bash", "-c", "\n".join([*cluster.setup, f"exec {shlex.join(part)}"])]
    asked = [f"--{option}={value}" for option, value in options.items() if value is not None]
    return ["srun", *asked, *cluster.srun, *part]


def _node_command(cluster: ClusterFile, request: Request) -> list[str]:
    return [cluster.python or sys.executable, "-m", "launch.doctor.node", json.dumps(asdict(request))]


def _missing(cluster: ClusterFile, nodes: int, answer: Answer, seconds: int) -> Check:
    """Why fewer nodes than asked for have told of themselves."""
    where = cluster.name
    errors = [line.partition("error:")[2].strip() or line for line in answer.said if "queued and waiting" not in line]
    text = f"{len(answer.reports)} of {nodes} nodes answered"
    if not answer.in_time:
        return Check(
            check="job",
            where=where,
            state="failed",
            found=f"{text} within {seconds} s",
            remedy="sinfo -R tells of nodes in trouble; a network filesystem that hangs looks like this",
        )
    if any("nodes are busy" in line or "Immediate execution" in line for line in answer.said):
        return Check(
            check="job",
            where=where,
            state="warning",
            found=f"no {nodes} free nodes within {SECONDS_IN_QUEUE} s: what runs there was not looked at",
            remedy="try again later, with fewer --nodes, or with --no_job",
        )
    remedy = SHARED if any("No module named" in line or "No such file" in line for line in answer.said) else ""
    remedy = remedy or "compare the cluster's file with sinfo and scontrol show partition"
    reason = errors[-1] if errors else f"srun ended with code {answer.code}"
    return Check(check="job", where=where, state="failed", found=f"{text}: {reason}", remedy=remedy)


def ask_hosts(cluster: ClusterFile, hosts: list[clusters.Host], request: Request) -> list[Check]:
    """Run the node part on each host through ssh, all at once, and compare what they tell."""
    with ThreadPoolExecutor(len(hosts)) as pool:
        return [check for found in pool.map(lambda host: _ask_host(cluster, host, request), hosts) for check in found]


def _ask_host(cluster: ClusterFile, host: clusters.Host, request: Request) -> list[Check]:
    seconds = SECONDS_TO_CONNECT + SECONDS_PER_NODE + SECONDS_TO_BUILD * request.build
    try:
        answer = _run(ssh_command(cluster, host.name, request), seconds)
    except FileNotFoundError as error:
        return [_unreached(host.name, f"{error.filename} not found", "name the command that reaches a host as ssh:")]
    if answer.reports:
        report, at = answer.reports[0]
        own = _of_node(report, at, request, host.slots if report.gpus or cluster.device == "cuda" else 0)
        return [replace(check, where=host.name) for check in own]
    reason = answer.said[-1] if answer.said else f"ssh ended with code {answer.code}"
    if not answer.in_time:
        return [_unreached(host.name, f"no answer within {seconds} s", "a filesystem that hangs looks like this")]
    if answer.code == 255:  # ssh's own
        remedy = f"ssh {host.name} true has to work without a question (ssh: in the cluster's file)"
        return [_unreached(host.name, reason, remedy)]
    if answer.code in (126, 127):
        return [_unreached(host.name, reason, "name the interpreter of the nodes as python: in the cluster's file")]
    return [_unreached(host.name, reason, SHARED)]


def ssh_command(cluster: ClusterFile, host: str, request: Request) -> list[str]:
    """What starts the node part on `host`."""
    asked = SSH_OPTIONS | {"ConnectTimeout": str(SECONDS_TO_CONNECT)}
    options = [word for name, value in asked.items() for word in ("-o", f"{name}={value}")]
    line = f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(_node_command(cluster, request))}"
    return [*shlex.split(cluster.ssh), *options, "-T", host, line]


def _unreached(host: str, found: str, remedy: str) -> Check:
    return Check(check="ssh", where=host, state="failed", found=found, remedy=remedy)


def _of_node(report: Report, at: float, request: Request, gpus: int) -> Iterator[Check]:
    """Checks that a node made itself, and comparisons with this machine."""
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
            found=f"{report.gpus} of {gpus} that the cluster's file or hostfile names",
            remedy="" if enough else "correct gres: or slots=, or look at nvidia-smi there",
        )


def _shared(report: Report, request: Request) -> Check:
    """Whether a node sees this machine's code and the file that the doctor wrote."""
    seen = request.token is not None and report.token == Path(request.token).name
    same = report.code == code_hash()
    found = [
        "a file written here is read there" if seen else f"a file written in {request.runs} does not appear there",
        "the same code" if same else f"the code in {report.root} is not this",
    ]
    return Check(
        check="shared folder",
        where=report.host,
        state="ok" if seen and same else "failed",
        found=", ".join(found),
        remedy="" if seen and same else SHARED,
    )


def clock(host: str, seconds: float) -> Check:
    """A node's clock against this machine's; `seconds` is how far it is behind, the way home included."""
    off = abs(seconds)
    if off < SKEW:
        return Check(check="clock", where=host, state="ok", found=f"within {SKEW:g} s of this machine's")
    return Check(
        check="clock",
        where=host,
        state="warning" if off <= WORST_SKEW else "failed",
        found=f"{off:.0f} s {'behind' if seconds > 0 else 'ahead of'} this machine's",
        remedy="synchronise the clocks: systemctl enable --now systemd-timesyncd, or chrony",
    )


def _versions(report: Report, here: dict[str, str]) -> Check:
    names = sorted({*here, *report.versions})
    others = [
        f"{name} {report.versions.get(name, 'missing')} (here {here.get(name, 'missing')})"
        for name in names
        if report.versions.get(name) != here.get(name)
    ]
    return Check(
        check="versions",
        where=report.host,
        state="failed" if others else "ok",
        found=", ".join(others) or "the same as here",
        remedy="use one environment for all: python: in the cluster's file" if others else "",
    )


@contextmanager
def shared_file(runs: Path) -> Iterator[Path]:
    """A new file in the folder of the runs that holds its own name."""
    runs.mkdir(parents=True, exist_ok=True)
    path = runs / f".doctor-{secrets.token_hex(8)}"
    try:
        path.write_text(path.name)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _run(command: list[str], seconds: float, environment: dict[str, str] | None = None) -> Answer:
    """Run a command that brings node reports home, for at most so many seconds."""
    late = threading.Event()
    pieces: dict[str, str] = {}
    arrivals: dict[str, float] = {}
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout
        timer = threading.Timer(seconds, _give_up, (process, late))
        timer.start()
        try:
            for line in process.stdout:
                mark, found, rest = line.partition(MARK)[2].partition(" ")
                if found:
                    pieces[mark] = pieces.get(mark, "") + rest.removesuffix("\n")
                    arrivals[mark] = time.time()
            code = process.wait()
        finally:
            timer.cancel()
            _end(process)
            process.stdout.close()
        said.seek(0)
        lines = [" ".join(line.split()) for line in said if line.strip()]
    reports = []
    for mark, text in pieces.items():
        with suppress(ValueError):  # cut off in the middle
            reports.append((Report.of(text), arrivals[mark]))
    return Answer(reports=sorted(reports, key=lambda it: it[0].host), code=code, said=lines, in_time=not late.is_set())


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
