"""What the doctor checks of the software on a machine: Python, packages, torch and its devices, compiler, ops."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from launch import ops
from launch.checks.check import Check, failed, ok, warning
from wellread import provenance
from wellread.errors import UserError

SECONDS_TO_IMPORT = 90
SETUP = "make setup installs the versions of constraints.txt"

PACKAGES = (
    "torch", "deepspeed", "transformers", "tokenizers", "peft", "accelerate", "datasets", "submitit", "sentencepiece",
    "safetensors", "numpy", "pyarrow", "tensorboard",
)  # fmt: skip
"""Those whose versions a run depends on."""


def python(version: tuple[int, ...]) -> Check:
    """The interpreter."""
    text = f"{'.'.join(map(str, version))} ({sys.executable})"
    if version < (3, 11):
        return failed("python", text, "wellread needs 3.11 or newer: make setup PYTHON=python3.12")
    return ok("python", text)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run depends on; those that are missing are left out."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def pinned() -> dict[str, str]:
    """Package -> version in constraints.txt."""
    file = provenance.ROOT / "constraints.txt"
    lines = file.read_text().splitlines() if file.is_file() else []
    return {name.lower(): version for name, equal, version in (line.partition("==") for line in lines) if equal}


def packages(installed: dict[str, str], pins: dict[str, str]) -> Check:
    """Versions of packages against constraints.txt."""
    if missing := [name for name in PACKAGES if name not in installed]:
        return failed("packages", f"missing: {', '.join(missing)}", SETUP)
    differences = [
        f"{name} {version} (pinned {pins[name]})"
        for name, version in installed.items()
        if name in pins and version.partition("+")[0] != pins[name]
    ]
    if differences:
        return warning("packages", ", ".join(differences), SETUP)
    return ok("packages", ", ".join(f"{name} {installed[name]}" for name in ("torch", "deepspeed", "transformers")))


_IMPORT = """
import json, time
began = time.time()
import torch
usable = torch.cuda.is_available()
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count() if usable else 0)]
print(json.dumps({
    "seconds": time.time() - began,
    "version": torch.__version__,
    "built": f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip
    else "CPU",
    "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus],
}))
"""


def import_torch(seconds: float = SECONDS_TO_IMPORT) -> dict[str, Any] | str:
    """What torch says of itself and of the GPUs, or why it cannot; in a process of its own, for it may hang."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", _IMPORT], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"hangs: no end of the import within {seconds:g} s"
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"the import ended with code {result.returncode}"
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def torch(importing: dict[str, Any] | str) -> Check:
    """Whether torch can be imported."""
    if isinstance(importing, str):
        slow = "hangs" in importing
        return failed("torch", importing, "look at the filesystem it lies on, and at nvidia-smi" if slow else SETUP)
    built = f"{importing['built']} build, imported in {importing['seconds']:.1f} s"
    return ok("torch", f"{importing['version']}, {built}")


def device(importing: dict[str, Any], requested: str, gpus: int, has_driver: bool) -> Check:
    """What ranks compute on; torch's build against the devices and the driver that are there.

    Parameters
    ----------
    importing : dict
        `gpus` that torch can use and what it is `built` for.
    gpus : int
        GPUs that this process may use according to the driver.
    """
    built, usable = importing["built"], importing["gpus"]
    cores = f"CPU, {len(os.sched_getaffinity(0))} cores"
    if requested == "cpu":
        return ok("device", cores)
    if usable:
        kinds = ", ".join(f"{usable.count(kind)} x {kind}" for kind in dict.fromkeys(usable))
        return ok("device", f"{kinds}, torch for {built}")
    if gpus and built == "CPU":
        remedy = f"install torch {importing['version'].partition('+')[0]} for CUDA: pytorch.org/get-started/locally"
        return failed("device", f"{gpus} GPUs, but torch is the CPU build", remedy)
    if gpus:
        remedy = "update the driver, or install the torch build for its CUDA version (nvidia-smi shows it)"
        return failed("device", f"{gpus} GPUs, but torch for {built} cannot use them", remedy)
    if requested == "cuda":
        return failed("device", f"no GPU here ({cores})", "compare nvidia-smi, CUDA_VISIBLE_DEVICES and gres:")
    if built != "CPU":
        why = "CUDA_VISIBLE_DEVICES hides the GPUs" if has_driver else "there is no NVIDIA driver"
        remedy = "unset it" if has_driver else "with a GPU in this machine: install its driver; else ignore this"
        return warning("device", f"{cores}: torch is built for {built}, but {why}", remedy)
    return ok("device", cores)


def compiler(ready: bool) -> Check:
    """The C++ compiler that torch would use; `ready` when all ops are compiled already."""
    name = os.environ.get("CXX", "c++")
    path = shutil.which(name)
    if path is None:
        remedy = "Debian: apt-get install g++; a cluster: a module load line under setup:"
        problem = f"{name} not found; zero1, zero2, zero3 on CPUs and all offload compile with it"
        return warning("compiler", problem, remedy) if ready else failed("compiler", problem, remedy)
    result = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    if result.returncode:
        return failed("compiler", f"{path} --version ends with code {result.returncode}", "install it again")
    return ok("compiler", f"{path}: {result.stdout.splitlines()[0]}")


def ninja() -> Check:
    """The build tool, which torch runs even for ops that are compiled."""
    path = shutil.which("ninja")
    if path is None:
        folder = Path(sys.executable).parent
        remedy = f"PATH={folder}:$PATH" if (folder / "ninja").exists() else "pip install ninja"
        return failed("ninja", "not found; DeepSpeed's ops load through it", remedy)
    return ok("ninja", path)


def locks(cache: Path) -> list[Check]:
    """Build locks; the stale ones are removed."""
    removed = ops.remove_stale_locks(cache)
    checks = [
        warning("build lock", f"stale, removed: {lock}", "a killed build left it; every job would have waited for it")
        for lock in removed
    ]
    for lock in cache.glob("**/lock"):
        if pids := ops.holders(lock):
            text = f"{lock}: process {', '.join(map(str, pids))} builds"
            checks.append(warning("build lock", text, "jobs wait until it is done: one to four minutes"))
        else:
            text = f"{lock}: nobody builds on this machine, but another host, user or container may"
            remedy = f"remove it if none does; it goes by itself after {ops.SECONDS_OUT_OF_SIGHT // 60} minutes"
            checks.append(warning("build lock", text, remedy))
    return checks or [ok("build lock", "none")]


def op_compiled(op: str, cache: Path, build: bool, on_gpu: bool) -> Check:
    """Whether one of DeepSpeed's ops is compiled; with `build`, it is now."""
    if ops.compiled(op, cache):
        return ok(f"op: {op}", "compiled")
    if not build:
        problem = "not compiled; the first job that needs it does, in one to four minutes"
        return warning(f"op: {op}", problem, "python -m launch doctor --build, with the same --cluster")
    began = time.monotonic()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the answer
            ops.ensure(op, {"TORCH_EXTENSIONS_DIR": str(cache)} | ({} if on_gpu else {"DS_ACCELERATOR": "cpu"}))
    except UserError as error:
        return failed(f"op: {op}", " ".join(str(error).split()), "mend the compiler first")
    return ok(f"op: {op}", f"compiled now, in {time.monotonic() - began:.0f} s")


def libaio() -> Check:
    """The library of asynchronous I/O, header included."""
    if ops.has_libaio():
        return ok("libaio", "there, for zero3-nvme")
    return warning("libaio", "no program can be built with it; zero3-nvme alone needs it", ops.LIBAIO)
