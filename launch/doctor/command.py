"""``python -m launch doctor``: checks before a job does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch import cluster as clusters
from launch import ops
from launch.cluster import ClusterFile
from launch.doctor import cluster as doctor_cluster
from launch.doctor import node as doctor_node
from launch.doctor import scheduler as doctor_scheduler
from launch.doctor.check import Check, failed, ok, warning
from wellread.cli import new_parser, parse
from wellread.errors import FAILURE, UserError
from wellread.provenance import ROOT

if TYPE_CHECKING:
    from rich.table import Table

MOST_NODES = 8
"""How many nodes of a SLURM cluster are looked at, unless --nodes says otherwise."""
STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}

EXAMPLES = """examples:
  python -m launch doctor                                     this machine
  python -m launch doctor --build                             and compile DeepSpeed's ops now, once
  python -m launch doctor --cluster slurm --nodes 2           the scheduler, and a small job on two nodes
  python -m launch doctor --cluster my-cluster.yaml --no_job  what can be said without starting anything
  python -m launch doctor --cluster hostfile --json           every host, through ssh

The exit code is 1 when a check has failed, else 0.
"""


def main(argv: list[str]) -> int:
    """Run all checks and show them; 1 when one has failed."""
    parser = new_parser("python -m launch doctor", "Check this machine, or a cluster, before a job does.", EXAMPLES)
    parser.add_argument("--cluster", default="local", help="local, hostfile, slurm, or a cluster's YAML file.")
    parser.add_argument(
        "--nodes",
        type=int | None,
        default=None,
        help=f"How many to look at (default: hostfile: all; slurm: the free ones, at most {MOST_NODES}).",
    )
    parser.add_argument("--json", action="store_true", help="Print a list of {check, where, state, found, remedy}.")
    parser.add_argument("--build", action="store_true", help="Compile DeepSpeed's ops where they are missing.")
    parser.add_argument("--no_job", action="store_true", help="slurm, hostfile: start nothing on the nodes.")
    parser.add_argument("--runs", default="runs", help="Folder that run directories go to (default: runs).")
    parser.add_argument("--corpora", default="corpora", help="Folder of compiled corpora (default: corpora).")
    asked = parse(parser, argv)
    cluster = clusters.load(asked.cluster)
    _refuse(cluster, asked.nodes)
    request = doctor_node.Request(
        runs=str(Path(asked.runs).expanduser().resolve()),
        corpora=str(Path(asked.corpora).expanduser().resolve()),
        extensions=str(ops.folder(cluster).resolve()),
        device="cuda" if cluster.device == "auto" and cluster.gpus else cluster.device,
        memory=cluster.memory,
        build=asked.build,
    )
    found = list(_checks(cluster, request, asked.nodes, asked.no_job))
    if asked.json:
        print(json.dumps([asdict(check) for check in found], indent=2))
    else:
        _show(found)
    return FAILURE * any(check.state == "failed" for check in found)


def _refuse(cluster: ClusterFile, nodes: int | None) -> None:
    if nodes is not None and nodes < 1:
        raise UserError(f"--nodes {nodes}: must be at least 1")
    if cluster.kind == "local" and (nodes or 1) > 1:
        raise UserError(f"--nodes {nodes}: the local cluster is one machine; choose 1, or --cluster slurm")


def _checks(cluster: ClusterFile, request: doctor_node.Request, nodes: int | None, no_job: bool) -> Iterator[Check]:
    yield git()
    if cluster.kind == "local":
        yield from doctor_node.report(request).checks
        return
    yield from doctor_node.installed(request)
    if cluster.kind == "hostfile":
        yield from _hosts(cluster, request, nodes, no_job)
    else:
        yield from _slurm(cluster, request, nodes, no_job)


def _hosts(cluster: ClusterFile, request: doctor_node.Request, nodes: int | None, no_job: bool) -> Iterator[Check]:
    hosts = clusters.hosts(cluster)
    if nodes and nodes > len(hosts):
        raise UserError(f"--nodes {nodes}: {cluster.hostfile} lists {len(hosts)}; choose at most that")
    hosts = hosts[:nodes]
    text = f"{len(hosts)} hosts, {sum(host.slots for host in hosts)} slots"
    yield Check(check="hostfile", where=cluster.name, state="ok", found=text)
    if not no_job:
        _say(f"asking {len(hosts)} host{'s' * (len(hosts) > 1)} through {cluster.ssh.split()[0]}")
        with doctor_cluster.shared_file(Path(request.runs)) as token:
            asked = replace(request, several=len(hosts) > 1, token=str(token))
            yield from doctor_cluster.ask_hosts(cluster, hosts, asked)


def _slurm(cluster: ClusterFile, request: doctor_node.Request, nodes: int | None, no_job: bool) -> Iterator[Check]:
    reached = doctor_scheduler.scheduler(cluster.name)
    yield reached
    if reached.state == "failed":
        return
    yield from (members := doctor_scheduler.membership(cluster))
    if any(check.state == "failed" for check in members):
        return
    listed = doctor_scheduler.nodes_of(cluster)
    wanted = nodes or max(1, min(MOST_NODES, sum(node.free for node in listed)))
    yield (states := doctor_scheduler.nodes(cluster, listed, wanted))
    if states.state == "failed":
        return
    yield (taken := doctor_scheduler.submission(cluster, wanted, Path(request.runs)))
    if no_job or taken.state == "failed":
        return
    _say(f"running a small job on {wanted} node{'s' * (wanted > 1)}")
    with doctor_cluster.shared_file(Path(request.runs)) as token:
        asked = replace(request, several=wanted > 1, token=str(token))
        yield from doctor_cluster.ask_slurm(cluster, wanted, asked)


def git() -> Check:
    """Whether git can name the code of a run."""
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return failed("git", "not found; code snapshots are taken with it", "Debian: apt-get install git")
    if done.returncode:
        return warning("git", f"{ROOT} is no repository: manifests name no commit", "work in a clone")
    return ok("git", f"commit {done.stdout.strip()}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(checks: list[Check]) -> None:
    """Print a table on a terminal, aligned text elsewhere; what several machines share is one line."""
    merged = _merged(checks)
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(_table(merged))
    else:
        print(as_text(merged))
    counts = Counter(check.state for check in checks)
    print(f"{len(checks)} checks: {counts['ok']} ok, {counts['warning']} warning, {counts['failed']} failed")


def _merged(checks: list[Check]) -> list[Check]:
    """One check where several machines have found the very same; those of one name stand together."""
    places: dict[Check, list[str]] = {}
    for check in checks:
        places.setdefault(replace(check, where=""), []).append(check.where)
    names = list(dict.fromkeys(check.check for check in checks))
    merged = [replace(check, where=" ".join(dict.fromkeys(where))) for check, where in places.items()]
    return sorted(merged, key=lambda check: names.index(check.check))


def as_text(checks: list[Check]) -> str:
    """The table as aligned lines, a remedy below what it is for."""
    rows = [(check.state, check.check, check.where, check.found) for check in checks]
    widths = [len("warning"), *(max(len(row[column]) for row in rows) for column in (1, 2))]  # the same, well or not
    lines = []
    for check, row in zip(checks, rows, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, check.found]))
        if check.remedy:
            lines.append(" " * (sum(widths) + 6) + f"-> {check.remedy}")
    return "\n".join(lines)


def _table(checks: list[Check]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("", "check", "where", "found"):
        table.add_column(title, overflow="fold")
    for check in checks:
        found = Text(check.found)
        if check.remedy:
            found.append(f"\n→ {check.remedy}", style="cyan")
        table.add_row(Text(check.state, style=STYLES[check.state]), check.check, check.where, found)
    return table
