"""Programs that launch starts: they end with it, and a signal that ends them is named."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support.programs import ROOT
from support.waiting import wait_until

from launch import children


def test_a_child_gets_its_input_and_returns_its_code() -> None:
    code = "import sys; assert sys.stdin.read() == 'a ü'; sys.exit(7)"
    assert children.run(["-X", "utf8", "-c", code], "a ü") == 7
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


KILLED = "import os; os.kill(os.getpid(), 9)"


def test_a_signal_that_ends_a_child_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert children.run(["-c", KILLED]) == 137
    assert capsys.readouterr().err == (
        f"error: -c {KILLED} was ended by signal 9 (SIGKILL): probably out of host memory\n"
    )
    assert children.exit_code(["-m", "finetune", "prepare", "-"], -15) == 143
    assert capsys.readouterr().err == "error: finetune prepare was ended by signal 15 (SIGTERM)\n"
    assert [children.exit_code(["-m", "eval"], code) for code in (0, 3)] == [0, 3]


PROGRAM = """
import os, sys, time
from pathlib import Path
from wellread.cli import run_program
def main(argv):
    assert "WELLREAD_PARENT" not in os.environ
    Path(argv[0]).write_text(str(os.getpid()))
    time.sleep(3600)
run_program(main)
"""
STARTS = {
    "prepare and eval": "children.run(['-c', {program!r}, {file!r}])",
    "parts of an evaluation": "local.pool([('-c', {program!r}, {file!r})], 1)",
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("start", STARTS)
def test_a_program_ends_with_its_launcher(start: str, number: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    call = STARTS[start].format(program=PROGRAM, file=str(file))
    hang_up = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # tests may run under nohup
    text = f"{hang_up}; from launch import children; from launch.backends import local; {call}"
    with subprocess.Popen([sys.executable, "-c", text], cwd=ROOT) as launcher:
        wait_until(lambda: file.exists() and file.read_text() != "", "the program runs", launcher)
        child = psutil.Process(int(file.read_text()))
        launcher.send_signal(number)
    try:
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the program ends")
    finally:
        with suppress(psutil.NoSuchProcess):
            child.kill()
