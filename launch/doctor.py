"""``wellread doctor``: check a machine or a cluster before a job starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch import cluster as clusters
from launch import ops
from launch.backends import base as backends
from launch.checks import node as doctor_node
from launch.checks.check import Check, failed, ok, warning
from launch.checks.several import MOST_NODES
from wellread.cli import new_parser, parse
from wellread.errors import FAILURE, UserError
from wellread.provenance import ROOT
from wellread.terminal import console, visible

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}

EXAMPLES = """examples:
  wellread doctor                                     this machine
  wellread doctor --build                             also compile DeepSpeed's ops, once
  wellread doctor --cluster slurm --nodes 2           the scheduler, and a small job on two nodes
  wellread doctor --cluster my-cluster.yaml --no_job  only checks that start nothing on the nodes
  wellread doctor --cluster hostfile --json           every host, through ssh

The exit code is 1 when a check fails, else 0.
"""


def main(argv: list[str]) -> int:
    """Run all checks and print them; return 1 when one failed, else 0."""
    parser = new_parser("wellread doctor", "Check this machine or a cluster before a job starts.", EXAMPLES)
    parser.add_argument("--cluster", default="local", help="local, hostfile, slurm, or a cluster's YAML file.")
    parser.add_argument(
        "--nodes",
        type=int | None,
        default=None,
        help=f"Number of nodes to check (default: hostfile: all; slurm: the free ones, at most {MOST_NODES}).",
    )
    parser.add_argument("--json", action="store_true", help="Print a list of {check, where, state, found, remedy}.")
    parser.add_argument("--build", action="store_true", help="Compile DeepSpeed's ops where they are missing.")
    parser.add_argument("--no_job", action="store_true", help="slurm, hostfile: start nothing on the nodes.")
    parser.add_argument("--runs", default="runs", help="Folder of run directories (default: runs).")
    parser.add_argument("--corpora", default="corpora", help="Folder of compiled corpora (default: corpora).")
    arguments = parse(parser, argv)
    cluster = clusters.load(arguments.cluster)
    if arguments.nodes is not None and arguments.nodes < 1:
        raise UserError(f"--nodes {arguments.nodes}: must be at least 1")
    request = doctor_node.Request(
        runs=str(Path(arguments.runs).expanduser().resolve()),
        corpora=str(Path(arguments.corpora).expanduser().resolve()),
        extensions=str(ops.folder(cluster).resolve()),
        device="cuda" if cluster.device == "auto" and cluster.gpus else cluster.device,
        memory=cluster.memory,
        build=arguments.build,
    )
    checks = [git(), *backends.of(cluster).checks(request, arguments.nodes, arguments.no_job)]
    if arguments.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        _show(checks)
    return FAILURE * any(check.state == "failed" for check in checks)


def git() -> Check:
    """Check that git can identify the code of a run."""
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except FileNotFoundError:
        return failed("git", "not found; code snapshots need it", "Debian: apt-get install git")
    if result.returncode:
        return warning("git", f"{ROOT} is not a repository; manifests contain no commit", "work in a clone")
    return ok("git", f"commit {result.stdout.strip()}")


def _show(checks: list[Check]) -> None:
    """Print a table on a terminal, else aligned text; equal results of several machines are one line."""
    merged = _merged(checks)
    if sys.stdout.isatty():
        console().print(_table(merged))
    else:
        print(as_text(merged))
    counts = Counter(check.state for check in checks)
    print(f"{len(checks)} checks: {counts['ok']} ok, {counts['warning']} warning, {counts['failed']} failed")


def _merged(checks: list[Check]) -> list[Check]:
    """Merge equal results of several machines into one check; keep checks of the same name together."""
    places: dict[Check, list[str]] = {}
    for check in checks:
        places.setdefault(replace(check, where=""), []).append(check.where)
    names = list(dict.fromkeys(check.check for check in checks))
    merged = [replace(check, where=" ".join(dict.fromkeys(where))) for check, where in places.items()]
    return sorted(merged, key=lambda check: names.index(check.check))


def as_text(checks: list[Check]) -> str:
    """Return the table as aligned lines, each remedy below its check."""
    rows = [(check.state, check.check, check.where, check.found) for check in checks]
    # "warning" is the longest state: the width does not depend on the results.
    widths = [len("warning"), *(max(len(row[column]) for row in rows) for column in (1, 2))]
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
        cell = Text(visible(check.found))
        if check.remedy:
            cell.append(f"\n→ {check.remedy}", style="cyan")
        table.add_row(Text(check.state, style=STYLES[check.state]), check.check, check.where, cell)
    return table
