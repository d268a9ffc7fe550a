"""Host memory: what processes started here may use, and whether the kernel has killed for want of it."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from wellread.units import GIB

OWN_GROUPS = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


UNLIMITED = 1 << 60
"""Bytes; version 1 of control groups says "no limit" with a number beyond it."""


def limit(own: Path = OWN_GROUPS, mount: Path = MOUNT) -> int | None:
    """Bytes that this process's control group (v1 or v2) and those above it allow; None without a limit."""
    return min((group.limit for group in _groups(own, mount) if group.limit is not None), default=None)


def available(own: Path = OWN_GROUPS, mount: Path = MOUNT) -> int:
    """Bytes that can be taken now, on this machine and within the control group's limit, before something is killed."""
    import psutil

    room = [group.room for group in _groups(own, mount) if group.limit is not None]
    return max(0, min([int(psutil.virtual_memory().available), *room]))


def total(own: Path = OWN_GROUPS, mount: Path = MOUNT) -> int:
    """Bytes of this machine, or of the strictest control group around this process."""
    import psutil

    there = int(psutil.virtual_memory().total)
    return min(there, limit(own, mount) or there)


def held() -> int:
    """Bytes of host memory that this process has to itself; mapped files aside, which `available` counts as free."""
    import psutil

    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


def peak() -> int:
    """Most bytes of host memory that this process has had resident so far, mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0]) * 1024


@dataclass(frozen=True)
class Kills:
    """How many processes the kernel has killed for want of memory, so far."""

    group: int | None
    """Those of this process's control group, whoever's memory ran out; None where the kernel does not count them."""
    machine: int
    """Anywhere on the machine."""

    @classmethod
    def so_far(cls) -> Kills:
        """Read the kernel's counters."""
        groups = {group.version: group.kills for group in reversed(_groups(OWN_GROUPS, MOUNT))}  # the innermost of each
        counted = [kills for kills in groups.values() if kills is not None]
        return cls(max(counted, default=None), _number(Path("/proc/vmstat"), r"oom_kill (\d+)") or 0)

    def since(self, before: Kills) -> str | None:
        """What the kernel says of the time after `before`, in words; None when it has killed nothing."""
        if self.group is None or before.group is None:  # the machine's count is of other people's processes, too
            killed, where = self.machine - before.machine, "on this machine"
        else:
            allowed = limit()
            bound = f", whose limit is {allowed / GIB:.2f} GiB" if allowed is not None else ""
            killed, where = self.group - before.group, f"in this control group{bound}"
        return f"the kernel killed {killed} for want of memory {where}" if killed else None


@dataclass(frozen=True)
class _Group:
    """A control group of the memory controller."""

    folder: Path
    version: int

    @property
    def limit(self) -> int | None:
        found = _number(self.folder / ("memory.max" if self.version == 2 else "memory.limit_in_bytes"))
        return None if found is None or found >= UNLIMITED else found

    @property
    def room(self) -> int:
        """Bytes below the limit; the page cache counts as used, but makes room."""
        used = _number(self.folder / ("memory.current" if self.version == 2 else "memory.usage_in_bytes")) or 0
        total, stat = "" if self.version == 2 else "total_", self.folder / "memory.stat"
        cached = sum(_number(stat, rf"{total}{kind}_file (\d+)") or 0 for kind in ("active", "inactive"))
        return (self.limit or 0) - used + cached

    @property
    def kills(self) -> int | None:
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _number(self.folder / name, r"oom_kill (\d+)")


def _groups(own: Path, mount: Path) -> list[_Group]:
    """This process's control group, and those above it."""
    found = []
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            base = mount / "memory" if controllers else mount
            inner = base / path.lstrip("/")
            folders = [folder for folder in [inner, *inner.parents] if folder.is_relative_to(base)]
            found += [_Group(folder, 1 if controllers else 2) for folder in folders]
    return found


def _number(file: Path, line: str = r"(\d+)") -> int | None:
    """The number in the line of a kernel's file that looks like `line`; None where there is none."""
    with contextlib.suppress(OSError):  # the root group lacks some files
        if found := re.search(f"^{line}$", file.read_text(), re.MULTILINE):
            return int(found.group(1))
    return None
