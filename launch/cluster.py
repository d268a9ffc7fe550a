"""Clusters: what there is to run on, read from configs/clusters/ or a file of one's own."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from wellread.config import CONFIGS, RunConfig
from wellread.errors import UserError
from wellread.models.registry import SEARCH_PATH
from wellread.planning.plan import Cluster, Plan

Kind = Literal["local", "hostfile", "slurm"]
FOLDER = CONFIGS / "clusters"
OWNED = {
    "array", "chdir", "dependency", "error", "job-name", "kill-on-invalid-dep", "no-requeue", "nodes", "ntasks",
    "ntasks-per-node", "open-mode", "output", "requeue", "signal", "time",
}  # fmt: skip
"""Options of sbatch that a cluster's file may not give: ranks, paths and signals would not be what launch relies on."""
GPUS = re.compile(r"(?:^|(?<=,))gpu(?P<type>:[^:,(]+(?=:)|:[^:,(]*[^:,(\d][^:,(]*)?(?::(?P<number>\d+))?(?=[,(]|$)")
"""The GPUs in a gres: gpu, gpu:8, gpu:a100:8; a type may begin with a digit, as in gpu:2080ti:4."""


@dataclass(frozen=True, kw_only=True)
class ClusterFile:
    """A cluster as its YAML file describes it."""

    kind: Kind
    name: str = ""
    """Stem of the file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: on slurm, cuda when `gres` asks for GPUs; elsewhere, when this machine has one."""
    ranks_per_node: int | None = None
    """What `--ranks_per_node auto` means (default: the GPUs or slots of a node, or 1)."""
    python: str | None = None
    """Interpreter on the nodes (default: the one that runs launch)."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that every rank gets."""
    interface: str | None = None
    """Network interface between the nodes (default: the one on the route to rank 0)."""
    hostfile: str = "hostfile"
    """hostfile: path of the list of hosts."""
    ssh: str = "ssh"
    """hostfile: command that reaches a host, options included."""
    forward: tuple[str, ...] = ()
    """hostfile: variables of this shell that the ranks get too; nothing else of it goes over."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    """slurm: resources of a whole node, e.g. gpu:a100:8."""
    time: str = "24:00:00"
    """slurm: limit of one job: minutes, HH:MM:SS or D-HH:MM:SS."""
    memory: float | None = None
    """GiB of host memory per node; a SLURM job asks for it."""
    gpu_mem: float | None = None
    """GiB of each GPU, where launch cannot ask the devices."""
    nvme: float | None = None
    """GiB that `--nvme_path` has on each node, where launch cannot look."""
    cpus_per_rank: int | None = None
    exclusive: bool = False
    setup: tuple[str, ...] = ()
    """slurm: shell lines before the ranks start, e.g. module load cuda."""
    srun: tuple[str, ...] = ()
    """slurm: further arguments of srun, e.g. --container-image=…"""
    sbatch: dict[str, str] = field(default_factory=dict)
    """slurm: any further options of sbatch."""
    signal_delay: int = 90
    """slurm: seconds before the time limit at which the ranks are asked to save."""
    requeues: int = 20
    """slurm: how often a run may be queued again by itself."""

    def __post_init__(self) -> None:
        for name in ("requeues", "signal_delay"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: {getattr(self, name)} must be at least 0")
        for name in ("ranks_per_node", "cpus_per_rank", "memory", "gpu_mem", "nvme"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}: {value} must be above 0")
        limit = minutes(self.time) * 60
        if self.kind == "slurm" and self.signal_delay >= limit:
            raise UserError(f"time: {self.time!r} is not above the signal_delay of {self.signal_delay} s; raise it")
        for name, value in {f.name: getattr(self, f.name) for f in fields(self) if f.name != "setup"}.items():
            texts = (
                [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
            )
            if any(re.search(r"[\x00-\x1f\x7f]", str(text)) for text in texts):
                raise UserError(f"{name}: {value!r} holds a control character, at which a line of a script would end")
        if wrong := [key for key in self.sbatch if not re.fullmatch(r"[A-Za-z][A-Za-z_-]*", key)]:
            raise UserError(f"sbatch: {wrong[0]!r} is no option; write its long name without dashes in front")
        if taken := [key for key in self.sbatch if key.replace("_", "-") in OWNED]:
            raise UserError(f"sbatch: {taken[0]!r} is set by launch: from its flags, or the other keys of this file")

    @property
    def gpus(self) -> int:
        """GPUs of a node that `gres` names."""
        found = GPUS.search(self.gres or "")
        return int(found["number"] or 1) if found else 0


def minutes(time: str) -> int:
    """SLURM's time limit in minutes, rounded up.

    Raises
    ------
    UserError
        When it has none of SLURM's forms.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time.strip())
    if not match:
        raise UserError(f"time: {time!r} is no time; write minutes, HH:MM:SS or D-HH:MM:SS")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if any(number > 59 for number in numbers[1:]):
        raise UserError(f"time: {time!r} has more than 59 behind a colon; write minutes, HH:MM:SS or D-HH:MM:SS")
    if days is not None:  # D-HH[:MM[:SS]]
        hours, mins, seconds = (*numbers, 0, 0)[:3]
        total = ((int(days) * 24 + hours) * 60 + mins) * 60 + seconds
    elif len(numbers) == 3:
        total = (numbers[0] * 60 + numbers[1]) * 60 + numbers[2]
    else:  # MM[:SS]
        total = numbers[0] * 60 + (numbers[1] if len(numbers) == 2 else 0)
    if total < 60:
        raise UserError(f"time: {time!r} is below a minute, the least that SLURM can limit; write at least 1")
    return -(-total // 60)


def load(name: str) -> ClusterFile:
    """Read configs/clusters/NAME.yaml, or the file that `name` is the path of.

    Raises
    ------
    UserError
        When there is none, or it holds something unknown; names the file and the key.
    """
    import yaml

    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise UserError(f"--cluster {name}: unknown; choose {known}, or name a YAML file that describes yours")
    try:
        # Every scalar as text: YAML's own rules would read 24:00:00 as the number 86,400.
        values = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--cluster {path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict) or "kind" not in values:
        raise UserError(f"--cluster {path}: no kind; write kind: local, hostfile or slurm")
    hints = get_type_hints(ClusterFile)
    own = {f.name for f in fields(ClusterFile)} - {"name"}
    if unknown := sorted(set(values) - own):
        raise UserError(f"--cluster {path}: unknown key {unknown[0]!r}; known are {', '.join(sorted(own))}")
    try:
        converted = {key: _field(key, value, hints[key]) for key, value in values.items()}
        return ClusterFile(**converted | {"name": path.stem})
    except UserError as error:
        raise UserError(f"--cluster {path}: {error}") from None


def _field(key: str, value: Any, hint: Any) -> Any:
    try:
        return _converted(value, hint)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _converted(value: Any, hint: Any) -> Any:
    """Text of a YAML file as the type that a field has."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UserError(f"{value!r} is none of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is dict:
        if not isinstance(value or {}, dict):
            raise UserError(f"{value!r} is no mapping; write NAME: value, a line each")
        return {str(key): _text(item) for key, item in (value or {}).items()}
    if get_origin(hint) is tuple:
        items = [value] if isinstance(value, str) and value else value or []
        if not isinstance(items, list):
            raise UserError(f"{value!r} is no list; write - value, a line each")
        return tuple(_text(item) for item in items)
    kind, value = kinds[0] if kinds else hint, _text(value)
    if kind is bool:
        if value.lower() not in ("true", "false", "yes", "no"):
            raise UserError(f"{value!r} is neither true nor false")
        return value.lower() in ("true", "yes")
    try:
        found = None if value in ("", "null", "~") and kinds else kind(value)
    except ValueError:
        found = float("nan")
    if kind in (int, float) and found is not None and not isfinite(found):
        raise UserError(f"{value!r} is no {'whole number' if kind is int else 'number'}")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{value!r} where one value is expected; put it in quotes")
    return value


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
    found: list[Host] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"([\w.@:\[\]-]+)(?:\s+slots\s*=\s*([1-9]\d*))?", text)
        if not match or match.group(1).startswith("-"):
            raise UserError(f"hostfile {path} line {number}: {text!r} is no host; write host slots=N")
        if match.group(1) in {host.name for host in found}:
            raise UserError(f"hostfile {path} line {number}: {match.group(1)} is there twice; raise its slots instead")
        found.append(Host(match.group(1), int(match.group(2) or 1)))
    if not found:
        raise UserError(f"hostfile {path}: lists no hosts; write one 'host slots=N' a line")
    return found


def probe(config: RunConfig, cluster: ClusterFile) -> Cluster:
    """Describe what `config` asks of `cluster`, as far as a plan needs it.

    Raises
    ------
    UserError
        When the cluster cannot give that many nodes or ranks.
    """
    if cluster.kind == "local":
        return _probe_local(config, cluster)
    if cluster.kind == "hostfile":
        return _probe_hosts(config, cluster)
    device = ("cuda" if cluster.gpus else "cpu") if cluster.device == "auto" else cluster.device
    most = cluster.gpus if device == "cuda" else 0
    return _described(config, cluster, device, cluster.gpus or 1, most, f"gres: {cluster.gres}")


def _probe_local(config: RunConfig, cluster: ClusterFile) -> Cluster:
    if config.nodes != 1:
        raise UserError(f"--nodes {config.nodes}: the local cluster is one machine; choose 1, or --cluster slurm")
    gpus = 0 if cluster.device == "cpu" else count_gpus()
    if cluster.device == "cuda" and not gpus:
        raise UserError(f"--cluster {cluster.name}: asks for device cuda, but this machine has no GPU")
    return _described(config, cluster, "cuda" if gpus else "cpu", gpus or 1, gpus, "this machine's GPUs")


def _probe_hosts(config: RunConfig, cluster: ClusterFile) -> Cluster:
    listed = hosts(cluster)
    if config.nodes > len(listed):
        raise UserError(f"--nodes {config.nodes}: {cluster.hostfile} lists {len(listed)}; choose at most that")
    slots = min(host.slots for host in listed[: config.nodes])
    device = ("cuda" if count_gpus() else "cpu") if cluster.device == "auto" else cluster.device
    return _described(config, cluster, device, slots, slots, f"slots in {cluster.hostfile}")


def _described(config: RunConfig, cluster: ClusterFile, device: str, usual: int, most: int, limit: str) -> Cluster:
    """The plan's view; at most `most` ranks a node (0: as many as one likes), as `limit` says."""
    asked = config.ranks_per_node
    ranks = (cluster.ranks_per_node or usual) if asked == "auto" else asked
    if most and ranks > most:
        raise UserError(f"--ranks_per_node {ranks}: beyond the {most} of a node ({limit}); choose at most that")
    return Cluster(kind=cluster.kind, nodes=config.nodes, ranks_per_node=ranks, device=device)


def count_gpus() -> int:
    """GPUs that this process may use, counted without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if visible is None or not devices:
        return devices
    return min(devices, len([part for part in visible.split(",") if part.strip() not in ("", "-1")]))


def environment(plan: Plan, cluster: ClusterFile) -> dict[str, str]:
    """Variables that the ranks need beyond those of the launcher, the same for all."""
    cores = len(os.sched_getaffinity(0)) // plan.ranks_per_node if cluster.kind != "slurm" else cluster.cpus_per_rank
    python = Path(cluster.python).parent.parent if cluster.python else Path(sys.prefix)
    variables = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores or 1))),
        # One cache of compiled ops per environment: two that share one rebuild each other's.
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(python / "torch_extensions")),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONFAULTHANDLER": "1",  # a rank that crashes outside Python leaves its stack in its log
    }
    if folders := os.environ.get(SEARCH_PATH):  # made absolute: the ranks start in another folder
        found = [str(Path(folder).expanduser().resolve()) for folder in folders.split(os.pathsep) if folder]
        variables[SEARCH_PATH] = os.pathsep.join(found)
    if plan.device == "cpu":
        variables["DS_ACCELERATOR"] = "cpu"
        # Threads that spin while they wait for each other take the cores from what else runs there, and are slower.
        variables["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "passive")
    else:  # torch would round page-locked memory up to a power of two, and keep what is freed: 44 GiB become 64
        variables["PYTORCH_ALLOC_CONF"] = os.environ.get("PYTORCH_ALLOC_CONF", "pinned_max_cached_size_mb:1")
    if cluster.interface:
        variables |= dict.fromkeys(INTERFACE_VARIABLES, cluster.interface)
    return variables | cluster.environment


INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""What gloo and NCCL take the network interface from."""
