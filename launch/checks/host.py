"""The doctor's checks of a machine: network, limits, memory, disks."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from pathlib import Path

from launch.checks.check import Check, failed, ok, warning
from launch.ops import filesystem
from wellread.planning import host_memory
from wellread.units import GIB


def port() -> Check:
    """Check that a free port can be bound and reached."""
    try:
        with socket.socket() as listener:
            listener.bind(("", 0))
            listener.listen()
            number = listener.getsockname()[1]
            socket.create_connection(("127.0.0.1", number), timeout=5).close()
    except OSError as error:
        return failed(
            "port", f"no port can be bound and reached ({error.strerror})", "ip link set lo up; check the firewall"
        )
    return ok("port", f"{number} can be bound and reached")


def host_name(several: bool) -> Check:
    """Check that this machine's host name resolves to an address that other nodes can reach."""
    name = socket.gethostname()
    try:
        addresses = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None)})
    except OSError:
        text, remedy = (
            f"{name} does not resolve",
            "add it to /etc/hosts, with an address that the other nodes can reach",
        )
        return failed("host name", text, remedy) if several else warning("host name", text, remedy)
    text = f"{name} is {', '.join(addresses)}"
    if several and all(address.startswith("127.") or address == "::1" for address in addresses):
        return warning("host name", f"{text}; other nodes cannot reach it", "set interface: eth0 in the cluster file")
    return ok("host name", text)


def open_files() -> Check:
    """Check `ulimit -n`."""
    soft, hard = (_limit(number) for number in resource.getrlimit(resource.RLIMIT_NOFILE))
    text = f"{soft} (at most {hard})"
    if soft != "unlimited" and int(soft) < 4096:
        return warning("ulimit: open files", text, "ulimit -n 65536 or /etc/security/limits.conf; at least 4096")
    return ok("ulimit: open files", text)


def locked_memory(on_gpu: bool) -> Check:
    """Check `ulimit -l`: RDMA and NVMe offload lock their buffers in memory."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    text = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10:,} KiB"
    if soft != resource.RLIM_INFINITY and (on_gpu or Path("/sys/class/infiniband").is_dir()):
        problem = f"{text}; InfiniBand and zero3-nvme lock their buffers"
        return warning("ulimit: locked memory", problem, "ulimit -l unlimited or /etc/security/limits.conf")
    return ok("ulimit: locked memory", text)


def core_files() -> Check:
    """Check `ulimit -c`: a rank that crashes may write all its memory to disk."""
    soft = resource.getrlimit(resource.RLIMIT_CORE)[0]
    file = Path("/proc/sys/kernel/core_pattern")
    pattern = file.read_text(encoding="utf-8").strip() if file.exists() else "core"
    if soft == 0 or pattern.startswith("|"):
        return ok("ulimit: core", "off" if soft == 0 else f"sent to {pattern[1:].split()[0]}")
    return warning("ulimit: core", f"on: a crashed rank writes all its memory to {pattern}", "ulimit -c 0")


def _limit(number: int) -> str:
    return "unlimited" if number == resource.RLIM_INFINITY else str(number)


def memory(required: float | None, in_job: bool) -> Check:
    """Check the memory of this machine and the limit set by a container or a batch system.

    Parameters
    ----------
    required : float, optional
        GiB that the cluster file requests.
    in_job : bool
        Whether this runs in the doctor's small SLURM job, which has a lower limit than other jobs.
    """
    import psutil

    now = psutil.virtual_memory()
    limit = None if in_job else host_memory.limit()
    text = f"{now.total / GIB:.1f} GiB, {now.available / GIB:.1f} GiB of it available"
    text += f"; limited to {limit / GIB:.1f} GiB by its control group" if limit and limit < now.total else ""
    most = min(now.total, limit or now.total) / GIB
    if required and required > most:
        return failed("memory", text, f"lower memory: {required:g} in the cluster file")
    if min(now.available, limit or now.available) < 2 * GIB:
        return warning("memory", text, "stop other programs or raise the container's limit; each rank needs 2 GiB")
    return ok("memory", text)


def shared_memory() -> Check:
    """Check /dev/shm, through which ranks and data workers of one node communicate."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return warning("/dev/shm", "missing", "mount -t tmpfs tmpfs /dev/shm")
    usage = shutil.disk_usage(folder)
    text = f"{usage.total / GIB:.1f} GiB, {usage.free / GIB:.1f} GiB free"
    if usage.free < GIB:
        return warning("/dev/shm", text, "in a container: --shm-size=8g; otherwise remove files of crashed jobs")
    return ok("/dev/shm", text)


def disk(check: str, path: Path, option: str, enough: float) -> Check:
    """Check free space and write permission of a folder, or of its nearest parent that exists.

    Parameters
    ----------
    option : str
        Flag or variable that sets another folder.
    enough : float
        GiB below which this is a warning; below a tenth of it the check fails.
    """
    folder = path.expanduser().resolve()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize / GIB
    text = f"{free:.1f} GiB free at {path} ({filesystem(folder)})"
    other = f"choose another folder: {option}…"
    if status.f_flag & os.ST_RDONLY or not os.access(folder, os.W_OK | os.X_OK):
        return failed(check, f"{folder} cannot be written to", other)
    if status.f_files and not status.f_favail:
        return failed(check, f"{text}, but no free inodes", f"remove files, or {other}")
    if free < enough:
        remedy = f"free some space, or {other}"
        return failed(check, text, remedy) if free < enough / 10 else warning(check, text, remedy)
    return ok(check, text)
