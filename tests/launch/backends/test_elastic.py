"""`launch.backends.elastic`: real ranks under torch's elastic agent, and how they stop."""

import os
import signal
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path

import psutil
import pytest
from support.waiting import PATIENCE, wait_until

from launch.backends import elastic
from launch.backends.elastic import ASKED, ASKED_EARLY, likely_cause

LAUNCHER = """
import sys
from pathlib import Path
from launch.backends import elastic as local
folder, text = sys.argv[1:]
sys.exit(local.start(["-c", text, folder], 2, {}, Path.cwd()))
"""
BEGIN = """
import os, signal, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
"""
READY = """
(folder / f".{rank}").write_text(str(os.getpid()))
os.rename(folder / f".{rank}", folder / rank)
"""
SAVING = """
def save(number, frame):
    time.sleep(1.5)
    (folder / f"saved-{rank}").write_text(signal.Signals(number).name)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
"""
DEAF = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
"""
WAITING = """
while True:
    time.sleep(1)
"""
MEETING = """
import torch.distributed as dist
from wellread.train import ranks
ranks.start("cpu")
dist.barrier()
"""
COLLECTIVE = """
if rank == "0":
    dist.barrier()
"""


def launched(folder: Path, *rank: str) -> subprocess.Popen[str]:
    """Start two ranks that run this text; wait until both are ready."""
    command = [sys.executable, "-c", LAUNCHER, str(folder), BEGIN + "".join(rank)]
    pipe = subprocess.PIPE
    launcher = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=hear_hang_ups)
    wait_until(lambda: (folder / "0").exists() and (folder / "1").exists(), "both ranks start", launcher)
    return launcher


def hear_hang_ups() -> None:
    """Undo the effect of nohup on these tests."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def ranks(folder: Path) -> list[psutil.Process]:
    return [psutil.Process(int((folder / name).read_text())) for name in ("0", "1")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "passed_on"),
    [
        (signal.SIGTERM, "SIGTERM"),
        pytest.param(signal.SIGINT, "SIGINT", marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, "SIGTERM", marks=pytest.mark.long),  # ranks do not handle SIGHUP
    ],
)
def test_one_signal_lets_the_ranks_save(number: signal.Signals, passed_on: str, tmp_path: Path) -> None:
    launcher = launched(tmp_path, SAVING, READY, WAITING)
    launcher.send_signal(number)
    _, errors = launcher.communicate(timeout=PATIENCE)
    assert (launcher.returncode, errors) == (128 + number, ASKED)
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in (0, 1)] == [passed_on] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "one_can_save", ["", SAVING.replace("signal.SIGTERM, save", "signal.SIGTERM, save) if rank == '0' else (")]
)
def test_a_signal_before_all_ranks_can_save_ends_them(one_can_save: str, tmp_path: Path) -> None:
    """As while they import, or wait for each other: no traceback, and nobody waits."""
    launcher = launched(tmp_path, one_can_save, READY, WAITING)
    victims = ranks(tmp_path)
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=PATIENCE)
    assert (launcher.returncode, errors) == (130, ASKED_EARLY)
    assert not any(victim.is_running() for victim in victims)
    assert not list(tmp_path.glob("saved-*"))


@pytest.mark.slow
def test_a_second_signal_ends_ranks_that_ignore_signals(tmp_path: Path) -> None:
    launcher = launched(tmp_path, DEAF, READY, WAITING)
    victims = ranks(tmp_path)
    launcher.send_signal(signal.SIGINT)
    time.sleep(2)
    assert launcher.poll() is None
    assert all(victim.is_running() for victim in victims)
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=PATIENCE)
    assert (launcher.returncode, errors) == (130, ASKED)
    assert not any(victim.is_running() for victim in victims)


@pytest.mark.slow
@pytest.mark.parametrize(
    "deaf",
    [
        pytest.param("", id="gloo"),
        # Ignores signals like a rank that waits inside NCCL: elastic kills it after 30 s.
        pytest.param(DEAF, id="deaf", marks=pytest.mark.long),
    ],
)
def test_a_killed_rank_ends_its_peer_in_a_collective(deaf: str, tmp_path: Path) -> None:
    waiting = WAITING if deaf else COLLECTIVE + WAITING
    launcher = launched(tmp_path, MEETING, deaf, READY, waiting)
    victims = ranks(tmp_path)
    time.sleep(0.5)
    victims[1].kill()
    _, errors = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert "rank 1 was ended by signal 9 (SIGKILL)" in errors
    assert not any(victim.is_running() for victim in victims)


def test_a_torch_without_a_setting_for_it_also_waits_for_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.multiprocessing import PContext

    close = PContext.close
    monkeypatch.setattr(close, "__defaults__", close.__defaults__)  # restores them
    elastic._wait_for_saving()
    assert signature(close).parameters["timeout"].default == elastic.SECONDS_TO_SAVE


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        ({0: 1, 1: -9}, 1),  # killed; the other rank fails because it is gone
        ({0: -15, 1: 1}, 1),  # ended on request because the other rank failed
        ({0: 1, 1: 2}, 1),  # bad input is not a consequence of another failure
        ({0: -15, 1: -6}, 1),
        ({0: 1, 1: 1}, 0),
        ({0: 143, 1: 137}, 1),  # as reported by a node's agent
        ({1: 1, 0: 143}, 1),
    ],
)
def test_the_exit_code_of_the_likely_cause(codes: dict[int, int], cause: int) -> None:
    assert likely_cause(codes) == (cause, codes[cause])


def test_a_signal_that_nohup_has_ignored_stays_ignored() -> None:
    text = """
import os, signal
from launch.backends import elastic as local
with local.stop_signals(lambda number, frame: print(number)):
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""
    result = subprocess.run(["nohup", sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert result.stdout.split() == [str(int(signal.SIGTERM)), "True"]


RESTORED = """
import logging, os, sys
from pathlib import Path
from launch.backends import elastic
before = dict(os.environ)
rank = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ['OMP_NUM_THREADS'])"
code = elastic.start(["-c", rank, sys.argv[1]], 1, {"OMP_NUM_THREADS": "7", "CUDA_VISIBLE_DEVICES": ""}, Path.cwd())
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
assert logging.root.manager.disable == logging.NOTSET
sys.exit(code)
"""


@pytest.mark.slow
def test_the_environment_of_the_ranks_is_not_that_of_what_follows(tmp_path: Path) -> None:
    """An evaluation after training, and a second attempt, would get the ranks' number of threads as the user's own."""
    subprocess.run([sys.executable, "-c", RESTORED, str(tmp_path / "threads")], check=True, timeout=PATIENCE)
    assert (tmp_path / "threads").read_text() == "7"
