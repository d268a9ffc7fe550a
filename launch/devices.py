"""The GPUs that this process may use and the memory of the smallest one, found without importing torch."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")
"""Has a folder for each GPU; missing in WSL2 and in some containers."""


def count_gpus() -> int:
    """Count the GPUs that this process may use."""
    return len(gpus())


def gpus() -> list[str]:
    """Return the GPUs that this process may use, each as CUDA_VISIBLE_DEVICES names it."""
    installed = len(list(DRIVER.glob("*"))) or len(_memories())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(installed)]
    return [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")][:installed]


def gpu_mem() -> float | None:
    """Return the GiB of the smallest GPU; None without a GPU or when nvidia-smi gives no answer."""
    return min(_memories(), default=None) if count_gpus() else None


def gpu_name() -> str | None:
    """Return the name of the GPUs; None without a GPU, when nvidia-smi gives no answer, or when their names differ."""
    names = set(_each_gpu("name")) if count_gpus() else set[str]()
    return names.pop() if len(names) == 1 else None


def _memories() -> list[float]:
    """Return the GiB of each GPU on this machine; empty when nvidia-smi is missing or gives no answer."""
    return [int(size) / 1024 for size in _each_gpu("memory.total") if size.isdigit()]


@cache
def _each_gpu(value: str) -> list[str]:
    """Return one of nvidia-smi's values for each GPU; empty when nvidia-smi is missing or gives no answer."""
    command = ["nvidia-smi", f"--query-gpu={value}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def torch_is_for_cpus() -> bool:
    """Return whether the installed torch is a build without support for GPUs."""
    spec = find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if file is None or not file.is_file():
        return False
    return not re.search(r"^(?:cuda|hip)\b[^=]*= *['\"]", file.read_text(encoding="utf-8"), re.MULTILINE)


if __name__ == "__main__":  # a launcher on another machine asks
    print(count_gpus())
