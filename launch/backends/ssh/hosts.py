"""Hosts of a hostfile in DeepSpeed's format: one ``host slots=N`` per line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from launch.cluster import ClusterFile
from wellread.errors import UserError
from wellread.files import LONGEST_REASON
from wellread.text_io import read_text


@dataclass(frozen=True)
class Host:
    """A line of a hostfile."""

    name: str
    slots: int


def hosts(cluster: ClusterFile) -> list[Host]:
    """Return the hosts of a hostfile, in its order.

    Raises
    ------
    UserError
        When the file is missing or a line is invalid; says the file and the line.
    """
    path = Path(cluster.hostfile).expanduser()
    if not path.is_file():
        raise UserError(
            f"hostfile {path}: not found; write 'host slots=N', one per line, or set hostfile: in the cluster file"
        )
    listed: dict[str, Host] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"([\w.@:\[\]-]+)(?:\s+slots\s*=\s*([1-9][0-9]{0,5}))?", text)
        if not match or match.group(1).startswith("-"):
            text = text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"
            raise UserError(f"hostfile {path} line {number}: {text!r} is not a host; write host slots=N")
        if match.group(1) in listed:
            raise UserError(f"hostfile {path} line {number}: {match.group(1)} appears twice; raise its slots instead")
        listed[match.group(1)] = Host(match.group(1), int(match.group(2) or 1))
    if not listed:
        raise UserError(f"hostfile {path}: contains no hosts; write 'host slots=N', one per line")
    return list(listed.values())
