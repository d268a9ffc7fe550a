"""What the machine has, asked in a process of its own."""

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
class Found:
    """What the machine has."""

    machine: Machine
    gpus: list[str]
    """Their names."""
    torch: str
    deepspeed: str | None
    why: str | None
    """Why DeepSpeed cannot be imported."""


def environment(device: str) -> dict[str, str]:
    """Of every process that is started: no network; on a CPU, no GPU in sight."""
    common = {"HF_HUB_OFFLINE": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "WELLREAD_LAUNCHER": str(os.getpid())}
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if device == "cpu" else {}
    return {**os.environ, **common, **hidden}


def look(device: str, host_mem: float | None, folder: Path) -> Found:
    """Ask a process of its own what there is: this one keeps off the GPUs.

    Raises
    ------
    UserError
        When torch cannot be imported, or does not answer.
    """
    command = [sys.executable, "-m", "scripts.gpu_check.rank", "probe"]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(device),
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_LOOK,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"gpu-check: torch has not found the GPUs in {SECONDS_TO_LOOK} s; try nvidia-smi") from None
    if done.returncode:
        raise UserError(f"gpu-check: {last_line(done.stderr)}; install torch, transformers and accelerate")
    seen = json.loads(last_line(done.stdout))
    gpus = seen["gpus"]
    machine = Machine(
        device=device,
        ranks_per_node=len(gpus) or 1,
        gpu_mem=min(gpu["bytes"] for gpu in gpus) / GIB if gpus else None,
        host_mem=host_mem or host_memory.total() / GIB,
        nvme=shutil.disk_usage(folder).free / GIB,
    )
    return Found(machine, [gpu["name"] for gpu in gpus], seen["torch"], seen["deepspeed"], seen["why"])


def last_line(text: str) -> str:
    """The last line of what a program said that is not blank."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


def used_before() -> list[int]:
    """Bytes in use on each GPU that can be seen, in their order; none where nvidia-smi is missing, and 0 is assumed."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return visible_use(done.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible_use(table: str, visible: str | None) -> list[int]:
    """Bytes in use on the GPUs that CUDA_VISIBLE_DEVICES names, by number or the beginning of their UUID.

    Parameters
    ----------
    table : str
        Number, UUID and MiB in use, a line per GPU.
    """
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines()]
    used = [
        (number, uuid, int(size) * 2**20) for number, uuid, size in (r for r in rows if len(r) == 3) if size.isdigit()
    ]
    if visible is None:
        return [size for _, _, size in used]
    named = [part.strip() for part in visible.split(",")]
    return [
        next((size for n, uuid, size in used if name and (name == n or uuid.startswith(name))), 0) for name in named
    ]
