"""The doctor's checks of a SLURM cluster: the scheduler, then a small job that runs the checks on each node."""

from __future__ import annotations

import getpass
import os
import secrets
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from launch.backends.slurm import scheduler
from launch.checks import several
from launch.checks.check import Check
from launch.checks.node import Request, installed
from launch.cluster import ClusterFile
from wellread.provenance import ROOT

SECONDS_IN_QUEUE = 20
MEMORY_OF_JOB = "2G"


def checks(cluster: ClusterFile, request: Request, nodes: int | None, no_job: bool) -> Iterator[Check]:
    """Yield the checks of this machine, of the scheduler, and of a small job on `nodes` nodes (None: the free ones)."""
    yield from installed(request)
    reached = scheduler.scheduler(cluster.name)
    yield reached
    if reached.state == "failed":
        return
    yield from (members := scheduler.membership(cluster))
    if any(check.state == "failed" for check in members):
        return
    listed = scheduler.nodes_of(cluster)
    count = nodes or max(1, min(several.MOST_NODES, sum(node.free for node in listed)))
    yield (states := scheduler.nodes(cluster, listed, count))
    if states.state == "failed":
        return
    yield (accepted := scheduler.submission(cluster, count, Path(request.runs)))
    if no_job or accepted.state == "failed":
        return
    several.say(f"running a small job on {count} node{'s' * (count > 1)}")
    with several.shared_file(Path(request.runs)) as token:
        node_request = replace(request, several=count > 1, token=str(token))
        yield from ask_slurm(cluster, count, node_request)


def ask_slurm(cluster: ClusterFile, nodes: int, request: Request) -> list[Check]:
    """Run the checks as a small job on `nodes` nodes, and compare the reports."""
    name = f"wellread-doctor-{secrets.token_hex(6)}"
    command = srun_command(cluster, nodes, replace(request, in_job=True), name)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_")) or k == "SLURM_CONF"}
    seconds = SECONDS_IN_QUEUE + several.SECONDS_PER_NODE + several.SECONDS_TO_BUILD * request.build
    answered = False
    try:
        answer = several.ask(command, seconds, environment)
        answered = answer.in_time
    finally:
        if not answered:  # no other job has this name
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(["scancel", "--name", name, "--user", getpass.getuser()], timeout=20, check=False)
    results = [
        check for report, at in answer.reports for check in several.of_node(report, at, request, cluster.gpus_of(nodes))
    ]
    if len(answer.reports) < nodes:
        results.append(_missing(cluster, nodes, answer, seconds))
    return results


def srun_command(cluster: ClusterFile, nodes: int, request: Request, name: str) -> list[str]:
    """Return the command that runs the checks on `nodes` nodes."""
    seconds = several.SECONDS_PER_NODE + several.SECONDS_TO_BUILD * request.build
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
    part = several.node_command(cluster, request)
    if cluster.setup:
        part = ["bash", "-c", "\n".join([*cluster.setup, f"exec {shlex.join(part)}"])]
    flags = [f"--{option}={value}" for option, value in options.items() if value is not None]
    return ["srun", *flags, *cluster.srun, *part]


def _missing(cluster: ClusterFile, nodes: int, answer: several.Answer, seconds: int) -> Check:
    """Return a check that explains why fewer nodes than requested have sent a report."""
    where = cluster.name
    errors = [line.partition("error:")[2].strip() or line for line in answer.stderr if "queued and waiting" not in line]
    text = f"{len(answer.reports)} of {nodes} nodes answered"
    if not answer.in_time:
        return Check(
            check="job",
            where=where,
            state="failed",
            found=f"{text} within {seconds} s",
            remedy="check sinfo -R for failed nodes; a hanging network filesystem has the same effect",
        )
    if any("nodes are busy" in line or "Immediate execution" in line for line in answer.stderr):
        return Check(
            check="job",
            where=where,
            state="warning",
            found=f"no {nodes} free nodes within {SECONDS_IN_QUEUE} s; the nodes were not checked",
            remedy="try again later, with fewer --nodes, or with --no_job",
        )
    remedy = (
        several.SHARED if any("No module named" in line or "No such file" in line for line in answer.stderr) else ""
    )
    remedy = remedy or "compare the cluster file with sinfo and scontrol show partition"
    reason = errors[-1] if errors else f"srun ended with code {answer.code}"
    return Check(check="job", where=where, state="failed", found=f"{text}: {reason}", remedy=remedy)
