"""The run directory: atomic writes, the lock, config and manifest."""

import errno
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.waiting import PATIENCE

from wellread import provenance
from wellread.config import OptimConfig, RunConfig
from wellread.errors import UserError
from wellread.files import sha256_file, write_atomic, write_json
from wellread.run import Holder, RunDirectory


def test_a_file_is_replaced_completely(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"ä": [1, 2]})
    assert path.read_text() == '{\n  "ä": [\n    1,\n    2\n  ]\n}\n'
    write_atomic(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_value_that_is_not_json_writes_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "x", {"a": object()})
    assert not list(tmp_path.iterdir())


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    large = os.urandom(1 << 20)
    (tmp_path / "y").write_bytes(large)
    assert sha256_file(tmp_path / "y") == hashlib.sha256(large).hexdigest()


def test_a_directory_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError) as refused:
            RunDirectory.open(path)
        assert str(refused.value) == (
            f"{path}: not a run directory (it has no config.yaml); see the folder runs/ for yours"
        )


def test_the_run_that_was_meant_is_named(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "one")
    run.path.mkdir(parents=True)
    run.write_config(RunConfig.of(model="tiny"))
    for path, hint in (
        (tmp_path / "runs", f"it is a folder of runs, such as {run.path}"),
        (run.path / "checkpoints" / "step-00000010", f"it is inside the run {run.path}"),
    ):
        with pytest.raises(UserError, match=rf"{re.escape(str(path))}: not a run directory .*; {re.escape(hint)}$"):
            RunDirectory.open(path)


def test_config_round_trip(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    config = RunConfig.of(model="pythia-70m", steps=7, holdout=0.1, optim=OptimConfig(lr=2e-5))
    run.write_config(config)
    assert RunDirectory.open(tmp_path).config() == config
    assert run.config_file.read_text().splitlines()[0] == "model: pythia-70m"  # in the order for readers, not sorted


def test_paths_of_a_run_directory(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "here")
    names = (
        "config_file",
        "plan_file",
        "manifest_file",
        "corpus",
        "record",
        "checkpoints",
        "code",
        "submit",
        "log",
        "tb",
        "eval",
        "report",
    )
    relative_paths = [str(getattr(run, name).relative_to(run.path)) for name in names]
    assert relative_paths == [
        "config.yaml", "plan.json", "manifest.json", "corpus", "record", "checkpoints", "code", "submit", "log", "tb",
        "eval", "report",
    ]  # fmt: skip
    assert run.name == "here"


def test_only_one_launch_gets_the_lock(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.lock():
        run.write_config(RunConfig())
        with pytest.raises(UserError) as refused, RunDirectory(run.path).lock():
            pass
        assert str(refused.value).startswith(f"{run.path}: in use by process {os.getpid()} on ")
        assert str(refused.value).endswith("; wait for it, or choose another --out")
    with run.lock():
        pass
    assert (run.path / "lock").read_text() == ""


def test_a_killed_holder_frees_the_lock(tmp_path: Path, root: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from wellread.run import RunDirectory\n"
        f"with RunDirectory(Path({str(tmp_path / 'run')!r})).lock(): print('held', flush=True); time.sleep(3600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid} "), RunDirectory(tmp_path / "run").lock():
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with RunDirectory(tmp_path / "run").lock():
        pass


HOLD = """
import sys, time
from pathlib import Path
from wellread.run import RunDirectory
with RunDirectory(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def locked(path: Path, root: Path, seconds: float) -> Iterator["subprocess.Popen[str]"]:
    """Another process locks the run for `seconds`."""
    command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_patience_waits_for_a_holder_that_ends(tmp_path: Path, root: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    with locked(run.path, root, 1.5) as process, run.lock(patience=PATIENCE):
        assert (run.path / "lock").read_text().startswith(f"process {os.getpid()} on ")
        assert process.wait(PATIENCE) == 0


def test_patience_is_limited(tmp_path: Path, root: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with locked(run.path, root, 3600) as process:
        began = time.monotonic()
        with pytest.raises(UserError, match=f"in use by process {process.pid} "), run.lock(patience=1):
            pass
        assert time.monotonic() - began >= 1


def test_the_holder_is_named(tmp_path: Path, root: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert run.holder() is None
    assert not run.path.exists()
    with locked(run.path, root, 60) as process:
        assert run.holder() == Holder(process.pid, socket.gethostname())
    assert (run.path / "lock").read_text() != ""  # the process was killed and could not clear it
    assert run.holder() is None
    with run.lock():
        assert run.holder() == Holder(os.getpid(), socket.gethostname())
        run.write_config(RunConfig())
    assert run.holder() is None


def test_a_holder_that_has_not_written_its_id_yet(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert RunDirectory(tmp_path).holder() == Holder(0, "")


def test_a_query_of_the_holder_does_not_stop_a_launch(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 on a since yesterday")
    with open(tmp_path / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as `holder` does, for an instant
        threading.Timer(0.15, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with RunDirectory(tmp_path).lock():
            pass


def test_a_failed_launch_removes_its_new_directory(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "run")
    with pytest.raises(UserError, match="bad data"), run.lock():
        raise UserError("bad data")
    assert not run.path.exists()


def test_a_failed_launch_keeps_existing_files(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    (run.path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="bad data"), run.lock():
        raise UserError("bad data")
    assert (run.path / "mine.txt").read_text() == "precious"


def test_provenance_names_versions_and_no_secrets(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    description = provenance.describe()
    text = json.dumps(description)
    assert "hf_secretsecret" not in text
    assert description["packages"]["torch"].startswith("2.")
    assert description["python"].startswith("3.")
    commit = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert description["code"]["commit"] == commit.stdout.strip()
    assert (description["code"]["diff_sha256"] is None) == (not description["code"]["dirty"])


def test_provenance_outside_git(tmp_path: Path) -> None:
    assert provenance.code(tmp_path) == {"commit": None}
