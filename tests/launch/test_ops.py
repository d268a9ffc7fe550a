"""Build locks of DeepSpeed's ops, created by torch's FileBaton: only locks of killed builds are removed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.programs import missing
from support.waiting import wait_until

from launch import ops
from launch.backends.base import of
from launch.cluster import ClusterFile
from wellread.errors import UserError
from wellread.planning.plan import Plan

torch = find_spec("torch")
assert torch
assert torch.origin
BATON = f"""
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("baton", {str(Path(torch.origin).parent / "utils" / "file_baton.py")!r})
baton = importlib.util.module_from_spec(spec)
spec.loader.exec_module(baton)
"""
"""torch's own class, without the seconds that importing torch takes."""
BUILDER = f"""{BATON}
assert baton.FileBaton(sys.argv[1]).try_acquire()
print("building", flush=True)
time.sleep(3600)
"""
TOY = f"""{BATON}
from pathlib import Path
folder = Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "toy"
lock = baton.FileBaton(str(folder / "lock"))
if lock.try_acquire():
    (folder / "builds").open("a").write("x")
    (folder / "toy.so").touch()
    lock.release()
else:
    print("waiting", flush=True)
    lock.wait()
assert (folder / "toy.so").exists(), "what was waited for never came"
"""
"""What torch's _jit_compile does with the lock, with a build that takes no time."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy").mkdir()
    return tmp_path / "toy"


@pytest.fixture
def builder(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock of `folder`."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, folder / "lock"], stdout=subprocess.PIPE, text=True, cwd=folder.parent
    )
    assert process.stdout
    assert process.stdout.readline() == "building\n"
    yield process
    process.kill()
    process.communicate()


def kill(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_only_the_lock_of_a_killed_build_is_removed(folder: Path, builder: "subprocess.Popen[str]") -> None:
    lock = folder / "lock"
    assert ops.holders(lock) == [builder.pid]
    assert ops.remove_stale_locks(folder.parent) == []
    assert lock.exists()
    kill(builder)
    assert lock.exists()
    assert ops.remove_stale_locks(folder.parent) == [lock]
    assert not lock.exists()


def test_a_build_holds_only_the_lock_of_its_op(folder: Path, builder: "subprocess.Popen[str]") -> None:
    other = folder.parent / "other" / "lock"
    other.parent.mkdir()
    other.touch()
    assert ops.remove_stale_locks(folder.parent) == [other]
    assert (folder / "lock").exists()


def test_compilers_of_a_killed_build_hold_its_lock_until_they_end(
    folder: Path, builder: "subprocess.Popen[str]"
) -> None:
    """A real ninja continues to write after the Python process that started it was killed."""
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if ninja is None:
        missing("ninja is missing; pip install ninja")
    (folder / "build.ninja").write_text("rule wait\n  command = sleep 3600\nbuild object: wait\n")
    build = subprocess.Popen([ninja, "-v"], cwd=folder, stdout=subprocess.DEVNULL, text=True, start_new_session=True)
    kill(builder)
    wait_until(lambda: ops.holders(folder / "lock"), "ninja's compiler works in the folder")
    assert ops.remove_stale_locks(folder.parent) == []
    os.killpg(build.pid, signal.SIGKILL)
    build.wait()
    assert ops.remove_stale_locks(folder.parent) == [folder / "lock"]


@pytest.mark.parametrize(("minutes", "goes"), [(1, False), (29, False), (31, True)])
def test_on_a_shared_filesystem_the_age_of_a_lock_decides(
    folder: Path, monkeypatch: pytest.MonkeyPatch, minutes: int, goes: bool
) -> None:
    """A build on another host cannot be seen; while it runs, it writes object files to the folder of the lock."""
    monkeypatch.setattr(ops, "filesystem", lambda path: "nfs4")
    lock, written = folder / "lock", time.time() - 60 * minutes
    for path in (lock, folder / "a.o"):
        path.touch()
    os.utime(lock, (written - 9000, written - 9000))
    os.utime(folder / "a.o", (written, written))
    assert ops.remove_stale_locks(folder.parent) == ([lock] if goes else [])
    assert lock.exists() is not goes


def test_for_locks_of_other_users_the_age_decides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root sees which files another user's processes have open."""
    lock = folder / "lock"
    lock.touch()
    monkeypatch.setattr(os, "geteuid", lambda: lock.stat().st_uid + 1)
    assert ops.remove_stale_locks(folder.parent) == []


def test_a_compiled_op_is_not_compiled_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ops.OPS, "toy", TOY)
    for _ in range(2):
        ops.ensure("toy", {"TORCH_EXTENSIONS_DIR": str(folder.parent)})
    assert (folder / "builds").read_text() == "x"
    assert capsys.readouterr().out == "compiling DeepSpeed's toy (once per environment, one to four minutes)\n"


def test_a_stale_lock_of_a_compiled_op_is_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading also takes the lock: after a rank is killed while loading, all later ranks would wait."""
    monkeypatch.setitem(ops.OPS, "toy", TOY)
    (folder / "toy.so").touch()
    (folder / "lock").touch()
    ops.ensure("toy", {"TORCH_EXTENSIONS_DIR": str(folder.parent)})
    assert not (folder / "lock").exists()
    assert (folder / "builds").read_text() == "x"  # the file may be incomplete
    assert f"removed {folder / 'lock'}: the build that held it is gone" in capsys.readouterr().out


def test_a_build_that_dies_during_waiting_is_started_again(
    folder: Path, builder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ops.OPS, "toy", TOY)
    monkeypatch.setattr(ops, "SECONDS_BETWEEN_LOOKS", 0.2)
    looks: list[Path] = []

    def dies_at_the_second_look(cache: Path) -> list[Path]:
        looks.append(cache)
        if len(looks) == 2:
            kill(builder)
        return remove(cache)

    remove = ops.remove_stale_locks
    monkeypatch.setattr(ops, "remove_stale_locks", dies_at_the_second_look)
    ops.ensure("toy", {"TORCH_EXTENSIONS_DIR": str(folder.parent)})
    assert (folder / "toy.so").exists()
    assert not (folder / "lock").exists()


def test_a_compiler_error_contains_its_last_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops.OPS, "toy", "raise SystemExit('c++: fatal error: no space')")
    with pytest.raises(UserError, match=r"cannot be compiled \(c\+\+: fatal error: no space\)"):
        ops.ensure("toy", {"TORCH_EXTENSIONS_DIR": str(folder.parent)})


@pytest.mark.parametrize("environment", [{}, {"TORCH_EXTENSIONS_DIR": "/scratch/ops"}])
@pytest.mark.parametrize("python", [None, "/opt/env/bin/python"])
@pytest.mark.parametrize("outside", [None, "/elsewhere"])
def test_the_folder_of_ops_is_that_of_the_ranks(
    environment: dict[str, str], python: str | None, outside: str | None, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    if outside:
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", outside)
    cluster = ClusterFile(kind="local", environment=environment, python=python)
    variables = of(cluster).environment(a_plan())
    assert str(ops.folder(cluster)) == variables["TORCH_EXTENSIONS_DIR"]


def a_plan() -> Plan:
    from launch.job import Job
    from launch.options import LaunchOptions
    from wellread.config import RunConfig

    return Job.resolve(RunConfig(), LaunchOptions()).planned()
