"""What the doctor checks of a machine itself: network, limits, memory, disks."""

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
    """Whether a free port can be had, and reached."""
    try:
        with socket.socket() as listener:
            listener.bind(("", 0))
            listener.listen()
            number = listener.getsockname()[1]
            socket.create_connection(("127.0.0.1", number), timeout=5).close()
    except OSError as error:
        return failed(
            "port", f"none can be bound and reached ({error.strerror})", "ip link set lo up; look at the firewall"
        )
    return ok("port", f"{number} can be bound and reached")


def host_name(several: bool) -> Check:
    """Whether this machine's own name leads to an address that others can reach."""
    name = socket.gethostname()
    try:
        addresses = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None)})
    except OSError:
        text, remedy = f"{name} is unknown here", "add it to /etc/hosts, with the address that the nodes share"
        return failed("host name", text, remedy) if several else warning("host name", text, remedy)
    text = f"{name} is {', '.join(addresses)}"
    if several and all(address.startswith("127.") or address == "::1" for address in addresses):
        return warning("host name", f"{text}, where no other node reaches it", "interface: eth0 in the cluster's file")
    return ok("host name", text)


def open_files() -> Check:
    """`ulimit -n`."""
    soft, hard = (_limit(number) for number in resource.getrlimit(resource.RLIMIT_NOFILE))
    text = f"{soft} (at most {hard})"
    if soft != "unlimited" and int(soft) < 4096:
        return warning("ulimit: open files", text, "ulimit -n 65536, or in /etc/security/limits.conf; 4096 at least")
    return ok("ulimit: open files", text)


def locked_memory(on_gpu: bool) -> Check:
    """`ulimit -l`: RDMA and NVMe offload lock their buffers into memory."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    text = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10:,} KiB"
    if soft != resource.RLIM_INFINITY and (on_gpu or Path("/sys/class/infiniband").is_dir()):
        problem = f"{text}; InfiniBand and zero3-nvme lock their buffers"
        return warning("ulimit: locked memory", problem, "ulimit -l unlimited, or in /etc/security/limits.conf")
    return ok("ulimit: locked memory", text)


def core_files() -> Check:
    """`ulimit -c`: a rank that crashes writes all its memory to disk."""
    soft = resource.getrlimit(resource.RLIMIT_CORE)[0]
    file = Path("/proc/sys/kernel/core_pattern")
    pattern = file.read_text().strip() if file.exists() else "core"
    if soft == 0 or pattern.startswith("|"):
        return ok("ulimit: core", "off" if soft == 0 else f"handed to {pattern[1:].split()[0]}")
    return warning("ulimit: core", f"on: a crashed rank writes all its memory to {pattern}", "ulimit -c 0")


def _limit(number: int) -> str:
    return "unlimited" if number == resource.RLIM_INFINITY else str(number)


def memory(required: float | None, in_job: bool) -> Check:
    """Memory of this host, and what a container or a batch system leaves of it.

    Parameters
    ----------
    wanted : float
        GiB that the cluster's file asks for.
    in_job : bool
        Whether this is the doctor's own small SLURM job, whose limit says nothing about others.
    """
    import psutil

    now = psutil.virtual_memory()
    limit = None if in_job else host_memory.limit()
    text = f"{now.total / GIB:.1f} GiB, {now.available / GIB:.1f} GiB of it available"
    text += f"; limited to {limit / GIB:.1f} GiB by its control group" if limit and limit < now.total else ""
    most = min(now.total, limit or now.total) / GIB
    if required and required > most:
        return failed("memory", text, f"memory: {required:g} in the cluster's file is more; lower it")
    if min(now.available, limit or now.available) < 2 * GIB:
        return warning("memory", text, "end what else runs here, or raise the container's limit: ranks need 2 GiB each")
    return ok("memory", text)


def shared_memory() -> Check:
    """/dev/shm, through which ranks and data workers of one node talk."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return warning("/dev/shm", "missing", "mount -t tmpfs tmpfs /dev/shm")
    usage = shutil.disk_usage(folder)
    text = f"{usage.total / GIB:.1f} GiB, {usage.free / GIB:.1f} GiB free"
    if usage.free < GIB:
        return warning("/dev/shm", text, "containers: --shm-size=8g; else remove what crashed jobs left there")
    return ok("/dev/shm", text)


def disk(check: str, path: Path, option: str, enough: float) -> Check:
    """Room and permission to write in a folder, or in the nearest one above it that is there.

    Parameters
    ----------
    option : str
        What names another folder.
    enough : float
        GiB; a tenth of it is too little for anything.
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
        return failed(check, f"{text}, but no inode", f"remove files, or {other}")
    if free < enough:
        remedy = f"free some space, or {other}"
        return failed(check, text, remedy) if free < enough / 10 else warning(check, text, remedy)
    return ok(check, text)
