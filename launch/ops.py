"""Compile DeepSpeed's ops before ranks start, and remove stale build locks.

torch's FileBaton creates the lock, a file named ``lock`` in the op's folder, and keeps it open until it removes it.
Every load takes the lock, not only a build. If a process is killed in between, the lock remains and all later processes
wait without end.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from launch.cluster import ClusterFile
from wellread.errors import UserError
from wellread.planning.plan import Plan
from wellread.processes import own_path

OPS = {
    "deepspeed_shm_comm": "import deepspeed.ops.op_builder.cpu as cpu; cpu.ShareMemCommBuilder().load()",
    "cpu_adam": "from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load()",
    "async_io": "from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()",
}
"""Op -> Python program that compiles it."""
COMPILERS = {
    "ninja",
    "c++",
    "g++",
    "gcc",
    "cc1plus",
    "clang++",
    "clang",
    "nvcc",
    "cicc",
    "ptxas",
    "collect2",
    "ld",
    "as",
}
"""Programs that can still write to an op's folder after the Python process that started them was killed."""
LOCAL_FILESYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "apfs", "hfs"}
"""Filesystems of one machine: the process that holds a lock there runs on this machine."""
SECONDS_OUT_OF_SIGHT = 1800
"""Age at which a lock is stale if its process cannot be seen from here; the newest file in its folder counts."""
SECONDS_TO_SETTLE = 0.5
"""FileBaton closes its lock shortly before it removes it."""
SECONDS_BETWEEN_LOOKS = 10


LIBAIO = "apt-get install libaio-dev, or yum install libaio-devel"


def has_libaio() -> bool:
    """Return whether a program that uses libaio can be built; DeepSpeed tests the same whenever it loads async_io.

    CFLAGS and LDFLAGS can add folders (AsyncIOBuilder.is_compatible).
    """
    flags = [flag for name in ("CFLAGS", "LDFLAGS") for flag in shlex.split(os.environ.get(name, ""))]
    with tempfile.TemporaryDirectory() as folder:
        command = [os.environ.get("CXX", "c++"), "-x", "c++", "-", *flags, "-laio", "-o", f"{folder}/program"]
        program = "#include <libaio.h>\nint main() { return io_submit(nullptr, 0, nullptr); }\n"
        try:
            return (
                subprocess.run(
                    command, input=program, encoding="utf-8", errors="replace", capture_output=True, check=False
                ).returncode
                == 0
            )
        except FileNotFoundError:
            return False


def check_libaio(strategy: str) -> None:
    """Check that offload to NVMe can work on this machine.

    Raises
    ------
    UserError
        When no program can be built with libaio.
    """
    if not has_libaio():
        raise UserError(f"--strategy {strategy}: needs libaio, but no program can be built with it; {LIBAIO}")


def needed(plan: Plan) -> list[str]:
    """List the ops of a plan: CPU communication, the optimizer of offloaded states, asynchronous I/O for NVMe."""
    on_cpu = ["deepspeed_shm_comm"] if plan.machine.device == "cpu" and plan.engine == "deepspeed" else []
    return on_cpu + plan.rung.ops


def folder(cluster: ClusterFile) -> Path:
    """Return the folder of compiled ops of a cluster's ranks: the TORCH_EXTENSIONS_DIR of `launch.environment`."""
    python = Path(cluster.python).parent.parent if cluster.python else Path(sys.prefix)
    usual = os.environ.get("TORCH_EXTENSIONS_DIR", str(python / "torch_extensions"))
    return Path(cluster.environment.get("TORCH_EXTENSIONS_DIR", usual))


def compiled(op: str, cache: Path) -> bool:
    """Return whether `op` is compiled in `cache`."""
    return any(cache.glob(f"**/{op}.so"))


def ensure(op: str, variables: dict[str, str]) -> None:
    """Compile `op`, unless it is already compiled.

    Raises
    ------
    UserError
        When the compiler is missing or fails.
    """
    cache = Path(variables["TORCH_EXTENSIONS_DIR"])
    cleared = _clear(cache)
    if compiled(op, cache) and op not in cleared:  # after a killed build the file may be incomplete; ninja checks it
        return
    print(f"compiling DeepSpeed's {op} (once per environment, one to four minutes)", flush=True)
    code, words, was_blocked = _build(op, variables, cache)
    if code and was_blocked:
        code, words, _ = _build(op, variables, cache)
    if code:
        reason = next((line for line in reversed(words.splitlines()) if line), "")
        needs = "a C++ compiler and ninja" + f", and libaio ({LIBAIO})" * (op == "async_io")
        raise UserError(f"DeepSpeed's {op} cannot be compiled ({reason}); install {needs}")


def _build(op: str, variables: dict[str, str], cache: Path) -> tuple[int, str, bool]:
    """Run the program that compiles `op`.

    Returns
    -------
    code : int
        Its exit code.
    text : str
        Its output.
    was_blocked : bool
        Whether it waited for the lock of a dead build.
    """
    was_blocked = False
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        builder = subprocess.Popen(
            [sys.executable, "-c", OPS[op]],
            env=os.environ | variables | {"PATH": own_path()},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    code = builder.wait(SECONDS_BETWEEN_LOOKS)
                    break
                was_blocked = bool(_clear(cache)) or was_blocked
        finally:
            builder.kill()
        output.seek(0)
        return code, output.read(), was_blocked


def _clear(cache: Path) -> list[str]:
    """Remove stale locks and print each; return the names of their ops."""
    removed = remove_stale_locks(cache)
    for lock in removed:
        print(f"removed {lock}: the build that held it is gone", flush=True)
    return [lock.parent.name for lock in removed]


def remove_stale_locks(cache: Path) -> list[Path]:
    """Remove build locks of dead processes, on which every later job would wait without end; return them."""
    locks = list(cache.glob("**/lock"))
    suspects = {lock: number for lock in locks if (number := _inode(lock)) and stale(lock)}
    if suspects:
        time.sleep(SECONDS_TO_SETTLE)
    removed = []
    for lock, number in suspects.items():
        if _inode(lock) == number and stale(lock):
            lock.unlink(missing_ok=True)
            removed.append(lock)
    return removed


def stale(lock: Path) -> bool:
    """Return whether no process holds a lock any more.

    This is exact if every possible holder is visible: on a local filesystem, for root or the owner of the lock.
    A process on another host, of another user or in another container is not visible; the age of the lock then decides.
    """
    if holders(lock):
        return False
    try:
        in_sight = filesystem(lock) in LOCAL_FILESYSTEMS and os.geteuid() in (0, lock.stat().st_uid)
        newest = max(path.stat().st_mtime for path in lock.parent.iterdir())
    except (FileNotFoundError, ValueError):  # removed in the meantime
        return False
    return in_sight or time.time() - newest > SECONDS_OUT_OF_SIGHT


def holders(lock: Path) -> list[int]:
    """Return the ids of processes on this machine that have the lock open or compile in its folder."""
    import psutil

    path, directory = str(lock.resolve()), str(lock.parent.resolve())
    pids = []
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error, OSError):
            name = process.info["name"].partition("-")[0]  # g++-12
            compiles = name in COMPILERS and process.cwd() == directory
            if compiles or any(file.path == path for file in process.open_files()):
                pids.append(process.pid)
    return pids


def filesystem(path: Path) -> str:
    """Return the type of the filesystem of `path`, e.g. ext4 or nfs4."""
    import psutil

    resolved = path.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if resolved.is_relative_to(part.mountpoint)]
    return str(max(enumerate(mounts), key=lambda it: (len(it[1].mountpoint), it[0]))[1].fstype) if mounts else ""


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
