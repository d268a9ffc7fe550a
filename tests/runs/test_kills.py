"""Kill a run thirty times, at least ten of them during a save: it still reads each batch exactly once.

Fewer times also where the host runs ahead of the device (`wellread.train.ahead`) and records rows one step late.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.programs import ROOT
from support.waiting import PATIENCE

from wellread.record.reader import Record
from wellread.record.writer import COLUMNS

STEPS = 160

pytestmark = pytest.mark.slow


def command(model: Path, run: Path, fast: str) -> list[str]:
    flags = f"--data sample --steps {STEPS} --save_every 1 --batch_size 8 --seq_len 64 --dtype fp32 --ranks_per_node 2"
    flags += f" --generations 0 --eval_samples 4 --fast {fast}"
    where = ["--model", str(model), "--out", str(run), "--corpora", str(run.parent / "corpora")]
    return [sys.executable, "-m", "launch", "run", "finetune", *flags.split(), *where]


def until(holds: Callable[[], object], process: subprocess.Popen[bytes]) -> bool:
    """Wait until `holds`; return False if the process has ended before."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if holds():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    raise AssertionError(f"timed out after {PATIENCE:.0f} s")


def ranks_of(launcher: subprocess.Popen[bytes]) -> Iterator[psutil.Process]:
    for child in psutil.Process(launcher.pid).children(recursive=True):
        if "train" in child.cmdline():
            yield child


def log_of(run: Path, attempt: int) -> Path:
    return run / "log" / f"attempt-{attempt:03d}-rank-0.log"


def kill_once(argv: list[str], run: Path, attempt: int, draw: random.Random, in_save: bool) -> bool:
    """Launch, and kill one process at a random moment or during a save. Returns whether a save was interrupted."""
    root = ROOT
    launcher = subprocess.Popen(argv, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log, checkpoints = log_of(run, attempt), run / "checkpoints"
    assert until(lambda: log.exists() and "saved step" in log.read_text(), launcher), f"attempt {attempt} ended early"
    if in_save:
        assert until(lambda: list(checkpoints.glob(".step-*.tmp")), launcher), "finished before it could be killed"
    else:
        time.sleep(draw.uniform(0, 0.1))
    victims = [psutil.Process(launcher.pid), *ranks_of(launcher)]
    victim = victims[attempt % len(victims)]
    victim.send_signal(signal.SIGKILL)
    assert launcher.wait(PATIENCE) != 0
    _, alive = psutil.wait_procs(victims, timeout=PATIENCE)
    assert not alive, "ranks outlived their launcher"
    text = log.read_text()
    started, committed = set(re.findall(r"saving (step-\d+)", text)), set(re.findall(r"saved (step-\d+)", text))
    return bool(started - committed)


def rows(run: Path) -> list[dict[str, object]]:
    exact = [name for name in COLUMNS if name != "loss"]
    table = Record.open(run / "record").table(exact)
    listed: list[dict[str, object]] = table.to_pylist()
    return listed


@pytest.mark.long
@pytest.mark.minutes(6)
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("fast", "kills", "least"), [("off", 30, 10), ("on", 6, 1)], ids=["off", "on"])
def test_kills_leave_the_record_of_an_uninterrupted_run(
    tmp_path: Path, small_model: Path, fast: str, kills: int, least: int
) -> None:
    draw, run, uninterrupted = random.Random(0), tmp_path / "killed", tmp_path / "whole"
    subprocess.run(command(small_model, uninterrupted, fast), cwd=ROOT, check=True)
    inside = 0
    for attempt in range(1, kills + 1):
        inside += kill_once(command(small_model, run, fast), run, attempt, draw, in_save=attempt % 2 == 0)
    print(f"{kills} kills, {inside} of them inside a save")
    assert inside >= least
    root = ROOT
    subprocess.run(command(small_model, run, fast), cwd=root, check=True)
    assert rows(run) == rows(uninterrupted)
    assert len(rows(run)) == STEPS * 8
    sealed = [Record.open(each / "record").sealed() for each in (run, uninterrupted)]
    assert len(sealed[0]) == (STEPS + 1) * 4
    assert sealed[0].equals(sealed[1])
    final = f"checkpoints/step-{STEPS:08d}/model/model.safetensors"
    assert (run / final).read_bytes() == (uninterrupted / final).read_bytes()
    verified = subprocess.run([sys.executable, "-m", "eval", "verify", str(run)], cwd=root, check=False)
    assert verified.returncode == os.EX_OK
