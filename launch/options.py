"""Flags that say how a run is started; they are not part of its settings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from typing import TYPE_CHECKING, Any, Self

from wellread.errors import UserError

if TYPE_CHECKING:
    from argparse import Namespace

    from jsonargparse import ArgumentParser

    from launch.cluster import ClusterFile

EVALUATION_EXAMPLES = """examples:
  wellread run eval membership runs/tiny-sample --fan_out
  wellread run eval membership runs/tiny-sample --cluster slurm --fan_out --array_parallelism 8 --wait
  wellread run eval verify runs/tiny-sample --cluster my-cluster.yaml --time 0:30:00

Flags that are not listed are those of the evaluation: see wellread EVALUATION --help.
"""


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """How a run is started."""

    wait: bool = False
    snapshot: str = "on"
    strict: bool = False
    then: str = "none"
    time: str | None = None
    partition: str | None = None
    gpu_mem: float | None = None
    host_mem: float | None = None
    nvme: float | None = None
    force: bool = False
    ladder: str = "on"

    def __post_init__(self) -> None:
        for name in ("gpu_mem", "host_mem", "nvme"):
            size = getattr(self, name)
            if size is not None and not 0 < size < inf:
                raise UserError(f"--{name} {size:g}: must be a number of GiB above 0; leave it out if it is not known")

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """The options among the parsed `values`."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def add(parser: ArgumentParser) -> None:
    """Give `parser` these flags."""
    group = parser.add_argument_group("launch: how the run is started")
    group.add_argument(
        "--wait", action="store_true", help="slurm: follow the job, return its exit code; local always does."
    )
    group.add_argument(
        "--then",
        choices=["none", "eval"],
        default="none",
        help="After the run has finished: nothing, or evaluate membership.",
    )
    group.add_argument(
        "--snapshot",
        choices=["on", "off"],
        default="on",
        help="on: run a copy of the working tree in RUN/code; off: run the tree itself, for development.",
    )
    group.add_argument("--strict", action="store_true", help="Refuse a working tree that differs from its commit.")
    group.add_argument(
        "--gpu_mem", type=float, metavar="X", help=f"GiB of each GPU {_default('what the GPUs report')}."
    )
    group.add_argument(
        "--host_mem", type=float, metavar="X", help=f"GiB of host memory per node {_default('what the nodes report')}."
    )
    group.add_argument(
        "--nvme",
        type=float,
        metavar="X",
        help=f"GiB of NVMe per node; wellread plan then needs no --nvme_path {_default('what the disk reports')}.",
    )
    group.add_argument("--force", action="store_true", help="Start even if memory or disk space is not enough.")
    group.add_argument(
        "--ladder",
        choices=["on", "off"],
        default="on",
        help="on: after an out-of-memory error continue with the next strategy that fits; off: end.",
    )
    _add_limits(group)


def _default(text: str) -> str:
    return f"(default: {text})"


def _add_limits(group: Any) -> None:
    file = _default("the cluster file's")
    group.add_argument("--time", help=f"slurm: time limit, e.g. 2:00:00 {file}.")
    group.add_argument("--partition", help=f"slurm: partition {file}.")


def cluster_of(name: str, time: str | None, partition: str | None) -> ClusterFile:
    """The cluster file, with the time limit and partition of the command line, if any."""
    from launch import cluster

    file = cluster.load(name)
    return cluster.with_flags(file, time, partition)


def evaluation_flags(argv: list[str]) -> tuple[Namespace, list[str]]:
    """Flags of ``wellread run eval``, and those of the evaluation itself."""
    from wellread.cli import parse_known, plain_parser, refuse_typo

    parser = plain_parser("wellread run eval", "Evaluate a run, here or as SLURM jobs.", EVALUATION_EXAMPLES)
    parser.add_argument(
        "command", metavar="EVALUATION", help="E.g. membership, forgetting or report; wellread --help lists them."
    )
    parser.add_argument("run", metavar="RUN", help="Run directory.")
    parser.add_argument("--cluster", default="local", help="local, slurm or FILE.yaml.")
    parser.add_argument("--fan_out", action="store_true", help="One task per checkpoint, then one that compares.")
    parser.add_argument(
        "--array_parallelism", type=int, metavar="N", help="Tasks at the same time (default: all; local: one per GPU)."
    )
    parser.add_argument("--wait", action="store_true", help="slurm: follow the jobs, return their exit code.")
    _add_limits(parser)
    parsed, of_evaluation = parse_known(parser, argv)
    if parsed.array_parallelism is not None and parsed.array_parallelism < 1:
        raise UserError(f"--array_parallelism {parsed.array_parallelism}: must be at least 1")
    for argument in of_evaluation:  # the evaluation knows the rest, but it cannot suggest a flag of `run eval`
        refuse_typo(argument, parser)
    return parsed, of_evaluation
