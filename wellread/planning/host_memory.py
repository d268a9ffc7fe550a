"""Host memory: how much processes on this machine may use, and whether the OOM killer was active."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from wellread.units import GIB

OWN_GROUPS = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


UNLIMITED = 1 << 60
"""Bytes; version 1 of control groups writes "no limit" as a number above this."""


def limit(groups_file: Path = OWN_GROUPS, mount: Path = MOUNT) -> int | None:
    """Memory limit in bytes of this process's control group (v1 or v2) and its parents; None without a limit."""
    return min((group.limit for group in _groups(groups_file, mount) if group.limit is not None), default=None)


def available(groups_file: Path = OWN_GROUPS, mount: Path = MOUNT) -> int:
    """Bytes that can be allocated now, on this machine and within the control group's limit."""
    import psutil

    free = [group.free for group in _groups(groups_file, mount) if group.limit is not None]
    return max(0, min([int(psutil.virtual_memory().available), *free]))


def total(groups_file: Path = OWN_GROUPS, mount: Path = MOUNT) -> int:
    """Memory of this machine in bytes, or the lowest limit of this process's control groups."""
    import psutil

    size = int(psutil.virtual_memory().total)
    return min(size, limit(groups_file, mount) or size)


def private_bytes() -> int:
    """Private resident memory of this process in bytes, without mapped files, which `available` counts as free."""
    import psutil

    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


def peak() -> int:
    """Peak resident memory of this process in bytes, mapped files included."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0]) * 1024


@dataclass(frozen=True)
class Kills:
    """How many processes the OOM killer has killed so far."""

    group: int | None
    """In this process's control group; None when the kernel does not count them."""
    machine: int
    """Anywhere on the machine."""

    @classmethod
    def so_far(cls) -> Kills:
        """Read the kernel's counters."""
        # The innermost of each version.
        groups = {group.version: group.kills for group in reversed(_groups(OWN_GROUPS, MOUNT))}
        counted = [kills for kills in groups.values() if kills is not None]
        return cls(max(counted, default=None), _number(Path("/proc/vmstat"), r"oom_kill (\d+)") or 0)

    def since(self, before: Kills) -> str | None:
        """Kills since `before`, in words; None when there were none."""
        if self.group is None or before.group is None:  # the count of the machine includes other users' processes
            killed, where = self.machine - before.machine, "on this machine"
        else:
            allowed = limit()
            bound = f" (limit {allowed / GIB:.2f} GiB)" if allowed is not None else ""
            killed, where = self.group - before.group, f"in this control group{bound}"
        return f"the OOM killer killed {killed} process{'es' * (killed > 1)} {where}" if killed else None


@dataclass(frozen=True)
class _Group:
    """A control group with a memory controller."""

    folder: Path
    version: int

    @property
    def limit(self) -> int | None:
        number = _number(self.folder / ("memory.max" if self.version == 2 else "memory.limit_in_bytes"))
        return None if number is None or number >= UNLIMITED else number

    @property
    def free(self) -> int:
        """Free bytes below the limit; the page cache counts as free because the kernel drops it under pressure."""
        used = _number(self.folder / ("memory.current" if self.version == 2 else "memory.usage_in_bytes")) or 0
        total, stat = "" if self.version == 2 else "total_", self.folder / "memory.stat"
        cached = sum(_number(stat, rf"{total}{kind}_file (\d+)") or 0 for kind in ("active", "inactive"))
        return (self.limit or 0) - used + cached

    @property
    def kills(self) -> int | None:
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _number(self.folder / name, r"oom_kill (\d+)")


def _groups(groups_file: Path, mount: Path) -> list[_Group]:
    """This process's control group and its parents, innermost first."""
    groups = []
    with contextlib.suppress(OSError):
        for line in groups_file.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            base = mount / "memory" if controllers else mount
            inner = base / path.lstrip("/")
            folders = [folder for folder in [inner, *inner.parents] if folder.is_relative_to(base)]
            groups += [_Group(folder, 1 if controllers else 2) for folder in folders]
    return groups


def _number(file: Path, line: str = r"(\d+)") -> int | None:
    """The number in the first line of a kernel file that matches `line`; None when there is no such line or file."""
    with contextlib.suppress(OSError):  # the root group has no limit files
        if match := re.search(f"^{line}$", file.read_text(encoding="utf-8"), re.MULTILINE):
            return int(match.group(1))
    return None
