"""The number of GPUs of this machine and the memory of the smallest one, found without importing torch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def count_gpus() -> int:
    """Count the GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if visible is None or not devices:
        return devices
    return min(devices, len([part for part in visible.split(",") if part.strip() not in ("", "-1")]))


def gpu_mem() -> float | None:
    """Return the GiB of the smallest GPU; None without a GPU or when nvidia-smi gives no answer."""
    if not count_gpus():
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return min((int(line) / 1024 for line in result.stdout.split() if line.isdigit()), default=None)
