"""Flags of `launch` that are no part of what a run is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn, Self

from wellread.errors import UserError

if TYPE_CHECKING:
    from argparse import Namespace

    from jsonargparse import ArgumentParser

    from launch.cluster import ClusterFile

EVALUATION_EXAMPLES = """examples:
  python -m launch run eval membership runs/tiny-sample --fan_out
  python -m launch run eval membership runs/tiny-sample --cluster slurm --fan_out --array_parallelism 8 --wait
  python -m launch run eval verify runs/tiny-sample --cluster my-cluster.yaml --time 0:30:00

Flags that are not listed go to the evaluation: see python -m eval COMMAND --help.
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
                raise UserError(f"--{name} {size:g}: must be a number of GiB above 0; leave it out where nobody knows")

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """The options among the parsed `values`."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def add(parser: ArgumentParser) -> None:
    """Give `parser` these flags."""
    group = parser.add_argument_group("how it is started")
    group.add_argument(
        "--wait", action="store_true", help="slurm: follow the job, return its exit code (local always does)."
    )
    group.add_argument(
        "--then",
        choices=["none", "eval"],
        default="none",
        help="What follows a finished run: nothing, or eval membership.",
    )
    group.add_argument(
        "--snapshot",
        choices=["on", "off"],
        default="on",
        help="on runs a copy of the working tree in RUN/code; off runs the tree itself, for development.",
    )
    group.add_argument("--strict", action="store_true", help="Refuse a working tree that differs from its commit.")
    group.add_argument("--gpu_mem", type=float, help="GiB of each GPU, instead of what the devices say.")
    group.add_argument("--host_mem", type=float, help="GiB of host memory per node, instead of what the nodes say.")
    group.add_argument("--nvme", type=float, help="GiB of NVMe per node; launch plan then needs no --nvme_path.")
    group.add_argument("--force", action="store_true", help="Start though memory or disk will not do.")
    group.add_argument(
        "--ladder",
        choices=["on", "off"],
        default="on",
        help="on: when memory ran out, go on with the next strategy that fits; off: end.",
    )
    group.add_argument("--time", help="slurm: time limit, instead of the cluster file's, e.g. 2:00:00.")
    group.add_argument("--partition", help="slurm: partition, instead of the cluster file's.")


def cluster_of(name: str, time: str | None, partition: str | None) -> ClusterFile:
    """The cluster's file, with what the command line puts in the place of its own."""
    from launch import cluster

    file = cluster.load(name)
    return cluster.with_flags(file, time, partition)


def evaluation_flags(argv: list[str]) -> tuple[Namespace, list[str]]:
    """Flags of ``launch run eval``, and those that belong to the evaluation itself."""
    from argparse import ArgumentParser, RawDescriptionHelpFormatter

    class Parser(ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(message)

    parser = Parser(
        prog="python -m launch run eval",
        description="Evaluate a run, here or as SLURM jobs.",
        epilog=EVALUATION_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", help="What to evaluate: membership, verify, report, …")
    parser.add_argument("run", help="Run directory.")
    parser.add_argument("--cluster", default="local", help="local, slurm or FILE.yaml (default: local).")
    parser.add_argument("--fan_out", action="store_true", help="One task per checkpoint, then one that compares.")
    parser.add_argument("--array_parallelism", type=int, help="Tasks at a time (default: all; local: one per GPU).")
    parser.add_argument("--wait", action="store_true", help="slurm: follow the jobs, return their exit code.")
    parser.add_argument("--time", help="slurm: time limit, instead of the cluster file's.")
    parser.add_argument("--partition", help="slurm: partition, instead of the cluster file's.")
    parsed, rest = parser.parse_known_args(argv)
    if parsed.array_parallelism is not None and parsed.array_parallelism < 1:
        raise UserError(f"--array_parallelism {parsed.array_parallelism}: must be at least 1")
    return parsed, rest
