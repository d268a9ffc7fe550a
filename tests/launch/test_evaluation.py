"""`wellread run eval`: its flags and its pool of processes. Jobs on SLURM: backends/slurm/test_jobs.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import Program, seem_saved
from support.waiting import PATIENCE, wait_until

from eval.registry import per_checkpoint
from launch import devices, evaluation
from launch.backends import local
from launch.cluster import ClusterFile
from launch.evaluation import Request
from launch.options import evaluation_flags
from wellread.errors import UserError
from wellread.results import read
from wellread.run import RunDirectory

LOCAL = ClusterFile(kind="local", name="local")


# --- flags


def test_flags_of_launch_and_of_the_evaluation() -> None:
    words = "membership runs/x --fan_out --array_parallelism 4 --steps 0,4 --cluster slurm --wait --bootstrap 200"
    parsed, flags = evaluation_flags(words.split())
    assert (parsed.command, parsed.run, parsed.cluster) == ("membership", "runs/x", "slurm")
    assert (parsed.fan_out, parsed.array_parallelism, parsed.wait) == (True, 4, True)
    assert (parsed.time, parsed.partition) == (None, None)
    assert flags == ["--steps", "0,4", "--bootstrap", "200"]


def test_defaults_of_flags() -> None:
    parsed, flags = evaluation_flags(["verify", "runs/x", "--time", "5", "--partition", "short"])
    assert (parsed.cluster, parsed.fan_out, parsed.array_parallelism, parsed.wait) == ("local", False, None, False)
    assert (parsed.time, parsed.partition, flags) == ("5", "short", [])


@pytest.mark.long
@pytest.mark.minutes(0.5)
def test_a_run_without_sealed_samples_is_evaluated_after_it(program: Program, corpora: Path, tmp_path: Path) -> None:
    sizes = ["--steps", 2, "--batch_size", 4, "--seq_len", 64, "--save_every", 2, "--ranks_per_node", 1]
    flags = [*sizes, "--holdout", 0, "--generations", 0, "--then", "eval", "--corpora", corpora]
    result = program("wellread", "run", "finetune", "--data", "sample", *flags, "--out", tmp_path / "run", check=True)
    assert "386 trainable, 0 sealed" in result.stdout
    printed = result.stdout + result.stderr
    assert "no sample is sealed, so only the losses of read and unread samples are measured" in printed
    assert "nan" not in printed
    groups = {each.group for each in read(tmp_path / "run" / "eval" / "membership.parquet")}
    assert groups & {"read", "unread", "sealed"} == {"read", "unread"}
    assert f"report: {tmp_path / 'run' / 'report' / 'index.html'}" in printed
    assert (tmp_path / "run" / "report" / "index.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "missing: EVALUATION, RUN; see wellread run eval --help"),
        ("membership runs/x --array_parallelism 0", "--array_parallelism 0: must be at least 1"),
        ("membership runs/x --array_parallelism -3", "--array_parallelism -3: must be at least 1"),
        ("membership runs/x --array_parallelism two", "--array_parallelism two: expected a whole number"),
        ("membership runs/x --fann_out", "unknown setting 'fann_out': did you mean --fan_out?"),
        ("membership runs/x --wai", "unknown setting 'wai': did you mean --wait?"),
    ],
)
def test_wrong_flags(words: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        evaluation_flags(words.split())
    assert str(error.value) == message


def test_no_flag_is_abbreviated() -> None:
    parsed, flags = evaluation_flags(["membership", "runs/x", "--fan", "--par"])
    assert (parsed.fan_out, parsed.partition, flags) == (False, None, ["--fan", "--par"])


# --- requests


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run with checkpoints at 0, 4 and 8."""
    directory = RunDirectory(tmp_path / "my run")
    seem_saved(directory, 0, 4, 8)
    monkeypatch.setattr(devices, "gpus", list)
    return directory


def test_arguments_of_python(run: RunDirectory) -> None:
    request = Request(command="membership", run=run, flags=("--seed", "3"), cluster=LOCAL)
    arguments = ("-m", "eval", "membership", str(run.path), "--seed", "3")
    assert request.arguments() == arguments
    assert request.parts() == [(*arguments, "--steps", str(step), "--scores_only") for step in (0, 4, 8)]


@pytest.mark.parametrize("command", ["verify", "read", "report"])
def test_evaluations_without_parts_are_not_fanned_out(command: str, run: RunDirectory) -> None:
    with pytest.raises(UserError) as error:
        evaluation.run(Request(command=command, run=run, cluster=LOCAL, fan_out=True))
    names = ", ".join(per_checkpoint())
    assert str(error.value) == f"--fan_out: eval {command} cannot be split by checkpoint; it works with {names}"


@pytest.mark.parametrize("flags", [("--steps", "4"), ("--steps=4",), ("--seed", "1", "--steps", "4")])
def test_every_checkpoint_is_fanned_out(flags: tuple[str, ...], run: RunDirectory) -> None:
    with pytest.raises(UserError) as error:
        evaluation.run(Request(command="membership", run=run, flags=flags, cluster=LOCAL, fan_out=True))
    assert str(error.value) == "--fan_out: evaluates all checkpoints; leave it out to evaluate only those of --steps"


def test_evaluations_do_not_go_to_a_hostfile(run: RunDirectory) -> None:
    with pytest.raises(UserError) as error:
        evaluation.run(Request(command="membership", run=run, cluster=ClusterFile(kind="hostfile", name="mine")))
    assert str(error.value) == "--cluster mine: not possible for evaluations; choose local or slurm"


def test_a_wrong_flag_is_refused_before_any_part_begins(run: RunDirectory) -> None:
    with pytest.raises(UserError) as error:
        Request(command="membership", run=run, flags=("--bootstraps", "9"), cluster=LOCAL).parts()
    assert str(error.value) == "unknown setting 'bootstraps': did you mean --bootstrap?"


def test_a_bug_in_an_evaluation_is_not_bad_input(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Traceback …' >&2; echo \"KeyError: 'step'\" >&2; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RuntimeError, match=r"ended with exit code 1:\nTraceback(.|\n)*KeyError: 'step'"):
        Request(command="membership", run=run, cluster=LOCAL).parts()


def test_nothing_to_evaluate(tmp_path: Path) -> None:
    RunDirectory(tmp_path).config_file.touch()
    with pytest.raises(UserError) as error:
        evaluation.run(Request(command="membership", run=RunDirectory(tmp_path), cluster=LOCAL, fan_out=True))
    assert str(error.value) == f"{tmp_path}: no checkpoint yet; wait until the run has saved one"


def test_the_comparison_follows_the_parts(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(Request, "parts", lambda self: parts(log, ["pass"] * 3))
    monkeypatch.setattr(Request, "arguments", lambda self: parts(log, ["import sys; sys.exit(5)"])[0])
    assert evaluation.run(Request(command="membership", run=run, cluster=LOCAL, fan_out=True)) == 5
    assert len(events(log)) == 8
    assert evaluation.run(Request(command="membership", run=run, cluster=LOCAL)) == 5
    assert len(events(log)) == 10


# --- the pool

PART = """
import json, os, sys, time
def note(what):
    with open(sys.argv[1], "a") as log:
        share = {"threads": os.environ.get("OMP_NUM_THREADS"), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
        log.write(json.dumps({"what": what, "time": time.monotonic(), "part": sys.argv[2]} | share) + "\\n")
note("begin")
try:
    exec(sys.argv[3])
finally:
    note("end")
"""


def parts(log: Path, texts: list[str]) -> list[tuple[str, ...]]:
    """Programs that write when they start and end."""
    return [("-c", PART, str(log), str(number), text) for number, text in enumerate(texts)]


def events(log: Path) -> list[dict[str, str]]:
    return sorted((json.loads(line) for line in log.read_text().splitlines()), key=lambda event: event["time"])


def most_at_a_time(log: Path) -> int:
    now = most = 0
    for event in events(log):
        now += 1 if event["what"] == "begin" else -1
        most = max(most, now)
    assert now == 0
    return most


def test_the_pool_limits_how_many_parts_run(run: RunDirectory, tmp_path: Path) -> None:
    for parallelism in (1, 2):
        log = tmp_path / f"log-{parallelism}"
        # Each part waits until as many run as may, so it does not matter how long they take to start.
        enough = f"(text := open(sys.argv[1]).read()).count('begin') in (text.count('end') + {parallelism}, 4)"
        assert (
            local.pool(parts(log, [f"while not ({enough}): time.sleep(0.02)\ntime.sleep(0.2)"] * 4), parallelism) == 0
        )
        assert sorted(event["part"] for event in events(log) if event["what"] == "end") == ["0", "1", "2", "3"]
        assert most_at_a_time(log) == parallelism


def test_parts_share_cores_and_gpus(run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr(devices, "gpus", lambda: ["1", "GPU-8f2a"])
    log = tmp_path / "log"
    assert local.pool(parts(log, ["pass"] * 5), 5) == 0
    begins = {event["part"]: event for event in events(log) if event["what"] == "begin"}
    assert sorted(event["gpu"] for event in begins.values()) == ["1"] * 3 + ["GPU-8f2a"] * 2
    assert {event["threads"] for event in begins.values()} == {"2"}


def test_a_part_gets_a_gpu_that_no_other_part_uses(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ["4", "7"])
    log = tmp_path / "log"
    # The first part ends last, so the other parts follow each other on the other GPU.
    texts = ["while open(sys.argv[1]).read().count('end') < 3: time.sleep(0.02)", *["pass"] * 3]
    assert local.pool(parts(log, texts), 2) == 0
    used = {event["part"]: event["gpu"] for event in events(log) if event["what"] == "begin"}
    assert {used[part] for part in "123"} == {"4", "7"} - {used["0"]}


def test_a_failure_ends_all_parts_and_is_returned(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    # The second part fails once the first has begun. No part would end by itself before this test times out.
    second = "\nwhile open(sys.argv[1]).read().count('begin') < 2: time.sleep(0.02)\nsys.exit(3)"
    texts = ["time.sleep(3600)", second, "time.sleep(3600)", "time.sleep(3600)"]
    monkeypatch.setattr(Request, "parts", lambda self: parts(log, texts))
    monkeypatch.setattr(Request, "arguments", lambda self: ("-c", f"open({str(tmp_path / 'whole')!r}, 'w')"))
    assert evaluation.run(Request(command="membership", run=run, cluster=LOCAL, fan_out=True, parallelism=2)) == 3
    assert {event["part"] for event in events(log)} <= {"0", "1", "2"}  # the third part may have started
    assert {event["part"] for event in events(log)} >= {"0", "1"}
    assert not (tmp_path / "whole").exists()


def test_a_killed_part_has_the_exit_code_of_a_shell(run: RunDirectory, tmp_path: Path) -> None:
    texts = ["pass", "import signal; os.kill(os.getpid(), signal.SIGKILL)"]
    assert local.pool(parts(tmp_path / "log", texts), 1) == 128 + signal.SIGKILL


def test_ctrl_c_leaves_no_part_behind(tmp_path: Path, root: Path) -> None:
    log = tmp_path / "log"
    text = f"from launch.backends import local; local.pool({parts(log, ['time.sleep(3600)'] * 3)!r}, 2)"
    with subprocess.Popen([sys.executable, "-c", text], cwd=root, stderr=subprocess.PIPE) as pool:
        wait_until(lambda: log.exists() and len(events(log)) == 2, "two parts begin", pool)
        pool.send_signal(signal.SIGINT)
        pool.communicate(timeout=PATIENCE)
    assert pool.returncode
    assert "2" not in {event["part"] for event in events(log)}


# --- a complete evaluation


@pytest.mark.long
@pytest.mark.slow
def test_a_pool_has_the_results_of_one_process(program: Program, copied_run: RunDirectory, tmp_path: Path) -> None:
    """Two processes over the checkpoints and the comparison after them give the same table, bit for bit."""
    import pyarrow.parquet as pq

    alone = RunDirectory(tmp_path / "alone" / "run")
    shutil.copytree(copied_run.path, alone.path)
    threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2))}
    flags = ["--bootstrap", 200, "--max_samples", 60]
    result = program(
        "launch",
        "run",
        "eval",
        "membership",
        copied_run.path,
        "--fan_out",
        "--array_parallelism",
        2,
        *flags,
        check=True,
    )
    assert f"all results: {copied_run.eval / 'membership.parquet'}\n" in result.stdout
    program("eval", "membership", alone.path, *flags, env=threads, check=True)
    table, expected = (pq.read_table(run.eval / "membership.parquet") for run in (copied_run, alone))
    assert table.equals(expected)
    assert set(table.column("step").to_pylist()) == {0, 4, 8, 12}
    scores = [sorted(path.name for path in (run.eval / "tokens").glob("*.parquet")) for run in (copied_run, alone)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 8  # as they are, and in lower case

    refused = program("launch", "run", "eval", "verify", copied_run.path, "--fan_out")
    names = ", ".join(per_checkpoint())
    line = f"error: --fan_out: eval verify cannot be split by checkpoint; it works with {names}\n"
    assert (refused.returncode, refused.stderr) == (2, line)
