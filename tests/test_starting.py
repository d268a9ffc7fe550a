"""Ctrl-C while a program starts: it ends without a word. `tests/test_cli.py` has Ctrl-C later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import ROOT

import wellread.__main__  # noqa: F401  # what a program imports changes nothing in another process
from wellread import processes, starting

INTERRUPTING = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfrom builtins import *\n"
"""A module that presses Ctrl-C while it is imported."""


def test_other_processes_keep_their_handler() -> None:
    assert not starting.is_program()
    assert not starting.is_ending_at_once()


@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "wellread"], [str(Path(sys.executable).parent / "wellread")]]
)
def test_ctrl_c_during_the_imports(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "difflib.py").write_text(INTERRUPTING)  # instead of the one that wellread imports
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    result = subprocess.run(
        [*command, "--version"], cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("program", ["launch", "finetune", "pretrain", "eval"])
def test_ctrl_c_before_the_first_line(program: str) -> None:
    with processes.starting():
        process = subprocess.Popen(
            [sys.executable, "-m", program, "--help"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
    process.send_signal(signal.SIGINT)  # at the latest while Python imports its own modules
    assert process.communicate() == ("", "")
    assert process.returncode == -signal.SIGINT


def test_ctrl_c_reaches_a_program_that_make_starts() -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    assert signal.SIGINT not in blocked
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.with_args", "wellread", "--version"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "")
    assert process.returncode == -signal.SIGINT
