"""A cluster file with default settings, and the flags of an sbatch script."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from launch.cluster import ClusterFile

PLAIN = ClusterFile(kind="slurm", name="slurm", python="/opt/venv/bin/python")


def flags(text: str, parse: Callable[[str], list[str]] = shlex.split) -> dict[str, str]:
    """The flags that sbatch reads from the comments at the top of a script."""
    values: dict[str, str] = {}
    for line in text.split("\n"):
        if not line.startswith("#"):
            if line.strip():
                break  # sbatch stops at the first command
            continue
        if line.startswith("#SBATCH"):
            (word,) = parse(line.removeprefix("#SBATCH"))
            name, _, value = word.partition("=")
            assert name.startswith("--")
            assert name not in values
            values[name] = value
    return values
