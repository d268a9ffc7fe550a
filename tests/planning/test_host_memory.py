"""Limits of control groups, made up and real; a real kill by the kernel is told from a kill by hand."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wellread.planning import host_memory
from wellread.units import MIB


def test_memory_limits_of_control_groups_are_found(tmp_path: Path) -> None:
    """The strictest on the way up counts; v1 names no limit by a huge number, v2 by the word max."""
    own = tmp_path / "cgroup"
    for name, file, values in (
        ("memory/slurm", "memory.limit_in_bytes", (9223372036854771712, 4 << 30, 8 << 30)),
        ("", "memory.max", ("max", 3 << 30, "max")),
    ):
        inner = tmp_path / (name or ".") / "job_7" / "step_0"
        inner.mkdir(parents=True, exist_ok=True)
        for folder, value in zip((inner.parent.parent, inner.parent, inner), values, strict=True):
            (folder / file).write_text(f"{value}\n")
    own.write_text("5:cpu:/\n4:memory:/slurm/job_7/step_0\n")
    assert host_memory.limit(own, tmp_path) == 4 << 30
    own.write_text("0::/job_7/step_0\n")
    assert host_memory.limit(own, tmp_path) == 3 << 30
    own.write_text("0::/elsewhere\n")
    assert host_memory.limit(own, tmp_path / "nothing") is None


def test_room_leaves_out_what_is_cached(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/job\n")
    group = tmp_path / "memory" / "job"
    group.mkdir(parents=True)
    values = {"limit_in_bytes": 100 * MIB, "usage_in_bytes": 70 * MIB}
    for name, value in values.items():
        (group / f"memory.{name}").write_text(f"{value}\n")
    (group / "memory.stat").write_text(
        f"inactive_file 1\ntotal_inactive_file {20 * MIB}\ntotal_active_file {10 * MIB}\n"
    )
    assert host_memory.available(own, tmp_path) == 60 * MIB
    (group / "memory.usage_in_bytes").write_text(f"{180 * MIB}\n")
    assert host_memory.available(own, tmp_path) == 0


HOLDING = f"""
import mmap, sys
from wellread.planning import host_memory
before = host_memory.held()
with open(sys.argv[1], "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    assert mapped.find(b"x") == -1  # all of it has been read
    print(host_memory.held() - before)
own = bytearray(b"x") * {64 * MIB}
print(host_memory.held() - before)
"""


def test_what_a_process_holds_is_its_own_memory_without_mapped_files(tmp_path: Path, root: Path) -> None:
    """In a process of its own: one that has run other tests may have as much on its heap, freed and free to take."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(64 * MIB))
    command = [sys.executable, "-c", HOLDING, str(file)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=60)
    mapped, own = (int(line) for line in done.stdout.split())
    assert mapped == pytest.approx(0, abs=8 * MIB)
    assert own == pytest.approx(64 * MIB, abs=8 * MIB)


def inside(group: Path, code: str) -> str:
    """Run Python inside a control group; what it prints."""
    enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')"
    command = [sys.executable, "-c", f"{enter}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


WATCH = """
import subprocess, sys
from wellread.planning.host_memory import Kills, available, limit
print(limit(), available() <= limit())
for child in ("import os; os.kill(os.getpid(), 9)", "bytearray(400 << 20)"):
    before = Kills.so_far()
    print(subprocess.run([sys.executable, "-c", child]).returncode, Kills.so_far().since(before))
"""


def test_the_kernel_says_whether_it_killed_for_memory(memory_group: Callable[[int], Path]) -> None:
    first, by_hand, for_memory = inside(memory_group(200 * MIB), WATCH).splitlines()
    assert first == f"{200 * MIB} True"
    assert by_hand == "-9 None"
    assert for_memory == "-9 the kernel killed 1 for want of memory in this control group, whose limit is 0.20 GiB"
