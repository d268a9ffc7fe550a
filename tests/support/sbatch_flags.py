"""A cluster without settings of its own, and the flags of an sbatch file."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from launch.cluster import ClusterFile

PLAIN = ClusterFile(kind="slurm", name="slurm", python="/opt/venv/bin/python")


def flags(text: str, parse: Callable[[str], list[str]] = shlex.split) -> dict[str, str]:
    """Flags among the comments at the head of a script, as sbatch takes them."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        if not line.startswith("#"):
            if line.strip():
                break  # sbatch stops at the first command
            continue
        if line.startswith("#SBATCH"):
            (word,) = parse(line.removeprefix("#SBATCH"))
            name, _, value = word.partition("=")
            assert name.startswith("--")
            assert name not in found
            found[name] = value
    return found
