"""Hosts of a hostfile, in DeepSpeed's form: one ``host slots=N`` a line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from launch.cluster import ClusterFile
from wellread.errors import UserError


@dataclass(frozen=True)
class Host:
    """A line of a hostfile."""

    name: str
    slots: int


def hosts(cluster: ClusterFile) -> list[Host]:
    """Hosts of a hostfile, in its order.

    Raises
    ------
    UserError
        When the file is missing or a line is none; names file and line.
    """
    path = Path(cluster.hostfile).expanduser()
    if not path.is_file():
        raise UserError(
            f"hostfile {path}: not found; write one 'host slots=N' a line, or name it in the cluster's file"
        )
    listed: list[Host] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"([\w.@:\[\]-]+)(?:\s+slots\s*=\s*([1-9]\d*))?", text)
        if not match or match.group(1).startswith("-"):
            raise UserError(f"hostfile {path} line {number}: {text!r} is no host; write host slots=N")
        if match.group(1) in {host.name for host in listed}:
            raise UserError(f"hostfile {path} line {number}: {match.group(1)} is there twice; raise its slots instead")
        listed.append(Host(match.group(1), int(match.group(2) or 1)))
    if not listed:
        raise UserError(f"hostfile {path}: lists no hosts; write one 'host slots=N' a line")
    return listed
