"""The doctor's checks of the software on a machine: Python, packages, torch and its devices, compiler, ops."""

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
"""Packages that a run depends on."""


def python(version: tuple[int, ...]) -> Check:
    """Check the version of Python."""
    text = f"{'.'.join(map(str, version))} ({sys.executable})"
    if version < (3, 11):
        return failed("python", text, "wellread needs 3.11 or newer: make setup PYTHON=python3.12")
    return ok("python", text)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run depends on, without missing packages."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def pinned() -> dict[str, str]:
    """Return the versions in constraints.txt by package."""
    file = provenance.ROOT / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {name.lower(): version for name, equal, version in (line.partition("==") for line in lines) if equal}


def packages(installed: dict[str, str], pins: dict[str, str]) -> Check:
    """Compare the versions of packages with constraints.txt."""
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
    """Import torch in another process, since the import can hang; return its version and GPUs, or why it failed."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", _IMPORT],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the import hangs: not finished after {seconds:g} s"
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"the import ended with code {result.returncode}"
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def torch(importing: dict[str, Any] | str) -> Check:
    """Check that torch can be imported."""
    if isinstance(importing, str):
        slow = "hangs" in importing
        return failed("torch", importing, "check the filesystem of torch, and nvidia-smi" if slow else SETUP)
    built = f"{importing['built']} build, imported in {importing['seconds']:.1f} s"
    return ok("torch", f"{importing['version']}, {built}")


def device(importing: dict[str, Any], requested: str, gpus: int, has_driver: bool) -> Check:
    """Check the device that ranks compute on: torch's build against the GPUs and the driver of this machine.

    Parameters
    ----------
    importing : dict
        `gpus`: the GPUs that torch can use; `built`: what torch was built for.
    gpus : int
        Number of GPUs that this process may use according to the driver.
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
        return failed("device", f"no GPU ({cores})", "compare nvidia-smi, CUDA_VISIBLE_DEVICES and gres:")
    if built != "CPU":
        why = "CUDA_VISIBLE_DEVICES hides the GPUs" if has_driver else "there is no NVIDIA driver"
        remedy = "unset it" if has_driver else "if this machine has a GPU, install its driver; otherwise ignore this"
        return warning("device", f"{cores}: torch is built for {built}, but {why}", remedy)
    return ok("device", cores)


def compiler(ready: bool) -> Check:
    """Check the C++ compiler that torch uses.

    Parameters
    ----------
    ready : bool
        Whether all ops are already compiled; a missing compiler is then only a warning.
    """
    name = os.environ.get("CXX", "c++")
    path = shutil.which(name)
    if path is None:
        remedy = "Debian: apt-get install g++; cluster: a module load line in setup:"
        problem = f"{name} not found; zero1, zero2, zero3 on CPUs and all offload strategies need it"
        return warning("compiler", problem, remedy) if ready else failed("compiler", problem, remedy)
    result = subprocess.run([path, "--version"], capture_output=True, encoding="utf-8", errors="replace", check=False)
    if result.returncode:
        return failed("compiler", f"{path} --version fails with code {result.returncode}", "install it again")
    return ok("compiler", f"{path}: {result.stdout.splitlines()[0]}")


def ninja() -> Check:
    """Check ninja, the build tool that torch runs even for compiled ops."""
    path = shutil.which("ninja")
    if path is None:
        folder = Path(sys.executable).parent
        remedy = f"PATH={folder}:$PATH" if (folder / "ninja").exists() else "pip install ninja"
        return failed("ninja", "not found; DeepSpeed needs it to load its ops", remedy)
    return ok("ninja", path)


def locks(cache: Path) -> list[Check]:
    """Check the build locks; remove stale ones."""
    removed = ops.remove_stale_locks(cache)
    checks = [
        warning("build lock", f"stale, removed: {lock}", "none needed; a killed build left it, and jobs waited for it")
        for lock in removed
    ]
    for lock in cache.glob("**/lock"):
        if pids := ops.holders(lock):
            text = f"{lock}: process {', '.join(map(str, pids))} is building"
            checks.append(warning("build lock", text, "jobs wait until the build ends: one to four minutes"))
        else:
            text = f"{lock}: no build on this machine, but possibly on another host or by another user or container"
            remedy = f"remove it if there is no build; expires after {ops.SECONDS_OUT_OF_SIGHT // 60} minutes"
            checks.append(warning("build lock", text, remedy))
    return checks or [ok("build lock", "none")]


def op_compiled(op: str, cache: Path, build: bool, on_gpu: bool) -> Check:
    """Check that one of DeepSpeed's ops is compiled; with `build`, compile it."""
    if ops.compiled(op, cache):
        return ok(f"op: {op}", "compiled")
    if not build:
        problem = "not compiled; the first job that needs it compiles it in one to four minutes"
        return warning(f"op: {op}", problem, "wellread doctor --build, with the same --cluster")
    began = time.monotonic()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the report
            ops.ensure(op, {"TORCH_EXTENSIONS_DIR": str(cache)} | ({} if on_gpu else {"DS_ACCELERATOR": "cpu"}))
    except UserError as error:
        return failed(f"op: {op}", " ".join(str(error).split()), "fix the compiler first")
    return ok(f"op: {op}", f"compiled now, in {time.monotonic() - began:.0f} s")


def libaio() -> Check:
    """Check the library for asynchronous I/O and its header."""
    if ops.has_libaio():
        return ok("libaio", "installed; for zero3-nvme")
    return warning("libaio", "no program can be built with it; only zero3-nvme needs it", ops.LIBAIO)
