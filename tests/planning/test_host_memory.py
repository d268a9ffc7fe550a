"""Limits of control groups, in synthetic files and real groups; the OOM killer and other kills are distinguished."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wellread.planning import host_memory
from wellread.units import MIB


def test_memory_limits_of_control_groups_are_found(tmp_path: Path) -> None:
    """The lowest limit of a group and its parents counts. "No limit" is a huge number in v1, the word max in v2."""
    groups_file = tmp_path / "cgroup"
    for name, file, values in (
        ("memory/slurm", "memory.limit_in_bytes", (9223372036854771712, 4 << 30, 8 << 30)),
        ("", "memory.max", ("max", 3 << 30, "max")),
    ):
        inner = tmp_path / (name or ".") / "job_7" / "step_0"
        inner.mkdir(parents=True, exist_ok=True)
        for folder, value in zip((inner.parent.parent, inner.parent, inner), values, strict=True):
            (folder / file).write_text(f"{value}\n")
    groups_file.write_text("5:cpu:/\n4:memory:/slurm/job_7/step_0\n")
    assert host_memory.limit(groups_file, tmp_path) == 4 << 30
    groups_file.write_text("0::/job_7/step_0\n")
    assert host_memory.limit(groups_file, tmp_path) == 3 << 30
    groups_file.write_text("0::/elsewhere\n")
    assert host_memory.limit(groups_file, tmp_path / "nothing") is None


def test_page_cache_counts_as_available(tmp_path: Path) -> None:
    groups_file = tmp_path / "cgroup"
    groups_file.write_text("4:memory:/job\n")
    group = tmp_path / "memory" / "job"
    group.mkdir(parents=True)
    values = {"limit_in_bytes": 100 * MIB, "usage_in_bytes": 70 * MIB}
    for name, value in values.items():
        (group / f"memory.{name}").write_text(f"{value}\n")
    (group / "memory.stat").write_text(
        f"inactive_file 1\ntotal_inactive_file {20 * MIB}\ntotal_active_file {10 * MIB}\n"
    )
    assert host_memory.available(groups_file, tmp_path) == 60 * MIB
    (group / "memory.usage_in_bytes").write_text(f"{180 * MIB}\n")
    assert host_memory.available(groups_file, tmp_path) == 0


PRIVATE_BYTES = f"""
import mmap, sys
from wellread.planning import host_memory
before = host_memory.private_bytes()
with open(sys.argv[1], "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    assert mapped.find(b"x") == -1  # this reads all of it
    print(host_memory.private_bytes() - before)
allocated = bytearray(b"x") * {64 * MIB}
print(host_memory.private_bytes() - before)
"""


def test_private_bytes_are_without_mapped_files(tmp_path: Path, root: Path) -> None:
    """In a new process, because the heap of a process that ran other tests may have enough freed memory."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(64 * MIB))
    command = [sys.executable, "-c", PRIVATE_BYTES, str(file)]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    mapped, allocated = (int(line) for line in process.stdout.split())
    assert mapped == pytest.approx(0, abs=8 * MIB)
    assert allocated == pytest.approx(64 * MIB, abs=8 * MIB)


def inside(group: Path, code: str) -> str:
    """Run Python inside a control group and return its output."""
    enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')"
    command = [sys.executable, "-c", f"{enter}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


WATCH = """
import subprocess, sys
from wellread.planning.host_memory import Kills, available, limit
print(limit(), available() <= limit())
for child in ("import os; os.kill(os.getpid(), 9)", "bytearray(400 << 20)"):
    before = Kills.so_far()
    print(subprocess.run([sys.executable, "-c", child]).returncode, Kills.so_far().since(before))
"""


def test_the_oom_killer_is_distinguished_from_other_kills(memory_group: Callable[[int], Path]) -> None:
    first, by_signal, by_oom_killer = inside(memory_group(200 * MIB), WATCH).splitlines()
    assert first == f"{200 * MIB} True"
    assert by_signal == "-9 None"
    assert by_oom_killer == "-9 the OOM killer killed 1 process in this control group (limit 0.20 GiB)"
