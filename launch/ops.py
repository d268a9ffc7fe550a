"""DeepSpeed's compiled ops: built once before ranks start, and stale build locks removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from wellread.plan import Plan

OPS = {
    "deepspeed_shm_comm": "import deepspeed.ops.op_builder.cpu as cpu; cpu.ShareMemCommBuilder().load()",
    "cpu_adam": "from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load()",
}
"""Op -> program that compiles it."""


def needed(plan: Plan) -> list[str]:
    """Ops that a plan uses: communication between ranks on CPUs, and the optimizer of offloaded states."""
    on_cpu = ["deepspeed_shm_comm"] if plan.device == "cpu" and plan.engine == "deepspeed" else []
    return on_cpu + (["cpu_adam"] if "offload" in plan.strategy else [])


def ensure(op: str, variables: dict[str, str]) -> None:
    """Compile `op`, unless it is there.

    Raises
    ------
    ValueError
        When the compiler is missing or fails.
    """
    cache = Path(variables["TORCH_EXTENSIONS_DIR"])
    if list(cache.glob(f"**/{op}.so")):
        return
    remove_stale_locks(cache)
    print(f"compiling DeepSpeed's {op} (once per environment, one to four minutes)", flush=True)
    done = subprocess.run(
        [sys.executable, "-c", OPS[op]], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = next((line for line in reversed(done.stdout.splitlines() + done.stderr.splitlines()) if line), "")
        raise ValueError(f"DeepSpeed's ops cannot be compiled ({reason}); install a C++ compiler and ninja")


def remove_stale_locks(cache: Path) -> None:
    """Remove build locks whose builder is gone: every later job would wait for them for ever."""
    for lock in cache.glob("**/lock"):
        if not _builders():
            print(f"removing {lock}: the build that held it is gone", flush=True)
            lock.unlink()


def _builders() -> list[int]:
    """Processes that compile torch extensions right now."""
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if "op_builder" in words or "ninja -v" in words:
            found.append(process.info["pid"])
    return found
