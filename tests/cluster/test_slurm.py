"""Runs on the real development cluster, two nodes with their own network, and everything that can go wrong there.

``eval "$(make -s slurm-up)"`` starts the cluster. After each test both nodes are in service and no job is left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.programs import ROOT, Program, missing
from support.slurm_cluster import EXACT, Launched, call, node, restore, until

from bench.memory import SHAPES, make_long_rows, make_model
from wellread.record.reader import Record
from wellread.run import RunDirectory

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SMALL = "--data sample --batch_size 8 --seq_len 64 --dtype fp32 --nodes 2 --ranks_per_node 1"
PRETRAIN = (
    "--size 32x2x4 --data stories:400 --vocab 512 --seq_len 48 --batch_size 8 --dtype fp32 --steps 12 --generations 0"
)
FIRST_PORT, PORTS = 20_000, 20_000


@pytest.fixture(scope="module", autouse=True)
def cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    if "SLURM_CONF" not in os.environ:
        missing('no SLURM cluster: start one with eval "$(make -s slurm-up)"')
    if any("limited" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("limited")
    yield
    for name in ("n1", "n2"):
        restore(name)


@pytest.fixture
def start(program: Program, small_model: Path, corpora: Path, tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Launch a run of the small model on the cluster. It is cancelled at the end of the test."""
    runs: list[Launched] = []

    def launch(*flags: object, cluster: Path | str = "slurm", name: str = "run", wait: bool = False) -> Launched:
        fixed = [*SMALL.split(), "--model", small_model, "--corpora", corpora]
        run = Launched(program, tmp_path / name, [*fixed, *flags], cluster)
        runs.append(run)
        run.result = run.launch(*["--wait"] * wait)
        return run

    yield launch
    for run in runs:
        for job in json.loads((run.path / "submit" / "jobs.json").read_text()):
            call("scancel", job["id"], check=False)


# ---- the same run, on two nodes


@pytest.fixture(scope="module")
def pair(program: Program, tmp_path_factory: pytest.TempPathFactory, corpora: Path) -> Iterator[Launched]:
    """`tiny_run` on two nodes, with zero3 and CPU offload. Its port is in use, and its name needs quotes."""
    next_job = int(re.search(r"NEXT_JOB_ID\s*=\s*(\d+)", call("scontrol", "show", "config")).group(1))  # type: ignore[union-attr]
    port = FIRST_PORT + next_job * 31 % PORTS
    bind = f"s = socket.socket(); s.bind(('', {port})); s.listen(); print(flush=True)"
    code = f"import socket, time; {bind}; time.sleep(600)"
    holder = subprocess.Popen(
        ["nsenter", "--net=/run/netns/wellread-n1", sys.executable, "-c", code], stdout=subprocess.PIPE
    )
    assert holder.stdout
    holder.stdout.readline()
    out = tmp_path_factory.mktemp("pair") / 'it\'s $(touch broken) a "run"; #1'
    flags = "--steps 12 --save_every 4 --keep_states 4 --nodes 2 --ranks_per_node 1 --strategy zero3-offload --time 20"
    run = Launched(program, out, [*flags.split(), "--corpora", corpora], "slurm")
    try:
        run.planned = json.loads(program("launch", "plan", "finetune", *run.flags, "--json", check=True).stdout)
        run.result = run.launch("--wait")
        yield run
    finally:
        holder.kill()
        holder.communicate()


def test_two_nodes_read_what_one_machine_reads(pair: Launched, tiny_run: RunDirectory) -> None:
    columns = ["loss", *EXACT]
    local, remote = Record.open(tiny_run.record).table(columns), Record.open(pair.path / "record").table(columns)
    assert remote.select(EXACT).equals(local.select(EXACT))
    assert (
        json.loads((pair.path / "record/head.json").read_text())["head"]
        == json.loads((tiny_run.record / "head.json").read_text())["head"]
    )
    losses = [np.array(table.column("loss")) for table in (local, remote)]
    assert np.abs(losses[0] - losses[1]).max() < 0.05  # bf16, rounded differently by the two engines
    (attempt,) = pair.attempts()
    assert attempt["hosts"] == ["n1", "n2"]
    assert (attempt["ranks"], attempt["nodes"], attempt["exit_code"]) == (2, 2, 0)
    pair.verified()


def test_the_submitted_script_is_the_planned_one(pair: Launched) -> None:
    script = pair.path / "submit" / f"{pair.job}_submission.sh"
    assert script.read_text() == pair.planned["sbatch"]
    assert f"JobName={pair.path.name}" in call("scontrol", "show", "job", pair.job)
    assert not list(ROOT.glob("broken")) + list(pair.path.parent.rglob("broken"))


def test_a_port_in_use_is_skipped(pair: Launched) -> None:
    meeting = json.loads((pair.path / "submit" / f"{pair.job}-0.meeting.json").read_text())
    assert meeting["port"] == FIRST_PORT + int(pair.job) * 31 % PORTS + 1


def test_the_follower_shows_states_and_steps(pair: Launched) -> None:
    result = pair.result
    assert "step 12/12" in result.stdout
    assert f"job {pair.job}: completed on n[1-2]" in result.stderr


def test_the_same_command_again_says_finished(pair: Launched) -> None:
    result = pair.launch()
    assert "is finished: step 12 of 12; nothing to do" in result.stdout
    assert len(json.loads((pair.path / "submit" / "jobs.json").read_text())) == 1
    assert pair.status()["state"] == "finished"


# ---- stopped by the queue


@pytest.mark.long
@pytest.mark.minutes(1)
def test_pending_running_requeued_done(start: Callable[..., Launched], tmp_path: Path) -> None:
    """USR2 requeues the job; killing the follower changes nothing; each batch is in the record once."""
    later = tmp_path / "later.yaml"
    later.write_text("kind: slurm\ntime: 30\nsbatch:\n  begin: now+600\n")
    run = start("--steps", 3000, "--save_every", 1000, cluster=later)
    jobs_file = run.path / "submit" / "jobs.json"
    noted = json.loads(jobs_file.read_text())
    jobs_file.rename(run.path / "submit" / "intent.json")  # as if the launcher had been killed before it noted the job
    (run.path / "submit" / "intent.json").write_text(json.dumps(noted[0] | {"id": ""}))
    assert run.status()["state"] == "pending"
    (run.path / "submit" / "intent.json").unlink()
    jobs_file.write_text(json.dumps(noted))
    assert run.status()["state"] == "pending"
    again = run.launch()
    assert "is already pending; nothing to submit" in again.stdout
    follower = subprocess.Popen(
        [sys.executable, "-m", "launch", "run", "finetune", *map(str, run.flags), "--wait"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout
    run.hurry()
    assert any("step" in line for line in follower.stdout)
    follower.kill()
    follower.communicate()
    run.await_log(1, "step  200/")
    status = run.status()
    assert (status["state"], status["steps"]) == ("running", 3000)
    assert run.job in status["where"]
    assert "is already running; nothing to submit" in run.launch().stdout
    other = run.launch("--steps", 3001, check=False)
    assert (other.returncode, "steps is 3000, requested 3001" in other.stderr) == (2, True)
    call("scancel", "--signal=USR2", run.job)
    until("the stop", lambda: "stopped by SIGUSR2" in run.log(1))
    saved = int(re.search(r"stopped by SIGUSR2 at step (\d+), saved", run.log(1)).group(1))  # type: ignore[union-attr]
    until("queued again", lambda: run.state() == "PENDING")
    status = run.status()
    assert (status["state"], status["last_checkpoint"]) == ("requeued", saved)
    assert f"resuming from step-{saved:08d}" in run.requeued(2)
    assert run.end() == "COMPLETED"
    assert [attempt["exit_code"] for attempt in run.attempts()] == [128 + signal.SIGUSR2, 0]
    assert run.status()["state"] == "finished"
    rows = run.rows()
    assert [row["batch_id"] for row in rows] == [batch for batch in range(3000) for _ in range(8)]
    run.verified()


@pytest.fixture(scope="module")
def limited(
    program: Program, small_model: Path, tmp_path_factory: pytest.TempPathFactory, corpora: Path
) -> Iterator[Launched]:
    """A run without end, in a job with a time limit of two minutes. It starts before the first test of this file."""
    folder = tmp_path_factory.mktemp("limited")
    file = folder / "two-minutes.yaml"
    file.write_text("kind: slurm\ntime: '2:00'\nsignal_delay: 20\nsbatch: {nodelist: n1}\n")
    flags = "--data sample --batch_size 8 --seq_len 64 --dtype fp32 --nodes 1 --ranks_per_node 2 --steps 1000000"
    more = ["--save_every", 500_000, "--log_every", 1000, "--model", small_model, "--corpora", corpora]
    run = Launched(program, folder / "run", [*flags.split(), *more], file)
    run.launch()

    def be_nice() -> None:
        """Let the other tests have the cores."""
        for _ in range(300):
            for process in run.ranks():
                process.nice(19)
            time.sleep(0.5)

    threading.Thread(target=be_nice, daemon=True).start()
    yield run
    call("scancel", run.job, check=False)


@pytest.mark.long
@pytest.mark.minutes(1)
def test_a_pretraining_reads_on_two_nodes_what_one_rank_reads(program: Program, corpora: Path, tmp_path: Path) -> None:
    local, remote = tmp_path / "here", tmp_path / "there"
    common = f"{PRETRAIN} --corpora {corpora}".split()
    program("launch", "run", "pretrain", *common, "--out", local, check=True)
    nodes = ["--cluster", "slurm", "--nodes", 2, "--ranks_per_node", 1, "--strategy", "zero1", "--time", 10, "--wait"]
    result = program("launch", "run", "pretrain", *common, "--out", remote, *nodes, check=True)
    assert "completed on n[1-2]" in result.stderr
    (job,) = json.loads((remote / "submit" / "jobs.json").read_text())
    assert job["kind"] == "pretrain"
    records = [Record.open(out / "record") for out in (local, remote)]
    assert records[0].table(EXACT).equals(records[1].table(EXACT))
    losses = [record.table().column("loss").to_numpy() for record in records]
    assert np.abs(losses[0] - losses[1]).max() < 2e-4
    program("eval", "verify", remote, check=True)


# ---- failures


def test_refused_by_slurm(program: Program, small_model: Path, corpora: Path, tmp_path: Path) -> None:
    flags = [*SMALL.split(), "--model", small_model, "--corpora", corpora, "--out", tmp_path / "run", "--steps", 3]
    result = program("launch", "run", "finetune", *flags, "--cluster", "slurm", "--partition", "nowhere")
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "SLURM rejected the job (invalid partition specified: nowhere); choose another --partition" in line
    assert [path.name for path in (tmp_path / "run" / "submit").iterdir()] == ["jobs.lock"]


@pytest.mark.long
@pytest.mark.minutes(1)
def test_a_job_that_fails_brings_back_its_first_error(
    start: Callable[..., Launched], program: Program, corpora: Path, tmp_path: Path
) -> None:
    """The corpus contains a token that is not in the vocabulary."""
    damaged = tmp_path / "corpora"
    shutil.copytree(corpora, damaged)
    for tokens in damaged.glob("*/tokens.bin"):
        np.memmap(tokens, dtype="<u2", mode="r+")[:] = 60_000
    with pytest.raises(pytest.fail.Exception, match="out of range"):
        start("--steps", 30, "--corpora", damaged, wait=True)
    run = Launched(program, tmp_path / "run", [], "slurm")
    assert run.state() == "FAILED"
    (attempt,) = run.attempts()
    status = run.status()
    assert (status["state"], attempt["exit_code"]) == ("failed", 1)
    assert "index out of range" in status["first_error"]["error"]
    logs = program("launch", "logs", run.path, check=True)
    assert "index out of range" in logs.stdout.splitlines()[0] + logs.stderr


@pytest.mark.long
@pytest.mark.minutes(1)
def test_killed_processes_cost_only_unsaved_steps(start: Callable[..., Launched], program: Program) -> None:
    """Kill -9 a rank, then SLURM's own process on a node: requeued and resumed both times. Cancel saves and ends."""
    run = start("--steps", 100_000, "--save_every", 50)
    run.await_log(1, "saved step-00000100")
    run.ranks()[1].kill()
    assert "resuming from step-" in run.requeued(2)
    assert "ended by signal 9 (SIGKILL)" in (run.path / "log/attempt-001-rank-1.error.json").read_text()
    first = int(re.search(r"resuming from step-(\d+)", run.log(2)).group(1))  # type: ignore[union-attr]
    assert first >= 100
    run.await_log(2, f"saved step-{first + 100:08d}")
    (task,) = [parent for parent in run.ranks()[1].parents() if "submitit" in " ".join(parent.cmdline())][:1]
    daemon = task.parent()
    assert daemon
    assert "slurmstepd" in daemon.cmdline()[0]
    daemon.kill()
    until("the end of the step's ranks", lambda: len(run.attempts()) > 2 or not run.ranks())
    assert "resuming from step-" in run.requeued(3)
    run.await_log(3, "\nstep")
    result = program("launch", "cancel", run.path, check=True)
    assert "saved" in result.stdout + result.stderr
    assert run.end() in ("FAILED", "CANCELLED")
    status = run.status()
    assert status["state"] == "stopped"
    assert status["step"] == status["last_checkpoint"] == len(run.rows()) // 8
    run.verified()


@pytest.fixture
def disconnect() -> Iterator[Callable[[str], None]]:
    """Cut the network of a node. At the end of the test, also of one that fails, the nodes are in service again."""
    names: list[str] = []

    def cut_network(name: str) -> None:
        names.append(name)
        node("cut", name)

    yield cut_network
    for name in sorted(set(names)):
        restore(name)


@pytest.mark.long
@pytest.mark.minutes(1)
def test_a_node_disconnected_for_a_minute_and_for_good(
    start: Callable[..., Launched], program: Program, disconnect: Callable[[str], None]
) -> None:
    run = start("--steps", 100_000, "--save_every", 50)
    run.await_log(1, "saved step-00000050")
    disconnect("n2")
    began = time.monotonic()
    until("the job is taken from the lost node", lambda: run.state() != "RUNNING")
    time.sleep(max(0, 60 - (time.monotonic() - began)))
    restore("n2")
    # SLURM delays a requeued job by two minutes: until then a node that comes back can end the processes of the last
    # start. It looks for them every ten seconds and kills what it finds, a new start included.
    until("the end of the old processes on n2", lambda: not run.steps() or run.log(2))
    time.sleep(12)
    assert "resuming from step-" in run.requeued(2)
    first = int(re.search(r"resuming from step-(\d+)", run.log(2)).group(1))  # type: ignore[union-attr]
    run.await_log(2, f"saved step-{(first // 50 + 1) * 50:08d}")  # the save at its end may be at any step
    disconnect("n2")
    until("the job is taken from the lost node", lambda: run.state() == "PENDING")
    result = program("launch", "cancel", run.path, check=True)
    assert "canceled job" in result.stdout
    saved = max(int(path.name[5:]) for path in (run.path / "checkpoints").glob("step-*"))
    flags = ["--nodes", 1, "--ranks_per_node", 2]
    run.launch(*flags)
    assert f"resuming from step-{saved:08d}" in run.await_log(3, "resuming from")
    run.await_log(3, f"saved step-{(saved // 50 + 1) * 50:08d}")
    assert run.attempts()[-1]["hosts"] == ["n1"]
    program("launch", "cancel", run.path, check=True)
    run.verified()


@pytest.mark.long
@pytest.mark.minutes(1)
def test_an_out_of_memory_run_falls_back_to_another_strategy(
    program: Program, corpora: Path, tmp_path: Path, memory_group: Callable[..., Path]
) -> None:
    """The ranks of each node get a real memory limit: the kernel kills DDP, and the next strategy fits."""
    model, prolog, file = tmp_path / "model", tmp_path / "prolog.sh", tmp_path / "limited.yaml"
    make_model(model, SHAPES["120M"])
    make_long_rows(tmp_path / "rows.jsonl")
    limit = int(2.6 * 2**30)
    groups = [memory_group(limit, f"-{name}") for name in ("n1", "n2")]
    group = str(groups[0]).removesuffix("n1")
    prolog.write_text(f"#!/bin/sh\necho $PPID > {group}$SLURMD_NODENAME/cgroup.procs\n")
    prolog.chmod(0o755)
    file.write_text(f"kind: slurm\ntime: '20'\nmemory: 2.6\nsrun: [--task-prolog={prolog}]\n")
    flags = "--nodes 2 --batch_size 4 --micro_batch_size 2 --seq_len 128 --steps 2 --save_every 2 --strategy ddp"
    command = [*flags.split(), "--model", model, "--data", tmp_path / "rows.jsonl", "--corpora", corpora]
    run = Launched(program, tmp_path / "run", command, file)
    assert "--strategy ddp: does not fit" in run.launch(check=False).stderr
    run.launch("--force")
    try:
        run.requeued(2)
        assert run.end() == "COMPLETED"
    finally:
        call("scancel", run.job, check=False)
    before, after = run.attempts()
    assert "the OOM killer killed" in before["out_of_memory"]["shortage"]["evidence"]
    assert (before["strategy"], after["strategy"], after["exit_code"]) == ("ddp", "zero1", 0)
    assert before["out_of_memory"]["shortage"]["limit"] == pytest.approx(limit, abs=4096)  # whole pages
    assert "host memory ran out under ddp in attempt 1" in run.log(2)
    run.verified()


# ---- several jobs


@pytest.mark.long
@pytest.mark.minutes(1)
def test_eight_evaluations_two_at_a_time(program: Program, small_model: Path, corpora: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = f"--data sample --batch_size 8 --seq_len 64 --dtype fp32 --steps 14 --save_every 2 --out {out}".split()
    program("launch", "run", "finetune", *flags, "--model", small_model, "--corpora", corpora, check=True)
    more = ["--cluster", "slurm", "--fan_out", "--array_parallelism", 2, "--bootstrap", 100, "--wait"]
    program("launch", "run", "eval", "membership", out, *more, check=True)
    parts, last = json.loads((out / "submit" / "jobs.json").read_text())
    assert parts["tasks"] == 8
    accounting = call("sacct", "-X", "-n", "-P", "-j", parts["id"], "-o", "State,Start,End")
    times = [line.split("|") for line in accounting.split()]
    assert [state for state, _, _ in times] == ["COMPLETED"] * 8
    assert max(sum(start <= moment < end for _, start, end in times) for _, moment, _ in times) <= 2
    assert "COMPLETED" in call("sacct", "-X", "-n", "-P", "-j", last["id"], "-o", "State")
    assert len(list((out / "eval" / "tokens").glob("*.parquet"))) == 16
    assert (out / "report" / "index.html").exists()


@pytest.mark.long
@pytest.mark.minutes(1)
def test_cancelling_a_pending_run_cancels_its_evaluation(
    start: Callable[..., Launched], program: Program, tmp_path: Path
) -> None:
    later = tmp_path / "later.yaml"
    later.write_text("kind: slurm\nsbatch: {begin: now+600}\n")
    run = start("--steps", 5, "--then", "eval", cluster=later)
    first, second = json.loads((run.path / "submit" / "jobs.json").read_text())
    assert f"afterok:{first['id']}" in call("scontrol", "show", "job", second["id"])
    program("launch", "cancel", run.path, check=True)
    for job in (first, second):
        assert "JobState=CANCELLED" in call("scontrol", "show", "job", job["id"])
    assert "nothing to cancel" in program("launch", "cancel", run.path, check=True).stdout


@pytest.mark.long
@pytest.mark.minutes(1)
def test_a_time_limit_is_a_pause(limited: Launched, program: Program) -> None:
    """After two minutes: saved within the remaining twenty seconds, requeued, resumed, no batch read twice."""
    until("the end of its time", lambda: "stopped by SIGUSR2" in limited.log(1))
    assert "resuming from step-" in limited.requeued(2)
    limited.await_log(2, "\nstep")
    program("launch", "cancel", limited.path, check=True)
    *earlier, last = limited.attempts()  # more than two if the other tests took longer than its time limit
    assert {attempt["exit_code"] for attempt in earlier} == {128 + signal.SIGUSR2}
    assert last["exit_code"] in (128 + signal.SIGTERM, 128 + signal.SIGUSR2)
    batches = [row["batch_id"] for row in limited.rows()][::8]
    assert batches == list(range(len(batches)))
    limited.verified()


def test_a_warning_about_more_nodes_than_exist(start: Callable[..., Launched]) -> None:
    run = start("--steps", 5, "--nodes", 8)
    result = run.result
    assert f"warning: job {run.job} will not start (PartitionNodeLimit)" in result.stderr
    assert "lower --nodes" in result.stderr
