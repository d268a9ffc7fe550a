"""The status of runs: states from files, the lock and SLURM's answers; the table, the details, the JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.programs import Program
from support.run_folders import ENDED, HELD, QUEUED, STEPS, attempt, job, progress, run_folder

from launch import state, status
from launch.backends.jobs import JobState
from launch.backends.slurm import queue as slurm_queue
from wellread.checkpoint import list_checkpoints
from wellread.errors import UserError
from wellread.files import write_json
from wellread.planning.plan import Plan
from wellread.run import RunDirectory
from wellread.train.watch import monitor
from wellread.train.watch.monitor import Progress, StepStats
from wellread.train.watch.throughput import Cost


def looked(run: RunDirectory) -> state.Status:
    return state.look(run, state.Scheduler())


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, JobState | str]:
    """SLURM's answers by job id; a text is the reason why there is no answer."""
    answers: dict[str, JobState | str] = {}

    def answer(job_id: str, folder: str | None = None) -> JobState:
        assert folder == "/code"
        job_state = answers.get(job_id, JobState(state="UNKNOWN"))
        if isinstance(job_state, str):
            raise RuntimeError(job_state)
        return job_state

    monkeypatch.setattr(slurm_queue, "state", answer)
    return answers


# --- states, without SLURM


@pytest.mark.parametrize(
    ("attempts", "saved", "words"),
    [
        ([], (), "prepared"),
        ([attempt(exit_code=0, **ENDED)], (0, 20, STEPS), "finished"),
        ([attempt(exit_code=1, **ENDED)], (0, STEPS), "finished"),  # the last checkpoint counts, not a later failure
        ([attempt(exit_code=143, **ENDED)], (0, 20), "stopped (by SIGTERM)"),
        ([attempt(exit_code=130, **ENDED)], (0, 20), "stopped (by SIGINT)"),
        ([attempt(exit_code=140, **ENDED)], (0, 20), "stopped (by SIGUSR2)"),
        ([attempt(exit_code=129, **ENDED)], (0, 20), "stopped (by SIGHUP)"),
        ([attempt(exit_code=1, **ENDED)], (0,), "failed (exit code 1)"),
        ([attempt(exit_code=137, **ENDED)], (), "failed (exit code 137, SIGKILL)"),
        ([attempt(exit_code=1, **ENDED), attempt()], (0,), "killed"),
        ([attempt(), attempt(exit_code=143, **ENDED)], (0,), "stopped (by SIGTERM)"),
    ],
)
def test_states_of_inactive_runs(
    attempts: list[dict[str, Any]], saved: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    about = looked(run_folder(tmp_path / "run", *attempts, saved=saved))
    assert about.in_words == words
    assert about.attempts == len(attempts)
    assert (about.last_checkpoint, about.step) == ((saved[-1],) * 2 if saved else (None, None))
    assert about.seconds_left is None


def test_an_incomplete_checkpoint_does_not_count(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", attempt(), saved=(20,))
    (run.checkpoints / f"step-{STEPS:08d}").mkdir()
    (run.checkpoints / f".step-{STEPS:08d}.tmp").mkdir()
    (run.checkpoints / f".step-{STEPS:08d}.tmp" / "checkpoint.json").touch()
    assert looked(run).last_checkpoint == 20


def test_a_run_with_a_held_lock_is_running(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", attempt(exit_code=1, **ENDED), attempt(), saved=(0, 20), report=progress(2, 30))
    with run.lock():
        about = looked(run)
        assert (about.state, about.reason) == ("running", "")
        assert about.where == f"pid {os.getpid()} on {os.uname().nodename}"
        assert (about.step, about.steps, about.tokens, about.loss) == (30, STEPS, 30_000, 2.5)
        assert (about.tokens_per_second, about.seconds_left) == (2000.0, 5.0)  # 10 steps of half a second
    about = looked(run)
    assert (about.state, about.seconds_left, about.step) == ("killed", None, 30)


def test_progress_of_an_older_attempt_is_ignored(tmp_path: Path) -> None:
    run = run_folder(
        tmp_path / "run", attempt(exit_code=143, **ENDED), attempt(), saved=(0, 20), report=progress(1, 25)
    )
    with run.lock():
        about = looked(run)
    assert (about.state, about.step, about.tokens, about.tokens_per_second) == ("running", 20, None, None)


def test_a_launch_that_is_preparing(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", attempt(exit_code=143, **ENDED), saved=(20,), report=progress(1, 20))
    with run.lock():
        assert (looked(run).in_words, looked(run).seconds_left) == ("running (preparing)", None)
    empty = RunDirectory(tmp_path / "new")
    with pytest.raises(UserError, match="not a run directory"):
        state.open_run(empty.path)
    with empty.lock():
        assert looked(state.open_run(empty.path)).in_words == "running (preparing)"


def test_ranks_that_hang_are_reported(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", attempt(), report=progress(1, 5, ago=3600))
    with run.lock():
        assert looked(run).in_words == "running (no step for 1:00:00)"
    run = run_folder(tmp_path / "slow", attempt(), report=progress(1, 5, ago=3600, seconds_per_step=600))
    with run.lock():
        assert looked(run).in_words == "running"


DAMAGE = ["", "{", "[]", "5", "null", "[1]", '[{"id": 7}]', '[{"id": "x; y", "kind": "finetune"}]', '[{"id": "7"}]',
          '{"kind": 1}', "[" * 100_000, '{"time": "x"}', '{"time": NaN, "rank": "x"}', "\xff", "9" * 5000]  # fmt: skip
FILES = ("manifest.json", "submit/jobs.json", "submit/intent.json", "log/attempt-001-rank-0.error.json", "lock",
         "log/progress.json", "checkpoints/step-00000020/checkpoint.json", "config.yaml")  # fmt: skip


def table(folder: Path) -> list[str]:
    """The lines of ``wellread status``; it must be possible to write them as JSON, too."""
    statuses = [looked(run) for run in status._runs(folder)]
    status._json([dataclasses.asdict(each) for each in statuses])
    return status._table(statuses, str(folder)).splitlines()


def absurd(**values: object) -> str:
    return json.dumps(progress(1, 30) | values)


REPORTS = [absurd(seconds_per_step=value) for value in (float("nan"), float("inf"), 1e300, -1)]
REPORTS += [absurd(time=float("-inf")), absurd(loss=None), absurd(tokens=None), absurd(steps=10**30)]


@pytest.mark.parametrize("name", FILES)
def test_no_damaged_file_of_a_run_breaks_the_status_of_others(
    name: str, tmp_path: Path, queue: dict[str, JobState | str]
) -> None:
    run_folder(tmp_path / "good", attempt(exit_code=1, **ENDED), saved=(0, 20))
    bad = run_folder(tmp_path / "bad", attempt(exit_code=1, **ENDED), saved=(0, 20), jobs=(job(7),)).path
    for text in [*DAMAGE, *REPORTS * (name == "log/progress.json")]:
        (bad / name).write_text(text)
        lines = table(tmp_path)
        assert any("good" in line and "failed (exit code 1)" in line for line in lines), (text, lines)
        assert any("bad" in line for line in lines)
        with suppress(UserError):  # one line; anything else fails this test
            run = RunDirectory(bad)
            status._page(status.details(run, looked(run), state.Scheduler()))


@pytest.mark.parametrize("name", ["config.yaml", "lock", "manifest.json", "submit", "log", "checkpoints"])
def test_no_odd_file_of_a_run_breaks_the_status_of_others(name: str, tmp_path: Path) -> None:
    run_folder(tmp_path / "good", attempt(exit_code=1, **ENDED), saved=(0, 20))
    path = run_folder(tmp_path / "bad", attempt(exit_code=1, **ENDED), saved=(0, 20), jobs=(job(7),)).path / name
    path.rename(tmp_path / "before") if path.exists() else None
    for make in (path.mkdir, lambda: path.symlink_to(path), lambda: path.symlink_to("/dev/null"), path.touch):
        make()
        assert any("good" in line and "failed (exit code 1)" in line for line in table(tmp_path))
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": {}}'])
def test_a_damaged_manifest_does_not_hide_other_runs(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "runs" / "good", saved=(STEPS,))
    run_folder(tmp_path / "runs" / "bad").manifest_file.write_text(text)
    assert status.main(["--runs", str(tmp_path / "runs"), "--json"]) == 0
    states = {Path(about["run"]).name: about["state"] for about in json.loads(capsys.readouterr().out)}
    assert states == {"good": "finished", "bad": "unknown"}
    assert status.main([str(tmp_path / "runs" / "bad")]) == 0
    assert "unknown (unreadable: " in capsys.readouterr().out


WRONG_PROGRESS = [
    '{"attempt": 1}',
    '{"attempt": 1, "step": "x", "steps": 9, "time": 1, "seconds_per_step": 1}',
    '{"attempt": 1, "step": 3, "steps": null, "time": [], "seconds_per_step": {}, "tokens": "x", "loss": []}',
]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "[" * 100_000, *WRONG_PROGRESS])
def test_a_damaged_progress_file_is_ignored(text: str, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", attempt(), saved=(0,))
    (run.log / "progress.json").write_text(text)
    assert (looked(run).state, looked(run).step) == ("killed", 0)


# --- states, with SLURM


@pytest.mark.parametrize(
    ("attempts", "now", "words", "where"),
    [
        ([], JobState(state="PENDING", reason="Priority"), "pending (Priority)", "slurm job 7"),
        ([], JobState(state="RUNNING", nodes="n[1-2]"), "running", "slurm job 7 on n[1-2]"),
        ([], JobState(state="CONFIGURING", nodes="n1"), "running (configuring)", "slurm job 7 on n1"),
        ([QUEUED], JobState(state="PENDING", restarts=1, reason="BeginTime"), "requeued (BeginTime)", "slurm job 7"),
        ([QUEUED | ENDED | {"exit_code": 140}], JobState(state="REQUEUED", restarts=1), "requeued", "slurm job 7"),
        ([attempt(exit_code=1, **ENDED)], JobState(state="PENDING"), "pending", "slurm job 7"),
        ([], JobState(state="FAILED"), "failed (job 7 failed before its ranks started)", ""),
        ([], JobState(state="TIMEOUT"), "failed (job 7 timeout before its ranks started)", ""),
        ([], JobState(state="CANCELLED"), "stopped (job 7 was canceled)", ""),
        ([], JobState(state="UNKNOWN"), "unknown (job 7 is no longer known to SLURM and has no attempt)", ""),
        ([QUEUED], JobState(state="NODE_FAIL"), "killed (job 7 node_fail)", "slurm job 7"),
        ([QUEUED], JobState(state="UNKNOWN"), "killed", "slurm job 7"),
        ([QUEUED | ENDED | {"exit_code": 1}], JobState(state="FAILED"), "failed (exit code 1)", "slurm job 7"),
        ([QUEUED | ENDED | {"exit_code": 143}], JobState(state="FAILED"), "stopped (by SIGTERM)", "slurm job 7"),
        # a local attempt that is newer than the job
        ([attempt(started="2026-11-21T07:00:00+0000", exit_code=1, **ENDED)], JobState(state="CANCELLED"),
         "failed (exit code 1)", "local on here"),
    ],
)  # fmt: skip
def test_states_of_jobs(
    attempts: list[dict[str, Any]],
    now: JobState,
    words: str,
    where: str,
    queue: dict[str, JobState | str],
    tmp_path: Path,
) -> None:
    queue["7"] = now
    about = looked(run_folder(tmp_path / "run", *attempts, jobs=(job(3), job(7), job(8, "eval")), saved=(0,)))
    assert (about.in_words, about.where) == (words, where)


def test_the_newest_job_counts_and_evaluations_do_not(queue: dict[str, JobState | str], tmp_path: Path) -> None:
    queue |= {"3": JobState(state="RUNNING"), "8": JobState(state="RUNNING")}
    queue["7"] = JobState(state="PENDING")
    assert looked(run_folder(tmp_path / "run", jobs=(job(3), job(7), job(8, "eval")))).state == "pending"


def test_numbers_from_before_a_requeue_are_not_used(queue: dict[str, JobState | str], tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", QUEUED, jobs=(job(7),), saved=(0,), report=progress(1, 9))
    for restarts, seconds in ((0, 15.5), (1, None)):  # the job runs again, but its next attempt has not started
        queue["7"] = JobState(state="RUNNING", restarts=restarts)
        assert (looked(run).state, looked(run).seconds_left) == ("running", seconds)


def test_without_an_answer_of_slurm_the_state_is_unknown(queue: dict[str, JobState | str], tmp_path: Path) -> None:
    queue["7"] = "no answer from SLURM about job 7: Connection refused"
    run = run_folder(tmp_path / "run", QUEUED, jobs=(job(7),), saved=(0,))
    assert looked(run).in_words == "unknown (no answer from SLURM)"
    with run.lock():  # on a shared filesystem the lock of rank 0 is visible
        assert looked(run).state == "running"
    finished = run_folder(tmp_path / "finished", QUEUED, jobs=(job(7),), saved=(STEPS,))
    assert looked(finished).state == "finished"


def test_slurm_gets_one_query_if_it_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = []

    def silent(job_id: str, folder: str | None = None) -> JobState:
        requests.append(job_id)
        raise RuntimeError("no answer from SLURM: no route")

    monkeypatch.setattr(slurm_queue, "state", silent)
    for name in ("a", "b", "c"):
        run_folder(tmp_path / name, QUEUED, jobs=(job(7), job(8, "eval")))
    assert status.main(["--runs", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("unknown (no answer from SLURM)") == 3
    assert printed.err == "no answer from SLURM: no route\n"
    assert requests == ["7"]
    assert status.main([str(tmp_path / "a")]) == 0
    assert "job 8  " in (page := capsys.readouterr().out)
    assert page.count("state unknown: no answer from SLURM: no route") == 2


# --- what is printed


@pytest.fixture
def runs(queue: dict[str, JobState | str], tmp_path: Path) -> Path:
    """A folder with runs and other files."""
    queue["7"] = JobState(state="PENDING", restarts=2, reason="Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved")
    queue["8"] = JobState(state="PENDING", reason="Dependency")
    folder = tmp_path / "runs"
    failed = run_folder(folder / "failed", attempt(exit_code=1, **ENDED), saved=(0, 8), report=progress(1, 9))
    for rank, moment in ((0, 20.0), (1, 10.0)):
        error = {"time": moment, "rank": rank, "error": f"ValueError: rank {rank}'s", "trace": "…"}
        write_json(failed.log / f"attempt-001-rank-{rank}.error.json", error)
    run_folder(folder / "queued [b]", QUEUED | ENDED | {"exit_code": 140}, jobs=(job(7), job(8, "eval")), saved=(16,))
    for number, name in enumerate(("queued [b]", "failed")):
        os.utime(folder / name / "config.yaml", (1000 - number, 1000 - number))
    (folder / "no run").mkdir()
    (folder / "file").touch()
    return folder


def test_the_table_is_plain_and_aligned(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(["--runs", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()).replace(str(runs), "RUNS") for line in lines] == [
        "RUN STATE STEP RATE LEFT SAVED ATTEMPTS WHERE",
        "RUNS/queued [b] requeued (Nodes_required_for_job_are_D…) 16/40 - - 16 1 slurm job 7",
        "RUNS/failed failed (exit code 1) 9/40 2,000 tokens/s - 8 1 local on here",
    ]
    for name, *cells in (("STATE", "requeued (", "failed ("), ("SAVED", "16  ", "8  "), ("WHERE", "slurm", "local on")):
        assert [line.rindex(cell) for line, cell in zip(lines[1:], cells, strict=True)] == [lines[0].index(name)] * 2
    assert "\x1b" not in "".join(lines)


def test_details_of_one_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([str(runs / "failed")]) == 0
    assert capsys.readouterr().out.replace(str(runs), "RUNS") == (
        "run          RUNS/failed\n"
        "state        failed (exit code 1); run the same command to resume from step 8\n"
        "first error  rank 1: ValueError: rank 1's\n"
        "step         9/40, 9,000 tokens read, loss 2.5000\n"
        "rate         2,000 tokens/s, 0.5 s/step\n"
        "saved        8\n"
        "where        local on here\n"
        "attempt 1    2026-11-21 06:49:12 to 2026-11-21 06:49:23, exit code 1, local, 2 ranks on 1 node, ddp\n"
    )
    assert status.main([str(runs / "queued [b]")]) == 0
    assert capsys.readouterr().out.replace(str(runs), "RUNS").splitlines()[5:] == [
        "attempt 1  2026-11-21 06:49:12 to 2026-11-21 06:49:23, exit code 140, SIGUSR2, slurm job 7, "
        "2 ranks on 1 node, ddp",
        "job 7      finetune, submitted 2026-11-21 06:49:11, pending, "
        "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved, 2 restarts",
        "job 8      eval, submitted 2026-11-21 06:49:11, pending, Dependency",
    ]


def test_status_as_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(["--runs", str(runs), "--json"]) == 0
    queued, failed = json.loads(capsys.readouterr().out)
    assert set(queued) == {field.name for field in dataclasses.fields(state.Status)}
    assert (queued["state"], queued["last_checkpoint"], queued["attempts"]) == ("requeued", 16, 1)
    assert (failed["step"], failed["tokens_per_second"]) == (9, 2000.0)
    assert status.main([str(runs / "failed"), "--json"]) == 0
    (about,) = json.loads(capsys.readouterr().out)
    assert about["first_error"] == {"rank": 1, "error": "ValueError: rank 1's", "time": 10.0}
    assert [past["exit_code"] for past in about["history"]] == [1]
    assert status.main([str(runs / "queued [b]"), "--json"]) == 0
    (about,) = json.loads(capsys.readouterr().out)
    assert [(job["id"], job["kind"], job["state"], job["restarts"]) for job in about["jobs"]] == [
        ("7", "finetune", "PENDING", 2),
        ("8", "eval", "PENDING", 0),
    ]


def test_colors_only_on_a_terminal(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    status.main(["--runs", str(runs)])
    printed = capsys.readouterr().out
    assert "\x1b[31mfailed (exit code 1)" in printed
    assert "queued [b]" in printed  # not interpreted as a style


@pytest.mark.parametrize("columns", [30, 60, 80, 200])
def test_names_of_runs_never_wrap(
    columns: int, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    (runs / "failed").rename(runs / "stories-15m-of-november-2")
    monkeypatch.chdir(runs.parent)
    assert status.main(["--runs", runs.name]) == 0
    printed = capsys.readouterr().out
    assert f"{runs.name}/stories-15m-of-november-2" in printed
    assert f"{runs.name}/queued [b]" in printed
    assert ("attempts" in printed) == (columns == 200)


def test_a_folder_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(["--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    assert status.main(["--runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["TMP/nowhere"], "TMP/nowhere: not a run directory (it has no config.yaml); see the folder runs/ for yours"),
        (["TMP"], "TMP: not a run directory (it has no config.yaml); see the folder runs/ for yours"),
        (["--runs", "TMP/nowhere"], "--runs TMP/nowhere: no such folder; give the folder of your runs"),
        (["--jason"], "unknown setting 'jason': did you mean --json?"),
    ],
)
def test_bad_input(arguments: list[str], message: str, in_process: Program, tmp_path: Path) -> None:
    result = in_process("launch", "status", *(argument.replace("TMP", str(tmp_path)) for argument in arguments))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.replace(str(tmp_path), "TMP") == f"error: {message}\n"


def test_it_answers_without_torch(tiny_run: RunDirectory, root: Path) -> None:
    code = (
        "import sys; from launch import status; assert status.main(sys.argv[1:]) == 0; "
        "assert not {'torch', 'transformers', 'pyarrow', 'submitit'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tiny_run.path)], cwd=root, capture_output=True, check=True)
    assert b"finished" in result.stdout


def test_the_lock_of_another_process_is_seen(tmp_path: Path, root: Path) -> None:
    run = run_folder(tmp_path / "run", attempt())
    command = [sys.executable, "-c", HELD, str(run.path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        about = looked(run)
        holder.kill()
    assert (about.state, about.where) == ("running", f"pid {holder.pid} on {os.uname().nodename}")
    assert looked(run).state == "killed"


# --- the progress file


def stats(step: int, seconds: float = 0.5) -> StepStats:
    cost = Cost(tokens=100, targets=50, squares=1000, padded=120, host_bytes=0, gpu_bytes=0)
    return StepStats(step=step, loss=2.0, lr=1e-3, grad_norm=1.0, cost=cost, seconds=seconds)


def test_a_real_run_writes_its_progress(tiny_run: RunDirectory) -> None:
    progress = json.loads((tiny_run.log / "progress.json").read_text())
    (last,) = [checkpoint for checkpoint in list_checkpoints(tiny_run.checkpoints) if checkpoint.step == 12]
    assert {name: progress[name] for name in ("attempt", "step", "steps", "last_saved", "tokens")} == {
        "attempt": 1,
        "step": 12,
        "steps": 12,
        "last_saved": 12,
        "tokens": last.tokens,
    }
    assert progress["tokens_per_second"] == pytest.approx(
        last.tokens / 12 / progress["seconds_per_step"]
    )  # of the last 20 steps, so of all
    assert [path.name for path in tiny_run.log.glob(".*")] == []
    about = looked(tiny_run)
    assert (about.state, about.step, about.tokens) == ("finished", 12, last.tokens)


def test_progress_is_written_first_at_once_then_every_second(
    copied_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(monitor.time, "monotonic", lambda: now)
    monkeypatch.setenv("WELLREAD_ATTEMPT", "3")
    path = copied_run.log / "progress.json"
    plan = Plan.open(copied_run.plan_file)
    at_8 = {checkpoint.step: checkpoint.tokens for checkpoint in list_checkpoints(copied_run.checkpoints)}[8]

    def written() -> dict[str, Any]:
        progress: dict[str, Any] = json.loads(path.read_text())
        return {name: progress[name] for name in ("attempt", "step", "tokens", "last_saved")}

    progress = Progress(copied_run, plan, start=8)
    before = path.read_text()
    progress.write()
    assert path.read_text() == before  # no numbers yet
    progress.step(stats(9), [stats(9)])
    assert written() == {"attempt": 3, "step": 9, "tokens": at_8 + 100, "last_saved": 8}
    now += 0.9
    progress.step(stats(10), [stats(9), stats(10)])
    assert written()["step"] == 9
    now += 0.2
    progress.saved = 10
    progress.step(stats(11), [stats(9), stats(10), stats(11, seconds=2.0)])
    assert written() == {"attempt": 3, "step": 11, "tokens": at_8 + 300, "last_saved": 10}
    assert json.loads(path.read_text())["seconds_per_step"] == 1.0
    assert json.loads(path.read_text())["tokens_per_second"] == 100.0
    progress.step(stats(12), [stats(12)])
    progress.write()
    assert written()["step"] == 12


def test_an_unwritable_progress_file_does_not_end_a_run(copied_run: RunDirectory) -> None:
    progress = Progress(copied_run, Plan.open(copied_run.plan_file), start=0)
    (copied_run.log / "progress.json").unlink()
    (copied_run.log / "progress.json").mkdir()
    (copied_run.log / "progress.json" / "in the way").touch()
    progress.step(stats(1), [stats(1)])
