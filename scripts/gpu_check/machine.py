"""Hardware and packages of this machine, measured in a separate process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from wellread.errors import UserError
from wellread.planning import host_memory
from wellread.planning.machine import Machine
from wellread.units import GIB

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS_TO_LOOK = 300


@dataclass(frozen=True)
class Inventory:
    """Hardware and packages of the machine."""

    machine: Machine
    gpus: list[str]
    """Names of the GPUs."""
    torch: str
    deepspeed: str | None
    why: str | None
    """Why DeepSpeed cannot be imported."""


def environment(device: str) -> dict[str, str]:
    """Environment of all started processes: no network; on a CPU, GPUs are hidden."""
    common = {"HF_HUB_OFFLINE": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "WELLREAD_LAUNCHER": str(os.getpid())}
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if device == "cpu" else {}
    return {**os.environ, **common, **hidden}


def look(device: str, host_mem: float | None, folder: Path) -> Inventory:
    """Measure in a separate process, so that this one uses no GPU.

    Raises
    ------
    UserError
        When torch cannot be imported, or does not return in time.
    """
    command = [sys.executable, "-m", "scripts.gpu_check.rank", "probe"]
    try:
        process = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(device),
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_LOOK,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"gpu-check: torch did not find the GPUs in {SECONDS_TO_LOOK} s; try nvidia-smi") from None
    if process.returncode:
        raise UserError(f"gpu-check: {last_line(process.stderr)}; install torch, transformers and accelerate")
    answer = json.loads(last_line(process.stdout))
    gpus = answer["gpus"]
    machine = Machine(
        device=device,
        ranks_per_node=len(gpus) or 1,
        gpu_mem=min(gpu["bytes"] for gpu in gpus) / GIB if gpus else None,
        host_mem=host_mem or host_memory.total() / GIB,
        nvme=shutil.disk_usage(folder).free / GIB,
    )
    return Inventory(machine, [gpu["name"] for gpu in gpus], answer["torch"], answer["deepspeed"], answer["why"])


def last_line(text: str) -> str:
    """The last line of a program's output that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


def used_before() -> list[int]:
    """Bytes in use on each visible GPU, in their order; empty if nvidia-smi is missing (the caller then assumes 0)."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.used", "--format=csv,noheader,nounits"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return visible_use(process.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible_use(table: str, visible: str | None) -> list[int]:
    """Bytes in use on the GPUs in CUDA_VISIBLE_DEVICES, which contains numbers or first characters of UUIDs.

    Parameters
    ----------
    table : str
        Number, UUID and MiB in use, one line per GPU.
    """
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines()]
    used = [
        (number, uuid, int(size) * 2**20) for number, uuid, size in (r for r in rows if len(r) == 3) if size.isdigit()
    ]
    if visible is None:
        return [size for _, _, size in used]
    gpus = [part.strip() for part in visible.split(",")]
    return [next((size for n, uuid, size in used if gpu and (gpu == n or uuid.startswith(gpu))), 0) for gpu in gpus]
