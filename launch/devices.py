"""What this machine has: its GPUs, and the memory of the smallest of them; nothing heavy is imported to ask."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def count_gpus() -> int:
    """GPUs that this process may use, counted without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if visible is None or not devices:
        return devices
    return min(devices, len([part for part in visible.split(",") if part.strip() not in ("", "-1")]))


def gpu_mem() -> float | None:
    """GiB of the smallest GPU; None without one, and where nvidia-smi does not say."""
    if not count_gpus():
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return min((int(line) / 1024 for line in result.stdout.split() if line.isdigit()), default=None)
