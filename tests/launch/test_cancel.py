"""Canceling local launches by their lock and SLURM jobs by their ids, and nothing else; also with one real run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.programs import Program
from support.run_folders import ENDED, HELD, QUEUED, STEPS, attempt, job, progress, run_folder
from support.waiting import PATIENCE, wait_until

from launch import cancel
from launch.backends.jobs import JobState
from launch.backends.slurm import queue as slurm_queue
from wellread.errors import UserError
from wellread.files import write_json
from wellread.run import RunDirectory

LAUNCHER = """
import json, signal, sys, time
from pathlib import Path
from wellread.files import write_json
from wellread.run import RunDirectory

run, saves, asked = RunDirectory(Path(sys.argv[3])), sys.argv[4] == "saves", []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
with run.lock():
    print("held", flush=True)
    while len(asked) < (1 if saves else 2):
        time.sleep(0.01)
    if saves:
        (run.checkpoints / "step-00000030").mkdir()
        write_json(run.checkpoints / "step-00000030" / "checkpoint.json", {"step": 30})
        manifest = run.manifest()
        manifest["attempts"][-1] |= {"ended": "2026-11-21T06:50:00+0000", "exit_code": 143}
        write_json(run.manifest_file, manifest)
"""
"""A fake ``wellread run``: it holds the run's lock, saves after a first signal, and ends at once after a second one."""


def files(run: RunDirectory) -> dict[str, bytes | None]:
    """Return the content of all files of a run directory."""
    paths = sorted(run.path.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def launcher(root: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that holds the lock of a run."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *arguments]
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        with process:
            pass


def printed(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.removeprefix(f"{run.path}: ") for line in capsys.readouterr().out.splitlines()]


# --- nothing to do


@pytest.mark.parametrize(
    ("attempts", "saved", "words"),
    [
        ([], (), "prepared"),
        ([attempt(exit_code=0, **ENDED)], (0, STEPS), "finished"),
        ([attempt(exit_code=143, **ENDED)], (0, 20), "stopped (by SIGTERM)"),
        ([attempt(exit_code=1, **ENDED)], (0, 20), "failed (exit code 1)"),
        ([attempt()], (0,), "killed"),
    ],
)
def test_a_run_that_is_not_active_is_unchanged(
    attempts: list[dict[str, Any]],
    saved: tuple[int, ...],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_folder(tmp_path / "run", *attempts, saved=saved)
    before = files(run)
    assert cancel.main([str(run.path)]) == 0
    assert printed(run, capsys) == [f"nothing to cancel: {words}"]
    assert files(run) == before


def test_bad_input(in_process: Program, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    for arguments, message in (
        (
            [tmp_path / "no"],
            f"{tmp_path}/no: not a run directory (it has no config.yaml); see the folder runs/ for yours",
        ),
        ([run.path, "--timeout", "-1"], "--timeout -1: must not be negative; use --now to end the run at once"),
        ([run.path, "--timeout", "soon"], "--timeout soon: expected a number"),
    ):
        result = in_process("launch", "cancel", *arguments)
        assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: {message}\n")


# --- a launch on this machine


def test_a_launcher_gets_one_signal_and_time_to_save(
    launcher: Callable[..., subprocess.Popen[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", attempt(), saved=(0, 20), report=progress(1, 30))
    process = launcher(LAUNCHER, "launch", "run", str(run.path), "saves")
    assert cancel.main([str(run.path)]) == 0
    assert process.wait(PATIENCE) == 0
    assert printed(run, capsys) == [
        f"asked process {process.pid} to save and end",
        "stopped at step 30, saved; run the same command to resume",
    ]


@pytest.mark.parametrize(("flags", "code"), [(["--now"], 0), (["--timeout", "0.5"], 1)])
def test_a_second_signal_ends_the_launcher_at_once(
    flags: list[str],
    code: int,
    launcher: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cancel, "GAP", 0.5)
    run = run_folder(tmp_path / "run", attempt(), saved=(0, 20), report=progress(1, 30))
    process = launcher(LAUNCHER, ".venv/bin/wellread", "run", str(run.path), "ignores")
    assert cancel.main([str(run.path), *flags]) == code
    assert process.wait(PATIENCE) == 0
    requests, *late, last = printed(run, capsys)
    assert requests == f"asked process {process.pid} to " + ("end at once" if code == 0 else "save and end")
    assert late == ([] if code == 0 else ["no checkpoint within 0.5 s; ending it at once"])
    assert last == (
        "ended without a new checkpoint, at step 30 or later; "
        "run the same command to resume from step 20, its last checkpoint"
    )
    assert (
        run.manifest()["attempts"][0]["exit_code"] == 143
    )  # `cancel` has written its end: the run is stopped, not killed


def test_another_process_gets_no_signal(
    launcher: Callable[..., subprocess.Popen[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", attempt())
    process = launcher(HELD, str(run.path))
    with pytest.raises(
        UserError, match=f"in use by process {process.pid}, which is not a `wellread run` of this machine"
    ):
        cancel.main([str(run.path), "--now"])
    (run.path / "lock").write_text(f"process {process.pid} on elsewhere since today")
    with pytest.raises(UserError, match=f"runs on elsewhere; run `wellread cancel {run.path}` there"):
        cancel.main([str(run.path), "--now"])
    assert process.poll() is None


# --- SLURM


class Cluster:
    """A fake cluster: jobs in a dictionary, and the commands sent to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **jobs: str) -> None:
        self.states = {name.removeprefix("job_"): state for name, state in jobs.items()}
        self.requests: list[str] = []
        self.on_signal: Callable[[], None] = lambda: None
        monkeypatch.setattr(slurm_queue, "state", self.state)
        monkeypatch.setattr(slurm_queue, "signal_job", self.signal)
        monkeypatch.setattr(slurm_queue, "cancel", self.cancel)
        for name in ("POLL", "REMIND"):
            monkeypatch.setattr(cancel, name, 0.01)

    def state(self, job_id: str, folder: str) -> JobState:
        return JobState(state=self.states[job_id])

    def signal(self, job_id: str, name: str) -> None:
        self.requests.append(f"signal {name} {job_id}")
        self.on_signal()

    def cancel(self, job_id: str) -> None:
        self.requests.append(f"cancel {job_id}")
        self.states[job_id] = "CANCELLED"


def test_waiting_jobs_are_canceled_dependent_ones_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(monkeypatch, job_6="COMPLETED", job_7="PENDING", job_8="PENDING")
    run = run_folder(tmp_path / "run", jobs=(job(6), job(7), job(8, "eval")))
    assert cancel.main([str(run.path)]) == 0
    assert cluster.requests == ["cancel 8", "cancel 7"]
    assert printed(run, capsys) == [
        "canceled job 8 (eval, was pending)",
        "canceled job 7 (finetune, was pending)",
        "no job is queued or running",
    ]
    assert cancel.main([str(run.path)]) == 0
    assert printed(run, capsys) == ["nothing to cancel: stopped (job 7 was canceled)"]


def test_a_running_job_is_signaled_until_it_reacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(monkeypatch, job_7="RUNNING", job_8="PENDING")
    run = run_folder(tmp_path / "run", QUEUED, jobs=(job(7), job(8, "eval")), saved=(0, 20), report=progress(1, 20))

    def listen() -> None:
        if cluster.requests.count("signal TERM 7") == 3:
            write_json(run.manifest_file, run.manifest() | {"attempts": [QUEUED | ENDED | {"exit_code": 143}]})
            cluster.states["7"] = "FAILED"

    cluster.on_signal = listen
    assert cancel.main([str(run.path)]) == 0
    assert cluster.requests == ["cancel 8", *["signal TERM 7"] * 3]
    assert printed(run, capsys) == [
        "canceled job 8 (eval, was pending)",
        "asked job 7 to save and end",
        "stopped at step 20, saved; run the same command to resume",
    ]


def test_a_job_requeued_in_the_meantime_is_canceled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, job_7="RUNNING")
    run = run_folder(tmp_path / "run", QUEUED, jobs=(job(7),), saved=(0, 20))
    cluster.on_signal = lambda: cluster.states.update({"7": "PENDING"})
    assert cancel.main([str(run.path)]) == 0
    assert cluster.requests == ["signal TERM 7", "cancel 7"]


@pytest.mark.parametrize(
    ("flags", "code", "requests"),
    [(["--now"], 0, ["cancel 7"]), (["--timeout", "0"], 1, ["signal TERM 7", "cancel 7"])],
)
def test_a_job_without_a_save_is_canceled(
    flags: list[str],
    code: int,
    requests: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster = Cluster(monkeypatch, job_7="RUNNING")
    run = run_folder(tmp_path / "run", QUEUED, jobs=(job(7),), saved=(0, 20), report=progress(1, 30))
    assert cancel.main([str(run.path), *flags]) == code
    assert cluster.requests == requests
    assert printed(run, capsys)[-1] == (
        "ended without a new checkpoint, at step 30 or later; "
        "run the same command to resume from step 20, its last checkpoint"
    )


def test_a_job_without_started_ranks_is_canceled_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(monkeypatch, job_7="RUNNING")
    run = run_folder(tmp_path / "run", attempt(), jobs=(job(7),))
    before = run.manifest()
    assert cancel.main([str(run.path)]) == 0
    assert cluster.requests == ["cancel 7"]
    assert printed(run, capsys)[0] == "canceling job 7 before its ranks start"
    assert run.manifest() == before


def test_a_run_on_another_machine_keeps_its_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, job_7="COMPLETED", job_8="PENDING")
    run = run_folder(tmp_path / "run", attempt(), jobs=(job(7), job(8, "eval")))
    with run.lock():
        (run.path / "lock").write_text("process 5 on elsewhere since today")
        with pytest.raises(UserError, match="runs on elsewhere"):
            cancel.main([str(run.path)])
    assert cluster.requests == []


def test_without_an_answer_of_slurm_nothing_is_canceled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def silent(job_id: str, folder: str) -> JobState:
        raise RuntimeError("no answer from SLURM about job 7: no route")

    monkeypatch.setattr(slurm_queue, "state", silent)
    run = run_folder(tmp_path / "run", QUEUED, jobs=(job(7),))
    assert cancel.main([str(run.path)]) == 1
    assert capsys.readouterr() == ("", "error: no answer from SLURM about job 7: no route\n")


# --- a real run


@pytest.mark.slow
def test_a_real_run_is_followed_canceled_resumed_and_killed(
    program: Program, small_model: Path, corpora: Path, root: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    flags = (
        "--data sample --steps 100000 --save_every 50000 --batch_size 8 --seq_len 64 --dtype fp32 --ranks_per_node 1"
    )
    where = ["--model", str(small_model), "--out", str(run.path), "--corpora", str(corpora)]
    command = [sys.executable, "-m", "launch", "run", "finetune", *flags.split(), *where]

    def launch() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def now() -> dict[str, Any]:
        (about,) = json.loads(program("launch", "status", run.path, "--json", check=True).stdout)
        return dict(about)

    def reached(attempt: int, step: int) -> bool:
        path = run.log / "progress.json"
        report = json.loads(path.read_text()) if path.exists() else {}
        return bool(report.get("attempt") == attempt and report["step"] >= step)

    first = launch()
    wait_until(lambda: reached(1, 25), "step 25", first)
    about = now()
    assert about["state"] == "running"
    assert about["where"] == f"pid {first.pid} on {os.uname().nodename}"
    assert about["step"] >= 25
    assert about["seconds_left"] == pytest.approx((100_000 - about["step"]) * about["seconds_per_step"])
    assert about["tokens_per_second"] > 0
    watching = [sys.executable, "-m", "launch", "logs", str(run.path), "--follow"]
    with subprocess.Popen(watching, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        result = program("launch", "cancel", run.path, check=True)
        assert first.wait(PATIENCE) == 143
        followed, states = follower.communicate(timeout=PATIENCE)
    about = now()
    saved = about["last_checkpoint"]
    assert result.stdout.splitlines() == [
        f"{run.path}: asked process {first.pid} to save and end",
        f"{run.path}: stopped at step {saved}, saved; run the same command to resume",
    ]
    assert (about["state"], about["reason"], about["step"]) == ("stopped", "by SIGTERM", saved)
    assert saved >= 25
    last = f"stopped by SIGTERM at step {saved}, saved; run the same command to resume"
    assert followed.splitlines()[-1] == last
    assert states == f"{run.path}: stopped (by SIGTERM)\n"

    second = launch()
    wait_until(lambda: reached(2, saved + 1), "a step after the resume", second)
    assert f"resuming from step-{saved:08d}" in program("launch", "logs", run.path, check=True).stdout
    ranks = [child for child in psutil.Process(second.pid).children(recursive=True) if "train" in child.cmdline()]
    assert len(ranks) == 1
    second.send_signal(signal.SIGKILL)
    second.wait(PATIENCE)
    wait_until(lambda: run.holder() is None, "the lock is free")
    about = now()
    assert (about["state"], about["attempts"], about["last_checkpoint"]) == ("killed", 2, saved)
    _, alive = psutil.wait_procs(ranks, timeout=PATIENCE)
    assert not alive
    before = files(run)
    result = program("launch", "cancel", run.path, check=True)
    assert result.stdout == f"{run.path}: nothing to cancel: killed\n"
    assert files(run) == before
