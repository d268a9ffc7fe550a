"""The parts of a SLURM task that need no SLURM: port, signals, rendezvous, and the process of a rank."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.programs import seem_saved
from support.waiting import wait_until

from launch.backends.slurm import queue as slurm_queue
from launch.backends.slurm import task as slurm_task
from launch.backends.slurm.task import FIRST_PORT, PORTS, Child, CommandTask, Meeting, RankTask, Signals, free_port
from wellread.files import write_json
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.run import RunDirectory

# --- ports


def distance(port: int, job: int, restart: int = 0) -> int:
    """Distance of a port from the first port of a job; other programs on this machine may use ports in between."""
    return (port - FIRST_PORT - job * 31 - restart) % PORTS


def test_the_port_is_derived_from_the_job_id() -> None:
    for job in (1, 4711, 10**9):
        assert free_port(str(job), 0) >= FIRST_PORT
        assert free_port(str(job), 0) < FIRST_PORT + PORTS
        assert distance(free_port(str(job), 0), job) < 9
        assert distance(free_port(str(job), 3), job, restart=3) < 9
    assert free_port("4711", 0) == free_port("4711", 0)
    assert abs(free_port("4711", 0) - free_port("4712", 0)) > 9  # jobs with neighboring ids have distant ports
    assert distance(free_port("58_3", 0), 583) < 9


@pytest.mark.parametrize("address", ["", "127.0.0.1"])
@pytest.mark.parametrize("listening", [True, False])
def test_a_port_in_use_is_skipped(address: str, listening: bool) -> None:
    first = free_port("4711", 0)
    with socket.socket() as other:
        other.bind((address, first))
        if listening:
            other.listen()
        second = free_port("4711", 0)
        assert second != first
        assert distance(second, 4711) in range(1, 12)
    assert free_port("4711", 0) == first


def test_the_last_port_is_followed_by_the_first() -> None:
    job = 19_999 * pow(31, -1, PORTS) % PORTS
    with socket.socket() as other:
        with suppress(OSError):  # in use by another program, which is as good
            other.bind(("", FIRST_PORT + PORTS - 1))
        assert free_port(str(job), 0) - FIRST_PORT in range(9)


def test_without_a_free_port_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def bind(_: socket.socket, address: tuple[str, int]) -> None:
        tried.append(address[1])
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(socket, "socket", type("Full", (socket.socket,), {"bind": bind}))
    with pytest.raises(RuntimeError, match="no free port among 100 from 20031 on "):
        free_port("1", 0)
    assert tried == list(range(20_031, 20_131))


@given(st.integers(0, 2**32), st.integers(0, 50))
def test_every_job_id_has_a_port(job: int, restart: int) -> None:
    assert free_port(str(job), restart) in range(FIRST_PORT, FIRST_PORT + PORTS)


# --- signals


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the signal handlers of this process at the end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_are_stored_and_passed_to_submitit(handlers: None) -> None:
    called: list[tuple[int, object]] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: called.append((number, frame)))
    signals = Signals()
    assert signals.number == 0
    os.kill(os.getpid(), signal.SIGUSR2)
    assert (signals.number, called) == (signal.SIGUSR2, [])  # submitit's own handler would act at once
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.number == signal.SIGTERM
    signals.hand_back()
    assert called == [(signal.SIGUSR2, None)]


def test_without_submitits_handler_requeueing_fails(handlers: None) -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    with pytest.raises(AssertionError, match="submitit installs its handler"):
        Signals().hand_back()


# --- rendezvous


def test_ranks_wait_for_the_rendezvous_file(tmp_path: Path) -> None:
    meeting, file = Meeting(address="127.0.0.1", port=21_000, attempt=3), tmp_path / "meeting.json"
    later = threading.Timer(0.4, write_json, (file, vars(meeting)))
    later.start()
    assert slurm_task._await_meeting(file) == meeting
    later.join()


def test_waiting_for_the_rendezvous_file_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_task, "SECONDS_TO_MEET", 0.3)
    with pytest.raises(RuntimeError) as error:
        slurm_task._await_meeting(tmp_path / "x.json")
    assert str(error.value) == (
        f"{tmp_path}/x.json did not appear within 0.3 s; put the run directory on a shared filesystem"
    )


def test_each_start_has_another_rendezvous_file(monkeypatch: pytest.MonkeyPatch) -> None:
    task = RankTask(run="/runs/x", arguments=(), variables={}, requeues=0, limit=60)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert str(task._meeting_file(job())) == "/runs/x/submit/77-0.meeting.json"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert str(task._meeting_file(job())) == "/runs/x/submit/77-2.meeting.json"


# --- the process of a rank


PLAN = Plan(
    model="m", machine=Machine(cluster="slurm", nodes=1, ranks_per_node=2, device="cpu"),
    counts=Counts(samples=9, trainable=8, sealed=1, exact=True), batch_size=2, micro_batch_size=1, accumulation=1,
    dtype="fp32", engine="torch", strategy="ddp", strategy_reason="", seq_len=8, steps=4, epochs=1.0,
    warmup_steps=1, save_steps=(),
)  # fmt: skip


def job(rank: int = 0) -> Any:
    """Submitit's environment of a job with two ranks on each of two nodes."""
    hosts = ["n1", "n2"]
    return SimpleNamespace(
        node=0, job_id="77", global_rank=rank, local_rank=rank % 2, num_tasks=4, num_nodes=2, hostnames=hosts
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "log").mkdir()
    return RunDirectory(tmp_path)


MEETING = Meeting(address="127.0.0.1", port=21_000, attempt=2)


def child(run: RunDirectory, text: str, rank: int = 0, limit: int = 3600) -> tuple[Child, SimpleNamespace]:
    """A rank that runs this text, and the signals that it gets."""
    signals = SimpleNamespace(number=0)
    task = RankTask(str(run.path), ("-c", text, str(run.path)), {"EXTRA": "a b"}, 3, limit)
    return Child(task, job(rank), signals), signals  # type: ignore[arg-type]


def notes(run: RunDirectory) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in run.log.glob("*.error.json")}


def until(path: Path) -> None:
    wait_until(path.exists, f"{path} exists")


TELL = """
import json, os, sys
from pathlib import Path
Path(sys.argv[1], "env.json").write_text(json.dumps(dict(os.environ)))
sys.exit(3)
"""


def test_a_rank_gets_the_variables_of_its_place(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    rank, _ = child(run, TELL, rank=3)
    assert rank.run(MEETING) == 3
    environment = json.loads((run.path / "env.json").read_text())
    assert {name: environment.get(name) for name in slurm_variables()} == slurm_variables()
    assert notes(run) == {}  # the rank writes its own error


def slurm_variables() -> dict[str, str]:
    return {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "21000", "WELLREAD_ATTEMPT": "2", "WELLREAD_LAUNCHER": str(os.getpid()), "EXTRA": "a b",
        "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo",
    }  # fmt: skip


def test_a_killed_rank_has_an_error_file(run: RunDirectory) -> None:
    began = time.time()
    rank, _ = child(run, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", rank=1)
    assert rank.run(MEETING) == 137
    ((name, note),) = notes(run).items()
    assert name == "attempt-002-rank-1.error.json"
    assert (note["rank"], note["error"], note["signal"]) == (1, "ended by signal 9 (SIGKILL)", 9)
    assert began <= note["time"] <= time.time()


LISTENS = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "started").touch()
time.sleep(0.5)
def save(number, frame):
    (folder / "saved").write_text(signal.Signals(number).name)
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, save)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
(folder / "listening").touch()
while True:
    time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("number", "at"),
    [(signal.SIGUSR2, "started"), (signal.SIGUSR2, "listening"), (signal.SIGTERM, "listening")],
    ids=["USR2 before it listens", "USR2", "TERM"],
)
def test_signals_are_forwarded_to_the_rank(number: int, at: str, run: RunDirectory) -> None:
    rank, signals = child(run, LISTENS)

    def ask() -> None:
        until(run.path / at)
        signals.number = number

    threading.Thread(target=ask).start()
    assert rank.run(MEETING) == 128 + number
    assert (run.path / "saved").read_text() == signal.Signals(number).name
    assert notes(run) == {}  # it ended on request


DEAF = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(sys.argv[1], "started").touch()
time.sleep(3600)
"""


@pytest.mark.slow
def test_a_slow_save_is_killed_in_time_to_requeue(run: RunDirectory) -> None:
    """Near the time limit the job must be requeued, saved or not."""
    rank, signals = child(run, DEAF, limit=12)

    def ask() -> None:
        until(run.path / "started")
        signals.number = signal.SIGUSR2

    threading.Thread(target=ask).start()
    began = time.monotonic()
    assert rank.run(MEETING) == 137
    assert time.monotonic() - began > 4.5  # what a save has at least
    assert notes(run) == {}


def test_rank_0_is_killed_after_the_grace_period(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_task, "GRACE", 0.5)
    rank, _ = child(run, DEAF)
    error = {"time": time.time(), "rank": 2, "error": "bad data", "trace": ""}
    for attempt, delay in ((1, 0.0), (2, 1.0)):  # an error of an older attempt does not count
        name = f"attempt-{attempt:03d}-rank-2.error.json"
        threading.Timer(delay, write_json, (run.log / name, error)).start()
    began = time.monotonic()
    assert rank.run(MEETING) == 137
    assert time.monotonic() - began > 1.4


def test_other_ranks_do_not_check_for_errors(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_task, "GRACE", 0.0)
    write_json(run.log / "attempt-002-rank-2.error.json", {"time": 0, "rank": 2, "error": "bad data", "trace": ""})
    rank, _ = child(run, "import time; time.sleep(2.5)", rank=1)
    assert rank.run(MEETING) == 0


# --- the task around it


def test_the_number_of_requeues_is_limited(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], handlers: None
) -> None:
    (run.path / "config.yaml").write_text("{}")
    monkeypatch.setattr("submitit.JobEnvironment", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    with pytest.raises(SystemExit) as exit_error:
        RankTask(str(run.path), ("-c", "1/0"), {}, requeues=3, limit=60)()
    assert exit_error.value.code == 2
    assert capsys.readouterr().err == ("error: requeued 4 times, 3 allowed; launch it again to resume\n")
    assert [path.name for path in run.path.iterdir() if path.name not in ("config.yaml", "log")] == []


def test_a_plan_of_another_launch_is_refused(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], handlers: None
) -> None:
    (run.path / "config.yaml").write_text("{}")
    write_json(run.plan_file, PLAN.as_dict())
    monkeypatch.setattr("submitit.JobEnvironment", job)
    with pytest.raises(SystemExit) as exit_error:
        RankTask(str(run.path), ("-c", "1/0"), {}, requeues=3, limit=60)()
    assert exit_error.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {run.path}: its plan is now for 2 ranks, and this job has 4, because the run was launched in another "
        "way in the meantime; launch it again to resume\n"
    )
    assert not run.manifest_file.exists()


HANGS = """
import sys, time
from pathlib import Path
run = Path(sys.argv[1])
(run / "saved").rename(run / "checkpoints")
(run / "log" / "error.json").rename(run / "log" / "attempt-001-rank-1.error.json")
time.sleep(3600)
"""
BAD_DATA = {"time": 1.0, "rank": 1, "error": "KeyError: 3", "trace": ""}


@pytest.fixture
def requeues(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, handlers: None) -> list[int]:
    """A run of four ranks, of which this process is rank 0; each entry is a request to requeue its job."""
    entries: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: entries.append(number))
    run.config_file.touch()
    (run.path / "submit").mkdir()
    write_json(run.plan_file, replace(PLAN, machine=replace(PLAN.machine, nodes=2)).as_dict())
    write_json(run.manifest_file, {"version": 1, "identity": {}, "attempts": []})
    monkeypatch.setattr("submitit.JobEnvironment", job)
    monkeypatch.setattr(slurm_task, "own_address", lambda hosts: "127.0.0.1")
    monkeypatch.setattr(slurm_task, "GRACE", 0.5)
    monkeypatch.setattr(slurm_task, "SECONDS_FOR_NOTES", 0.0)
    return entries


def exit_code_of(run: RunDirectory, text: str) -> object:
    """Exit code of a task whose rank runs this text."""
    with pytest.raises(SystemExit) as exit_error:
        RankTask(str(run.path), ("-c", text, str(run.path)), {}, requeues=3, limit=3600)()
    return exit_error.value.code


@pytest.mark.parametrize(
    ("error", "code", "requeued"),
    [({}, 1, False), ({"exit_code": 2}, 2, False), ({"signal": 11}, 139, True)],
    ids=["an error", "an error of the user", "a signal"],
)
def test_a_job_is_requeued_after_a_lost_rank_but_not_after_an_error(
    run: RunDirectory, requeues: list[int], error: dict[str, int], code: int, requeued: bool
) -> None:
    """Rank 1 fails, after a checkpoint was saved. Ranks 0, 2 and 3 wait for it in a collective."""
    seem_saved(run, 4)
    run.checkpoints.rename(run.path / "saved")
    write_json(run.log / "error.json", BAD_DATA | error)
    assert exit_code_of(run, HANGS) == code
    assert run.manifest()["attempts"][0]["exit_code"] == code
    assert bool(requeues) is requeued


@pytest.mark.parametrize("preempted", ["2026-11-28T10:05:00", "None"])
def test_a_preempted_job_is_requeued_after_a_sigterm(
    run: RunDirectory, requeues: list[int], monkeypatch: pytest.MonkeyPatch, preempted: str
) -> None:
    line = f"JobId=77 UserId=a(1) GroupId=a(1) StartTime=2026-11-28T10:00:00 PreemptTime={preempted} Command=x"
    monkeypatch.setattr(slurm_queue, "_ask", lambda *command: subprocess.CompletedProcess(command, 0, line, ""))

    def ask() -> None:
        until(run.path / "listening")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    assert exit_code_of(run, LISTENS) == 143
    assert bool(requeues) is (preempted != "None")


def test_a_rank_ends_soon_on_request_after_another_one_has_failed(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise SLURM kills its task, and the job ends with exit code 137 instead of that of the failed rank."""
    monkeypatch.setattr(slurm_task, "SECONDS_TO_END", 0.3)
    write_json(run.log / "attempt-002-rank-1.error.json", BAD_DATA)
    rank, signals = child(run, DEAF, rank=2)

    def ask() -> None:
        until(run.path / "started")
        signals.number = signal.SIGTERM

    threading.Thread(target=ask).start()
    assert rank.run(MEETING) == 137


def test_the_requeued_task_is_the_same() -> None:
    task = RankTask("/runs/x", ("-m", "x"), {"A": "b"}, 3, 60)
    again = task.checkpoint()
    assert (again.function, again.args, again.kwargs) == (task, (), {})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("pass", 0),
        ("import sys; sys.exit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os, sys; sys.exit(os.environ['ONE'] != 'a b')", 0),
    ],
)
def test_an_evaluation_ends_with_its_exit_code(text: str, code: int) -> None:
    task = CommandTask(("-c", text), {"ONE": "a b"})
    if code == 0:
        assert task() == 0
        return
    with pytest.raises(SystemExit) as exit_error:
        task()
    assert exit_error.value.code == code


def test_tasks_can_be_pickled() -> None:
    import pickle

    for task in (RankTask("/runs/x", ("-m", "x"), {"A": "b"}, 3, 60), CommandTask(("-c", "pass"), {})):
        assert pickle.loads(pickle.dumps(task)) == task
