"""The doctor's checks of the hosts of a hostfile: each host runs `launch.checks.node` through ssh."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from launch.backends.ssh.connections import ssh_command
from launch.backends.ssh.hosts import Host, hosts
from launch.checks import several
from launch.checks.check import Check
from launch.checks.node import Request, installed
from launch.cluster import ClusterFile
from wellread.errors import UserError
from wellread.provenance import ROOT

SECONDS_TO_CONNECT = 10


def checks(cluster: ClusterFile, request: Request, nodes: int | None, no_job: bool) -> Iterator[Check]:
    """Yield the checks of this machine and, without `no_job`, of the first `nodes` hosts (None: all hosts)."""
    yield from installed(request)
    listed = hosts(cluster)
    if nodes and nodes > len(listed):
        raise UserError(f"--nodes {nodes}: {cluster.hostfile} has {len(listed)}; choose at most {len(listed)}")
    listed = listed[:nodes]
    text = f"{len(listed)} hosts, {sum(host.slots for host in listed)} slots"
    yield Check(check="hostfile", where=cluster.name, state="ok", found=text)
    if not no_job:
        several.say(f"checking {len(listed)} host{'s' * (len(listed) > 1)} through {cluster.ssh.split()[0]}")
        with several.shared_file(Path(request.runs)) as token:
            node_request = replace(request, several=len(listed) > 1, token=str(token))
            yield from ask_hosts(cluster, listed, node_request)


def ask_hosts(cluster: ClusterFile, listed: list[Host], request: Request) -> list[Check]:
    """Run the checks on all hosts at the same time through ssh, and compare the reports."""
    with ThreadPoolExecutor(len(listed)) as pool:
        return [
            check for results in pool.map(lambda host: _ask_host(cluster, host, request), listed) for check in results
        ]


def _ask_host(cluster: ClusterFile, host: Host, request: Request) -> list[Check]:
    seconds = SECONDS_TO_CONNECT + several.SECONDS_PER_NODE + several.SECONDS_TO_BUILD * request.build
    try:
        line = f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(several.node_command(cluster, request))}"
        answer = several.ask(ssh_command(cluster, host.name, line, ConnectTimeout=SECONDS_TO_CONNECT), seconds)
    except FileNotFoundError as error:
        return [_unreached(host.name, f"{error.filename} not found", "correct ssh: in the cluster file")]
    if answer.reports:
        report, at = answer.reports[0]
        results = several.of_node(report, at, request, host.slots if report.gpus or cluster.device == "cuda" else 0)
        return [replace(check, where=host.name) for check in results]
    reason = answer.stderr[-1] if answer.stderr else f"ssh ended with code {answer.code}"
    if not answer.in_time:
        return [_unreached(host.name, f"no answer within {seconds} s", "check for a hanging filesystem")]
    if answer.code == 255:  # an error of ssh itself
        remedy = f"make `ssh {host.name} true` work without a prompt (ssh: in the cluster file)"
        return [_unreached(host.name, reason, remedy)]
    if answer.code in (126, 127):
        return [_unreached(host.name, reason, "set python: in the cluster file to the interpreter of the nodes")]
    return [_unreached(host.name, reason, several.SHARED)]


def _unreached(host: str, problem: str, remedy: str) -> Check:
    return Check(check="ssh", where=host, state="failed", found=problem, remedy=remedy)
