"""Cluster files: descriptions of where runs start, read from configs/clusters/ or a user's file."""

from __future__ import annotations

import os
import re
import reprlib
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from wellread.config import CONFIGS
from wellread.errors import UserError
from wellread.files import LONGEST_REASON
from wellread.text_io import load_yaml, read_text

BACKENDS = {
    "local": "launch.backends.local:Local",
    "hostfile": "launch.backends.ssh.backend:Ssh",
    "slurm": "launch.backends.slurm.backend:Slurm",
}
"""Kind of cluster -> the `launch.backends.base.Backend` for it, imported on first use."""
FOLDER = CONFIGS / "clusters"
OWNED = {
    "array", "chdir", "dependency", "error", "job-name", "kill-on-invalid-dep", "no-requeue", "nodes", "ntasks",
    "ntasks-per-node", "open-mode", "output", "requeue", "signal", "time",
}  # fmt: skip
"""Options of sbatch that a cluster file must not set: launch sets them, and relies on their values."""
GPUS = re.compile(r"(?:^|(?<=,))gpu(?P<type>:[^:,(]+(?=:)|:[^:,(]*[^:,(\d][^:,(]*)?(?::(?P<number>\d+))?(?=[,(]|$)")
"""The GPUs in a gres: gpu, gpu:8, gpu:a100:8. A type may start with a digit, as in gpu:2080ti:4."""
OF_SBATCH = ("gpus-per-node", "gpus-per-task", "gpus")
"""Options of sbatch that request GPUs; they are read as a gres, so that the plan and the job request the same."""
OTHER_GPUS = {"gres", "gpus-per-socket", "tres-per-job", "tres-per-node", "tres-per-socket", "tres-per-task"}
"""Options of sbatch that may request GPUs in ways that the plan cannot read."""
PATH = {"path": True}
"""Metadata of a field that is a path; ~ is expanded in it."""


@dataclass(frozen=True, kw_only=True)
class ClusterFile:
    """A cluster as its YAML file describes it."""

    kind: str
    """One of `BACKENDS`."""
    name: str = ""
    """Name of the file without its suffix."""
    path: str = field(default="", compare=False, repr=False)
    """Path of the file, for messages; empty for a cluster that was not read from a file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: on slurm, cuda when `gres` requests GPUs; otherwise cuda when this machine has a GPU, or the first host."""
    ranks_per_node: int | None = None
    """Value of `--ranks_per_node auto` (default: number of GPUs or slots of a node, else 1)."""
    python: str | None = field(default=None, metadata=PATH)
    """Python interpreter on the nodes (default: the one that runs launch)."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of every rank."""
    interface: str | None = None
    """Network interface between the nodes (default: the one on the route to rank 0)."""
    hostfile: str = field(default="hostfile", metadata=PATH)
    """hostfile: path of the list of hosts."""
    ssh: str = "ssh"
    """hostfile: command that connects to a host, with its options."""
    forward: tuple[str, ...] = ()
    """hostfile: variables of this shell that the ranks also get; no other variable is copied."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    """slurm: resources of a whole node, e.g. gpu:a100:8."""
    whole_job: bool = field(default=False, repr=False)
    """Whether the GPUs in `gres` are those of all nodes together, as in sbatch's ``--gpus``; not a key of the file."""
    time: str = "24:00:00"
    """slurm: time limit of one job: minutes, HH:MM:SS or D-HH:MM:SS."""
    memory: float | None = None
    """GiB of host memory per node; a SLURM job requests it (default: all memory of its nodes)."""
    gpu_mem: float | None = None
    """GiB of each GPU, for clusters on which launch cannot query the devices."""
    nvme: float | None = None
    """GiB at `--nvme_path` on each node, for clusters on which launch cannot measure it."""
    cpus_per_rank: int | None = None
    exclusive: bool = False
    setup: tuple[str, ...] = ()
    """slurm: shell lines that run before the ranks start, e.g. module load cuda."""
    srun: tuple[str, ...] = ()
    """slurm: more arguments of srun, e.g. --container-image=…"""
    sbatch: dict[str, str] = field(default_factory=dict)
    """slurm: any other options of sbatch."""
    signal_delay: int = 90
    """slurm: how many seconds before the time limit the ranks are asked to save."""
    requeues: int = 20
    """slurm: how often a job may requeue itself."""

    def __post_init__(self) -> None:
        if self.kind not in BACKENDS:
            raise UserError(f"kind: {_brief(self.kind)} is not one of {', '.join(BACKENDS)}")
        for name in ("requeues", "signal_delay"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: {getattr(self, name)} must be at least 0")
        for name in ("ranks_per_node", "cpus_per_rank", "memory", "gpu_mem", "nvme"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}: {value} must be above 0")
        try:
            minutes(self.time)
        except UserError as error:
            raise UserError(f"time {_brief(self.time)}: {error}") from None
        for name, value in {f.name: getattr(self, f.name) for f in fields(self) if f.name != "setup"}.items():
            texts = (
                [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
            )
            if any(re.search(r"[\x00-\x1f\x7f]", str(text)) for text in texts):
                raise UserError(
                    f"{name}: {_brief(value)} contains a control character, which would break the job script"
                )
        if wrong := [key for key in self.sbatch if not re.fullmatch(r"[A-Za-z][A-Za-z_-]*", key)]:
            raise UserError(f"sbatch: {_brief(wrong[0])} is not an option; write its long name without leading dashes")
        if reserved := [key for key in self.sbatch if key.replace("_", "-") in OWNED]:
            raise UserError(
                f"sbatch: {_brief(reserved[0])} is set by launch; use launch's flags or other keys of this file"
            )
        if unread := [key for key in self.sbatch if key.replace("_", "-") in OTHER_GPUS]:
            raise UserError(f"sbatch: {_brief(unread[0])} may request GPUs; write gres: with what a node has, as gpu:8")

    @property
    def gpus(self) -> int:
        """Number of GPUs per node in `gres`."""
        match = GPUS.search(self.gres or "")
        return int(match["number"] or 1) if match else 0

    def gpus_of(self, nodes: int) -> int:
        """Return the number of GPUs of each of `nodes` nodes.

        Raises
        ------
        UserError
            When the cluster file requests GPUs for the whole job that the nodes cannot share equally.
        """
        if not self.whole_job:
            return self.gpus
        if self.gpus % nodes:
            where = f"--cluster {self.path}: " * bool(self.path)
            raise UserError(f"{where}gpus: {self.gpus} cannot be divided by {nodes} nodes; write gres: gpu:N per node")
        return self.gpus // nodes


def minutes(time: str) -> int:
    """Convert a SLURM time limit to minutes, rounded up.

    Raises
    ------
    UserError
        When `time` has none of SLURM's formats; the caller adds where it was set.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time.strip())
    if not match:
        raise UserError("not a valid time; use minutes, HH:MM:SS or D-HH:MM:SS")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if any(number > 59 for number in numbers[1:]):
        raise UserError("more than 59 after a colon; use minutes, HH:MM:SS or D-HH:MM:SS")
    if days is not None:  # D-HH[:MM[:SS]]
        hours, mins, seconds = (*numbers, 0, 0)[:3]
        total = ((int(days) * 24 + hours) * 60 + mins) * 60 + seconds
    elif len(numbers) == 3:
        total = (numbers[0] * 60 + numbers[1]) * 60 + numbers[2]
    else:  # MM[:SS]
        total = numbers[0] * 60 + (numbers[1] if len(numbers) == 2 else 0)
    if total < 60:
        raise UserError("shorter than one minute, SLURM's smallest limit; use at least 1")
    return -(-total // 60)


def load(name: str) -> ClusterFile:
    """Read configs/clusters/NAME.yaml, or the file at path `name` when it ends in .yaml or .yml.

    Raises
    ------
    UserError
        When the file is missing or contains an unknown key or an invalid value; says the file and the key.
    """
    import yaml

    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        choices = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise UserError(f"--cluster {name}: unknown; choose {choices} or the path of a YAML file")
    try:
        # Read every scalar as text: YAML's own rules would read 24:00:00 as the number 86,400.
        values = load_yaml(read_text(path), "BaseLoader")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--cluster {path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict) or "kind" not in values:
        *kinds, last = BACKENDS
        raise UserError(f"--cluster {path}: has no kind; write kind: {', '.join(kinds)} or {last}")
    hints = get_type_hints(ClusterFile)
    keys = {f.name for f in fields(ClusterFile)} - {"name", "path", "whole_job"}
    if unknown := sorted(set(values) - keys):
        raise UserError(f"--cluster {path}: unknown key {_brief(unknown[0])}; use one of {', '.join(sorted(keys))}")
    try:
        converted = {key: _field(key, value, hints[key]) for key, value in values.items()}
        for key in (f.name for f in fields(ClusterFile) if "path" in f.metadata and converted.get(f.name)):
            converted[key] = os.path.expanduser(converted[key])
        return _with_gpus(ClusterFile(**converted | {"name": path.stem, "path": str(path)}))
    except UserError as error:
        raise UserError(f"--cluster {path}: {error}") from None


def _with_gpus(file: ClusterFile) -> ClusterFile:
    """Return `file` with the GPUs that sbatch's own options request as part of its gres."""
    requests = {key: key.replace("_", "-") for key in file.sbatch if key.replace("_", "-") in OF_SBATCH}
    if not requests:
        return file
    (key, option), *repeats = requests.items()
    if repeats or file.gpus:
        raise UserError(f"sbatch: {_brief(key)} requests GPUs a second time; keep only gres: gpu:N, the GPUs of a node")
    match = re.fullmatch(r"(?:([^:,\s]+):)?([1-9]\d{0,5})", file.sbatch[key].strip())
    if not match:
        raise UserError(f"sbatch: {key} {_brief(file.sbatch[key])} is not a number of GPUs; write 4 or a100:4")
    number = int(match[2]) * ((file.ranks_per_node or 1) if option == "gpus-per-task" else 1)
    gres = ",".join(filter(None, [file.gres, ":".join(filter(None, ["gpu", match[1], str(number)]))]))
    options = {name: value for name, value in file.sbatch.items() if name != key}
    return replace(file, gres=gres, sbatch=options, whole_job=option == "gpus")


def with_flags(file: ClusterFile, time: str | None, partition: str | None) -> ClusterFile:
    """Return `file` with the values of ``--time`` and ``--partition``, where they are set.

    Raises
    ------
    UserError
        When a value is invalid; says the flag.
    """
    if time is not None:
        try:
            minutes(time)
        except UserError as error:
            raise UserError(f"--time {time}: {error}") from None
    return replace(file, time=time or file.time, partition=partition or file.partition)


def _field(key: str, value: Any, hint: Any) -> Any:
    try:
        return _converted(value, hint)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _converted(value: Any, hint: Any) -> Any:
    """Convert text from a YAML file to the type of a field."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UserError(f"{_brief(value)} is not one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is dict:
        if not isinstance(value or {}, dict):
            raise UserError(f"{_brief(value)} is not a mapping; write NAME: value, one per line")
        return {str(key): _text(item) for key, item in (value or {}).items()}
    if get_origin(hint) is tuple:
        items = [value] if isinstance(value, str) and value else value or []
        if not isinstance(items, list):
            raise UserError(f"{_brief(value)} is not a list; write - value, one per line")
        return tuple(_text(item) for item in items)
    kind, value = kinds[0] if kinds else hint, _text(value)
    if kind is bool:
        if value.lower() not in ("true", "false", "yes", "no"):
            raise UserError(f"{_brief(value)} is neither true nor false")
        return value.lower() in ("true", "yes")
    try:
        number = None if value in ("", "null", "~") and kinds else kind(value)
    except ValueError:
        number = float("nan")
    if kind in (int, float) and number is not None and not isfinite(number):
        raise UserError(f"{_brief(value)} is not a {'whole number' if kind is int else 'number'}")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{_brief(value)}: expected a single value; put it in quotes")
    return value


def _brief(value: Any) -> str:
    """A value as an error names it: aliases can make a list of a few lines longer than any memory."""
    short = reprlib.Repr()
    short.maxstring, short.maxlevel = LONGEST_REASON, 2
    return short.repr(value)
