"""The logs of all ranks: their order, selection by flags, and what --follow prints while files grow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.programs import Program
from support.run_folders import ENDED, QUEUED, attempt, job, run_folder
from support.waiting import PATIENCE, wait_until

from launch import logs
from launch.backends.jobs import JobState
from launch.backends.slurm import queue as slurm_queue
from wellread.errors import UserError
from wellread.files import write_json
from wellread.run import RunDirectory

FAILED = {"exit_code": 1, **ENDED}


def write(run: RunDirectory, number: int, rank: int, *lines: str) -> Path:
    """Add lines to a rank's log."""
    path = run.log / f"attempt-{number:03d}-rank-{rank}.log"
    with open(path, "a", newline="") as file:
        file.write("".join(f"{line}\n" for line in lines))
    return path


def fail(run: RunDirectory, number: int, rank: int, when: float, error: str) -> None:
    about = {"time": when, "rank": rank, "error": error, "trace": f"Traceback of rank {rank}\n  …\n{error}\n"}
    write_json(run.log / f"attempt-{number:03d}-rank-{rank}.error.json", about)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Two attempts of three ranks; in the newer one rank 2 fails first, and the others because of it."""
    three = {"ranks": 3, "ranks_per_node": 3}
    run = run_folder(tmp_path / "run", attempt(exit_code=143, **three, **ENDED), attempt(**three, **FAILED), saved=(0,))
    write(run, 1, 0, "old story")
    write(run, 2, 0, "step 1", "step 2")
    write(run, 2, 1, "a warning")
    write(run, 2, 2)
    fail(run, 2, 0, 30.0, "RuntimeError: connection closed by peer")
    fail(run, 2, 1, 20.5, "RuntimeError: the same")
    fail(run, 2, 2, 10.0, "ValueError: the cause")
    return run


Printed = Callable[..., str]


@pytest.fixture
def printed(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Return what ``wellread logs RUN …`` prints."""

    def show(*arguments: str) -> str:
        assert logs.main([str(run.path), *arguments]) == 0
        return capsys.readouterr().out.replace(str(run.path), "RUN")

    return show


def test_the_first_error_comes_first_and_rank_0_last(printed: Printed) -> None:
    assert printed() == (
        "error: rank 2 failed first: ValueError: the cause\n[rank 1] a warning\n[rank 0] step 1\n[rank 0] step 2\n"
    )


def test_one_rank_has_no_prefix(printed: Printed) -> None:
    assert printed("--rank", "0") == "error: rank 2 failed first: ValueError: the cause\nstep 1\nstep 2\n"
    assert printed("--rank", "2") == "error: rank 2 failed first: ValueError: the cause\n"


def test_an_older_attempt(printed: Printed) -> None:
    assert printed("--attempt", "1") == "[rank 0] old story\n"
    assert printed("--attempt", "1", "--errors") == "no rank of attempt 1 has written an error\n"


def test_errors_are_ordered_by_time(printed: Printed) -> None:
    def block(rank: int, second: int, error: str) -> str:
        return f"error: rank {rank} at 00:00:{second}: {error}\nTraceback of rank {rank}\n  …\n{error}\n"

    causes = block(2, 10, "ValueError: the cause"), block(1, 20, "RuntimeError: the same")
    assert printed("--errors") == "".join(causes) + block(0, 30, "RuntimeError: connection closed by peer")
    assert printed("--errors", "--rank", "1") == causes[1]


def test_an_end_without_an_error_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run", attempt(exit_code=137, ranks=1, **ENDED))
    write(run, 1, 0, "step 1")
    assert logs.main([str(run.path)]) == 0
    silent = "error: attempt 1 ended with exit code 137, SIGKILL; no rank has written an error about it\n"
    assert capsys.readouterr().out == f"{silent}step 1\n"
    fail(run, 1, 0, 1.0, "RuntimeError: connection closed by peer")
    assert logs.main([str(run.path)]) == 0
    consequence = "error: rank 0 failed first: RuntimeError: connection closed by peer\n"
    assert capsys.readouterr().out == f"{silent}{consequence}step 1\n"
    error = {"time": 0.5, "rank": 1, "error": "ended by signal 9 (SIGKILL)", "trace": "", "signal": 9}
    write_json(run.log / "attempt-001-rank-1.error.json", error)  # SLURM's tasks write it for their ranks
    assert logs.main([str(run.path)]) == 0
    assert capsys.readouterr().out == "error: rank 1 failed first: ended by signal 9 (SIGKILL)\nstep 1\n"


def test_ranks_have_colors_only_on_a_terminal(
    printed: Printed, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b" not in printed()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\x1b" not in printed()  # the tests set NO_COLOR
    monkeypatch.delenv("NO_COLOR")
    assert printed() == (
        "\x1b[31merror:\x1b[0m rank 2 failed first: ValueError: the cause\n"
        "\x1b[36m[rank 1] a warning\x1b[0m\n[rank 0] step 1\n[rank 0] step 2\n"
    )


def test_progress_bars_are_shown_as_on_a_terminal(run: RunDirectory, printed: Printed) -> None:
    write(run, 2, 2, "loading 1%\rloading 50%\rloading 100%\r", "and a half line ends")
    assert "[rank 2] loading 100%\n[rank 2] and a half line ends\n" in printed()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "7"], "--rank 7: attempt 2 of RUN has ranks 0 to 2"),
        (["--rank", "-1"], "--rank -1: attempt 2 of RUN has ranks 0 to 2"),
        (["--rank", "x"], "--rank x: expected a whole number"),
        (["--attempt", "3"], "--attempt 3: RUN has attempts 1 to 2"),
        (["--attempt", "0"], "--attempt 0: RUN has attempts 1 to 2"),
        (["--errors", "--follow"], "--errors --follow: cannot be combined; use only one of them"),
        (["--folow"], "unknown setting 'folow': did you mean --follow?"),
    ],
)
def test_bad_input(arguments: list[str], message: str, run: RunDirectory) -> None:
    with pytest.raises(UserError) as refused:
        logs.main([str(run.path), *arguments])
    assert str(refused.value).replace(str(run.path), "RUN") == message


def test_bad_input_is_one_line(run: RunDirectory, in_process: Program, tmp_path: Path) -> None:
    result = in_process("launch", "logs", run.path, "--rank", 7)
    message = f"error: --rank 7: attempt 2 of {run.path} has ranks 0 to 2\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message)
    result = in_process("launch", "logs", tmp_path)
    reason = f"it is a folder of runs, such as {run.path}"
    message = f"error: {tmp_path}: not a run directory (it has no config.yaml); {reason}\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message)


def test_a_run_without_an_attempt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run")
    assert logs.main([str(run.path)]) == 0
    assert logs.main([str(run.path), "--errors"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{run.path} has no attempt yet\n"
    assert printed.err == f"{run.path}: prepared; no rank has written yet\n"
    with pytest.raises(UserError, match="has no attempt yet"):
        logs.main([str(run.path), "--attempt", "1"])


# --- SLURM


@pytest.fixture
def ended_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_queue, "state", lambda job_id, folder: JobState(state="FAILED", exit_code=1))


@pytest.mark.usefixtures("ended_job")
def test_output_of_a_job_without_ranks_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run", jobs=(job(6), job(7), job(8, "eval")))
    for name, text in (("7_0", "module: command not found\n"), ("7_1", ""), ("6_0", "older\n"), ("8_0", "eval\n")):
        (run.submit / f"{name}_log.err").write_text(text)
    job_output = f"--- {run.submit}/7_0_log.err, last lines\nmodule: command not found\n"
    assert logs.main([str(run.path)]) == 0
    printed = capsys.readouterr()
    assert printed.out == job_output
    assert printed.err.endswith("failed (job 7 failed before its ranks started); no rank has written yet\n")
    assert logs.main([str(run.path), "--errors"]) == 0
    assert capsys.readouterr().out == f"{run.path} has no attempt yet\n{job_output}"


@pytest.mark.usefixtures("ended_job")
def test_a_failed_newer_job_comes_before_an_older_attempt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run", QUEUED | FAILED, jobs=(job(7), job(9, submitted="2026-11-21T08:00:00+0000")))
    write(run, 1, 0, "step 1")
    (run.submit / "7_0_log.err").write_text("".join(f"line {n}\n" for n in range(100)))
    (run.submit / "9_0_log.err").write_text("no such module\n")
    assert logs.main([str(run.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"--- {run.submit}/9_0_log.err, last lines", "no such module"]
    assert lines[2:] == [
        "error: attempt 1 ended with exit code 1; no rank has written an error about it",
        "[rank 0] step 1",
    ]
    assert logs.main([str(run.path), "--errors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [f"--- {run.submit}/7_0_log.err, last lines", "line 80"]
    assert lines[-2:] == [f"--- {run.submit}/9_0_log.err, last lines", "no such module"]


# --- files that grow


def test_each_line_is_read_complete_and_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = logs.Tail(path)
    assert list(tail.lines()) == []
    path.write_text("one\ntwo\nthr")
    assert list(tail.lines()) == ["one", "two"]
    assert list(tail.lines()) == []
    with open(path, "ab") as file:
        file.write(b"ee\nfour \xc3")
    assert list(tail.lines()) == ["three"]
    with open(path, "ab") as file:
        file.write(b"\xa4 \xff")
    assert list(tail.lines()) == []
    assert list(tail.lines(last=True)) == ["four ä �"]
    assert list(tail.lines(last=True)) == []


def test_truncated_and_replaced_files(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    tail = logs.Tail(path)
    assert list(tail.lines()) == ["one", "two"]
    os.truncate(path, 0)
    assert list(tail.lines()) == []
    path.write_text("new\n")
    assert list(tail.lines()) == ["new"]
    path.rename(tmp_path / "log.1")
    assert list(tail.lines()) == []
    path.write_text("rotated, and longer\n")
    assert list(tail.lines()) == ["rotated, and longer"]
    path.unlink()
    assert list(tail.lines()) == []


class Follower:
    """``wellread logs RUN --follow`` in another process."""

    def __init__(self, run: RunDirectory, root: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "launch", "logs", str(run.path), "--follow", *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=root, stdout=pipe, stderr=pipe, text=True)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def until(self, *lines: str) -> None:
        """Wait until the printed lines are `lines`."""
        wait_until(lambda: self.lines == [f"{line}\n" for line in lines], f"prints {lines}")

    def end(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and its stderr."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stderr
        assert self.process.stdout
        with self.process.stdout, self.process.stderr as stream:
            return code, stream.read()


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[tuple[RunDirectory, dict[str, Any]]]:
    """A run whose lock this process holds, and its manifest."""
    run = run_folder(tmp_path / "run", attempt())
    with run.lock():
        yield run, run.manifest()


def test_following_through_attempts(growing: tuple[RunDirectory, dict[str, Any]], root: Path) -> None:
    run, manifest = growing
    write(run, 1, 0, "step 1")
    follower = Follower(run, root)
    expected = ["[rank 0] step 1"]
    follower.until(*expected)
    with open(write(run, 1, 1, "a warning"), "a") as file:
        file.write("half a li")
        file.flush()
        expected.append("[rank 1] a warning")
        follower.until(*expected)
        file.write("ne\n")
        file.flush()
        expected.append("[rank 1] half a line")
        follower.until(*expected)
        file.write("its last words")
    fail(run, 1, 1, 5.0, "ValueError: no")
    manifest["attempts"] = [{"attempt": 1} | attempt(**FAILED), {"attempt": 2} | attempt()]
    write_json(run.manifest_file, manifest)
    expected += ["[rank 1] its last words", "error: rank 1 failed first: ValueError: no", "--- attempt 2"]
    follower.until(*expected)
    write(run, 2, 0, "step 2")
    follower.until(*expected, "[rank 0] step 2")
    follower.process.send_signal(signal.SIGINT)
    assert follower.end() == (130, "")


def test_following_ends_with_the_run(tmp_path: Path, root: Path) -> None:
    run = run_folder(tmp_path / "run", attempt(), saved=(0,))
    with run.lock():
        write(run, 1, 0, "step 1")
        follower = Follower(run, root, "--rank", "0")
        follower.until("step 1")
        with open(write(run, 1, 0), "a") as file:
            file.write("no end of line")
        about = run.manifest()
        about["attempts"][0] |= {"exit_code": 143, **ENDED}
        write_json(run.manifest_file, about)
    assert follower.end() == (0, f"{run.path}: stopped (by SIGTERM)\n")
    follower.until("step 1", "no end of line")


def test_following_a_job_from_the_queue_through_a_requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", jobs=(job(7),), saved=(0,))
    manifest = run.manifest()

    def begin(restart: int) -> None:
        for past in manifest["attempts"]:
            past |= {"exit_code": 140, **ENDED}
        manifest["attempts"].append(QUEUED | {"restart": restart})
        write_json(run.manifest_file, manifest)
        write(run, restart + 1, 0, f"step of {restart}")

    def end() -> JobState:
        manifest["attempts"][-1] |= {"exit_code": 1, **ENDED}
        write_json(run.manifest_file, manifest)
        return JobState(state="FAILED")

    story: Iterator[Callable[[], JobState]] = iter(
        [
            lambda: JobState(state="PENDING", reason="Priority"),
            lambda: begin(0) or JobState(state="RUNNING"),
            lambda: JobState(state="UNKNOWN"),  # SLURM briefly does not list a job that it requeues
            lambda: JobState(state="PENDING", restarts=1),
            lambda: begin(1) or JobState(state="RUNNING", restarts=1),
            end,
        ]
    )
    last = [end]

    def answer(job_id: str, folder: str) -> JobState:
        last.append(next(story, end))
        return last[-1]()

    monkeypatch.setattr(slurm_queue, "state", answer)
    monkeypatch.setattr(logs, "POLL", 0.01)
    monkeypatch.setattr(logs, "LOOK", 0.02)
    assert logs.main([str(run.path), "--follow"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "--- attempt 1",
        "[rank 0] step of 0",
        "--- attempt 2",
        "[rank 0] step of 1",
        "error: attempt 2 ended with exit code 1; no rank has written an error about it",
    ]
    states = [line.removeprefix(f"{run.path}: ") for line in printed.err.splitlines()]
    assert states == ["pending (Priority)", "running", "killed", "requeued", "running", "failed (exit code 1)"]
