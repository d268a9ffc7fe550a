"""What processes of a local run listen on, and what they unpickle."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support.waiting import PATIENCE

pytestmark = pytest.mark.slow

AUDIT = """
import os, sys, traceback

def note(text):
    with open(os.environ["AUDIT"], "a") as file:
        file.write(text + chr(10))

def hook(event, arguments):
    if event == "pickle.find_class":
        files = [frame.filename for frame in traceback.extract_stack()]
        note(f"{arguments[1:]} {[file for file in files if 'distributed' in file or 'deepspeed' in file]}")

note(f"started {' '.join(sys.orig_argv)}")
sys.addaudithook(hook)
"""
LOOPBACK = {"127.0.0.1", "::1"}


def listeners(process: subprocess.Popen[str]) -> set[tuple[str, str]]:
    """Address and command of each socket on which a process, or one that it has started, receives from others."""
    places = set()
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        for each in [first, *first.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                sockets = [c for c in each.net_connections("inet") if c.status == psutil.CONN_LISTEN or not c.raddr]
                places |= {(c.laddr.ip, " ".join(each.cmdline())) for c in sockets if c.laddr}
    return places


@pytest.mark.parametrize(("ranks", "strategy"), [pytest.param(2, "zero1", marks=pytest.mark.long), (1, "ddp")])
def test_a_run_and_its_evaluation(ranks: int, strategy: str, corpora: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    audit = tmp_path / "audit"
    run = str(tmp_path / "run")
    train = ["run", "finetune", "--model", "tiny", "--data", "sample", "--out", run, "--corpora", str(corpora)]
    train += ["--steps", "2", "--ranks_per_node", str(ranks), "--strategy", strategy]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "AUDIT": str(audit)}
    places = set()
    for arguments in (train, ["membership", run, "--steps", "2", "--max_samples", "20"]):
        with open(tmp_path / "output", "a+") as output:
            command = [sys.executable, "-m", "wellread", *arguments]
            process = subprocess.Popen(command, cwd=root, env=environment, stdout=output, stderr=output, text=True)
            deadline = time.monotonic() + 3 * PATIENCE
            while process.poll() is None and time.monotonic() < deadline:
                places |= listeners(process)
                time.sleep(0.1)
            process.kill()
        assert process.wait() == 0, (tmp_path / "output").read_text()
    assert {address for address, _ in places} <= LOOPBACK, places
    assert places if ranks > 1 else True, "ranks exchange gradients through sockets"
    lines = audit.read_text().splitlines()
    assert sum(line.startswith("started ") and " train " in line for line in lines) >= ranks
    assert [line for line in lines if not line.startswith("started ") and not line.endswith(" []")] == []


def test_tensorboard(root: Path, tmp_path: Path) -> None:
    text = subprocess.run(["make", "-n", "tb"], cwd=root, capture_output=True, text=True, check=True).stdout
    line = next(line for line in text.splitlines() if "tensorboard" in line and "--logdir" in line)
    arguments = shlex.split(line.lstrip("@"))[1:]
    arguments[arguments.index("--logdir") + 1] = str(tmp_path)
    process = subprocess.Popen(
        [sys.executable, *arguments, "--port", "0"],
        cwd=root,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not (places := listeners(process)) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(1)
        assert {address for address, _ in places | listeners(process)} <= LOOPBACK
        assert places
    finally:
        for each in psutil.Process(process.pid).children(recursive=True):
            each.kill()
        process.kill()
        process.wait()
