"""A terminal that is closed during a run: the run saves and ends, or with nohup continues; its status is true."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from support.programs import ROOT, Program
from support.waiting import PATIENCE, wait_until

from wellread.checkpoint import list_checkpoints
from wellread.record.verify import verify
from wellread.run import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize(("ignored", "code"), [(False, 128 + signal.SIGHUP), (True, 0)], ids=["usual", "nohup"])
def test_a_closed_terminal(ignored: bool, code: int, program: Program, corpora: Path, tmp_path: Path) -> None:
    """With nohup the run continues to its end, although what it shows goes nowhere."""
    run = RunDirectory(tmp_path / "run")
    steps = "20" if ignored else "100000"
    flags = ["--corpora", corpora, "--out", run.path, "--steps", steps, "--batch_size", "2", "--save_every", "1000"]
    screen, terminal = pty.openpty()

    def begin() -> None:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    command = [sys.executable, "-m", "wellread", "run", "finetune", *map(str, flags), "--generations", "0"]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    process = subprocess.Popen(command, cwd=ROOT, preexec_fn=begin, **streams)  # type: ignore[call-overload]
    os.close(terminal)
    screenful = b""
    os.set_blocking(screen, False)

    def has_stepped() -> bool:
        nonlocal screenful
        with suppress(OSError):  # nothing to read yet
            screenful += os.read(screen, 1 << 16)
        return (run.log / "progress.json").exists()

    wait_until(has_stepped, "the first report")
    os.close(screen)  # the kernel sends SIGHUP to the processes of the terminal
    assert process.wait(PATIENCE) == code, screenful
    (about,) = json.loads(program("wellread", "status", run.path, "--json", check=True).stdout)
    words = ("finished", "") if ignored else ("stopped", "by SIGHUP")
    assert (about["state"], about["reason"]) == words
    assert about["step"] == list_checkpoints(run.checkpoints)[-1].step > 0
    assert b"Traceback" not in screenful
    assert "Traceback" not in "".join(path.read_text() for path in run.log.glob("*.log"))
    assert verify(run) == []
