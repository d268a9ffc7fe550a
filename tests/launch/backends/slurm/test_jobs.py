"""What is submitted with sbatch and when, and what is written about a job.

No SLURM is needed: a fake `sbatch` stores what is submitted.
"""

from __future__ import annotations

import os
import pickle
import shlex
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.programs import Program, seem_saved
from support.sbatch_flags import PLAIN, flags

from launch import evaluation
from launch.backends.jobs import ACTIVE
from launch.backends.slurm import jobs as slurm
from launch.backends.slurm import rejections
from launch.backends.slurm.task import CommandTask, RankTask
from launch.cluster import ClusterFile
from launch.evaluation import Request
from launch.state import refuse_queued
from wellread.errors import UserError
from wellread.files import write_json
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.run import RunDirectory

SBATCH = """#!/bin/sh
cp "$1" "$KEPT/$(date +%s%N).sh"
echo "Submitted batch job $((100 + $(ls "$KEPT" | wc -l)))"
"""
REFUSING = """#!/bin/sh
echo "sbatch: error: invalid partition specified: nope" >&2
echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
exit 1
"""


class Scheduler:
    """Fake commands of SLURM that store their input."""

    def __init__(self, folder: Path) -> None:
        self._bin, self._kept = folder / "slurm" / "bin", folder / "slurm" / "kept"
        self._bin.mkdir(parents=True)
        self._kept.mkdir()
        self.env = {"PATH": f"{self._bin}:{os.environ['PATH']}", "KEPT": str(self._kept)}
        self.answers("sbatch", SBATCH)
        self.answers("srun", "#!/bin/sh\nexit 1\n")
        self.forgets()

    def answers(self, command: str, script: str) -> None:
        (self._bin / command).write_text(script)
        (self._bin / command).chmod(0o755)

    def forgets(self) -> None:
        """Let SLURM know no job."""
        self.answers("scontrol", '#!/bin/sh\necho "slurm_load_jobs error: Invalid job id specified" >&2\nexit 1\n')
        self.answers("sacct", "#!/bin/sh\nexit 0\n")

    def has(self, folder: Path, state: str) -> None:
        """Let every job have this state and start in `folder`."""
        about = f"JobName=x UserId=a(1) GroupId=a(1) JobState={state} Reason=None Command=x WorkDir={folder} Power="
        line = f"JobId=101 {about}"
        self.answers("scontrol", f"#!/bin/sh\necho {shlex.quote(line)}\n")

    def submitted(self) -> list[str]:
        return [path.read_text() for path in sorted(self._kept.iterdir())]


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    fake = Scheduler(tmp_path)
    for name, value in fake.env.items():
        monkeypatch.setenv(name, value)
    return fake


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    path = tmp_path / "runs" / "it's $(mine)"
    path.mkdir(parents=True)
    return RunDirectory(path)


TASK = RankTask(run="/r", arguments=("-m", "x"), variables={"A": "b"}, requeues=3, limit=60)


def test_a_plan_shows_the_submitted_script(run: RunDirectory, scheduler: Scheduler) -> None:
    cluster = ClusterFile(
        kind="slurm", python="/opt/my venv/bin/python", gres="gpu:2", memory=1.5, cpus_per_rank=3, exclusive=True,
        setup=("module load x",), srun=("--mpi=none",), sbatch={"comment": "a b"}, requeues=3, signal_delay=7,
    )  # fmt: skip
    options = slurm.parameters(cluster, name=run.name, nodes=2, ranks_per_node=2, code=run.code, after="17")
    assert slurm.submit(cluster, run, [TASK], options, "finetune") == "101"
    assert scheduler.submitted() == [slurm.sbatch_text(cluster, run, options)]
    assert flags(scheduler.submitted()[0])["--dependency"] == "afterok:17"
    (job,) = slurm.jobs_of(run)
    assert job.pop("submitted").startswith("20")
    assert job == {"id": "101", "kind": "finetune", "tasks": 1, "folder": str(run.code)}
    with open(run.submit / "101_submitted.pkl", "rb") as file:
        delayed = pickle.load(file)
    assert (delayed.function, delayed._timeout_min, delayed._timeout_countdown) == (TASK, 1440, 3)
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in run.submit.iterdir()}
    assert modes == {".pkl": 0o600, **dict.fromkeys((".sh", ".json", ".lock"), 0o666 & ~umask())}
    assert stat.S_IMODE(run.submit.stat().st_mode) == 0o777 & ~umask()
    assert not [path for path in run.submit.iterdir() if path.is_symlink()]


def umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_an_array_limits_how_many_tasks_run_at_a_time(run: RunDirectory, scheduler: Scheduler) -> None:
    cluster = ClusterFile(kind="slurm", python="/opt/my venv/bin/python")
    options = slurm.parameters(cluster, name="parts", nodes=1, ranks_per_node=1, code=run.code) | {
        "array_parallelism": 2
    }
    tasks = [CommandTask(("-c", str(number)), {}) for number in range(5)]
    assert slurm.submit(cluster, run, tasks, options, "eval") == "101"
    (text,) = scheduler.submitted()
    assert flags(text)["--array"] == "0-4%2"
    assert flags(text)["--output"] == f"{run.submit}/%A_%a_0_log.out"
    assert "'/opt/my venv/bin/python' -u -m submitit" in text
    assert slurm.jobs_of(run)[0]["tasks"] == 5
    for number in range(5):
        with open(run.submit / f"101_{number}_submitted.pkl", "rb") as file:
            assert pickle.load(file).function == tasks[number]


def test_jobs_are_listed_in_order_of_submission(run: RunDirectory, scheduler: Scheduler) -> None:
    assert slurm.jobs_of(run) == []
    for kind in ("finetune", "eval"):
        options = slurm.parameters(PLAIN, name="x", nodes=1, ranks_per_node=1, code=run.code)
        slurm.submit(PLAIN, run, [TASK], options, kind)
    assert [(job["id"], job["kind"]) for job in slurm.jobs_of(run)] == [("101", "finetune"), ("102", "eval")]
    assert slurm.active(run) == []
    scheduler.has(run.code, "PENDING")
    assert [(job["id"], state.state) for job, state in slurm.active(run)] == [("101", "PENDING"), ("102", "PENDING")]
    assert [job["id"] for job, _ in slurm.active(run, "eval")] == ["102"]
    scheduler.has(run.code.with_name("another"), "RUNNING")  # ids have started at 1 again: this is another user's job
    assert slurm.active(run) == []
    scheduler.has(run.code, "COMPLETED")
    assert slurm.active(run) == []


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_rejected_job_leaves_no_files(tasks: int, run: RunDirectory, scheduler: Scheduler) -> None:
    options = slurm.parameters(PLAIN, name="x", nodes=1, ranks_per_node=1, code=run.code)
    slurm.submit(PLAIN, run, [TASK], options, "finetune")
    before, noted = sorted(run.submit.iterdir()), slurm.jobs_of(run)
    scheduler.answers("sbatch", REFUSING)
    with pytest.raises(UserError) as error:
        slurm.submit(PLAIN, run, [TASK] * tasks, options, "finetune")
    assert str(error.value) == (
        "--cluster slurm: SLURM rejected the job (invalid partition specified: nope); choose another --partition, or "
        "correct partition: in the cluster file; sinfo lists partitions"
    )
    assert sorted(run.submit.iterdir()) == before
    assert slurm.jobs_of(run) == noted


def test_a_rejection_removes_nothing_of_other_jobs(run: RunDirectory, scheduler: Scheduler) -> None:
    """While SLURM rejects a job, a running one writes its log and result; and a dead launcher has left a note."""
    options = slurm.parameters(PLAIN, name="x", nodes=1, ranks_per_node=1, code=run.code)
    slurm.submit(PLAIN, run, [TASK], options, "finetune")
    (noted,) = slurm.jobs_of(run)
    write_json(run.submit / slurm.INTENT, noted | {"id": "", "kind": "eval"})
    (run.submit / "31_submission.sh").touch()
    write = f"cd {shlex.quote(str(run.submit))}\ntouch 101_0_log.out 101_0_result.pkl\n"
    scheduler.answers("sbatch", REFUSING.replace("#!/bin/sh\n", f"#!/bin/sh\n{write}"))
    with pytest.raises(UserError, match="SLURM rejected the job"):
        slurm.submit(PLAIN, run, [TASK] * 3, options, "finetune")
    names = {path.name for path in run.submit.iterdir()}
    assert names == {
        "101_submission.sh", "101_submitted.pkl", "101_0_log.out", "101_0_result.pkl", "31_submission.sh", "jobs.json",
        "jobs.lock",
    }  # fmt: skip
    assert slurm.jobs_of(run) == [noted, noted | {"id": "31", "kind": "eval"}]


def test_jobs_that_are_submitted_at_the_same_time_are_all_listed(run: RunDirectory, scheduler: Scheduler) -> None:
    """Threads, which wait for each other as processes do; every second job is rejected."""
    accepting = SBATCH.removeprefix("#!/bin/sh\n")
    refusing = REFUSING.removeprefix("#!/bin/sh\n")
    refuses = 'grep -q job-name=bad "$1"'
    scheduler.answers("sbatch", f"#!/bin/sh\nsleep 0.1\nif {refuses}; then {refusing}fi\n{accepting}")

    def submit(number: int) -> str:
        name = "bad" if number % 2 else "good"
        options = slurm.parameters(PLAIN, name=name, nodes=1, ranks_per_node=1, code=run.code)
        try:
            return slurm.submit(PLAIN, run, [TASK] * (1 + number % 3), options, f"kind-{number}")
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(submit, range(6)))
    assert all("SLURM rejected the job" in error for error in results[1::2])
    kinds = dict(zip(results[::2], ("kind-0", "kind-2", "kind-4"), strict=True))
    assert {job["id"]: job["kind"] for job in slurm.jobs_of(run)} == kinds
    assert sorted(kinds) == ["101", "102", "103"]
    n_tasks = {job["id"]: job["tasks"] for job in slurm.jobs_of(run)}
    assert [n_tasks[job_id] for job_id in results[::2]] == [1, 3, 2]
    assert len(list(run.submit.glob("*_submission.sh"))) == 3
    assert len(list(run.submit.glob("*_submitted.pkl"))) == 6
    assert {path.name for path in run.submit.iterdir() if path.suffix not in (".sh", ".pkl")} == {
        "jobs.json", "jobs.lock"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (
            "Requested node configuration is not available",
            "Requested node configuration is not available",
            "lower --nod",
        ),
        ("Requested time limit is invalid (missing or exceeds some limit)", "Requested time limit", "lower --time"),
        ("Invalid qos specification", "Invalid qos", "correct qos:"),
        ("Unable to contact slurm controller (connect failure)", "Unable to contact", "try again later"),
        ("Some new error", "Some new error", "compare the cluster file with sinfo"),
    ],
)
def test_a_rejection_is_one_line_with_a_remedy(error: str, reason: str, remedy: str) -> None:
    message = rejections.rejection(PLAIN, f"sbatch: error: Batch job submission failed: {error}\n")
    assert message.startswith(f"--cluster slurm: SLURM rejected the job ({reason}")
    assert f"); {remedy}" in message
    assert "\n" not in message


def test_without_sbatch_submitting_is_refused(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UserError) as error:
        slurm.submit(PLAIN, run, [TASK], {}, "finetune")
    assert str(error.value) == (
        "--cluster slurm: sbatch not found; log in to a node of the cluster, or use --cluster local"
    )
    assert not run.submit.exists()


def test_a_run_is_submitted_once(program, corpora: Path, scheduler: Scheduler, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """With `--then eval`: the run, and its evaluation after it; the same command again submits neither."""
    out = tmp_path / "runs" / "mine"
    command = ["run", "finetune", "--cluster", "slurm", "--nodes", 2, "--steps", 4, "--then", "eval", "--out", out]
    secrets = {
        "HF_TOKEN": "hf_" + "x7" * 16,
        "WANDB_API_KEY": "0f" * 20,
        "AWS_SECRET_ACCESS_KEY": "wJalr/" + "Kb+" * 11,
    }

    def launch() -> str:
        return str(program("launch", *command, "--corpora", corpora, env=scheduler.env | secrets, check=True).stdout)

    output = launch()
    assert f"submitted {out} as job 101: 4 steps of 16 samples on 2 cpu ranks, ddp, bf16\n" in output
    assert output.endswith("submitted its evaluation as job 102, after job 101\n")
    first, second = map(flags, scheduler.submitted())
    assert (first["--job-name"], first["--nodes"], first["--chdir"]) == ("mine", "2", f"{out}/code")
    assert (second["--job-name"], second["--nodes"], second["--chdir"]) == ("mine eval", "1", f"{out}/code")
    assert (second["--dependency"], second["--kill-on-invalid-dep"]) == ("afterok:101", "yes")
    assert "--dependency" not in first
    assert (out / "code" / "wellread" / "train" / "rank.py").is_file()
    with open(out / "submit" / "101_submitted.pkl", "rb") as file:
        task = pickle.load(file).function
    assert (task.run, task.arguments, task.limit) == (str(out), ("-m", "finetune", "train", str(out)), 86_400)
    assert task.variables["WELLREAD_CODE"] == f"{out}/code"

    holding = [
        str(path)
        for path in [*out.rglob("*"), *(tmp_path / "slurm" / "kept").iterdir()]
        if path.is_file() and any(value.encode() in path.read_bytes() for value in secrets.values())
    ]
    assert holding == []

    scheduler.has(out / "code", "PENDING")
    assert launch() == f"{out}: job 101 is already pending; nothing to submit\n"
    assert len(scheduler.submitted()) == 2

    write_json(out / "submit" / "jobs.json", [job for job in slurm.jobs_of(RunDirectory(out)) if job["id"] == "101"])
    added = launch()  # the run was submitted without its evaluation
    assert added == f"{out}: job 101 is already pending\nsubmitted its evaluation as job 103, after job 101\n"
    third = flags(scheduler.submitted()[-1])
    assert (third["--dependency"], third["--chdir"]) == ("afterok:101", f"{out}/code")

    scheduler.forgets()  # both have ended before the last step: the run is submitted again
    assert f"submitted {out} as job 104: " in launch()
    assert [job["id"] for job in slurm.jobs_of(RunDirectory(out))] == ["101", "103", "104", "105"]


SILENT = '#!/bin/sh\necho "slurm_load_jobs error: Connection timed out" >&2\nexit 1\n'
NO_ANSWER = "no answer from SLURM about job 101: slurm_load_jobs error: Connection timed out"


def test_a_controller_that_gives_no_answer(
    program: Program, corpora: Path, scheduler: Scheduler, tmp_path: Path
) -> None:
    """A run is submitted together with its evaluation; what needs an answer ends in one line."""
    out = tmp_path / "runs" / "mine"
    command = ["launch", "run", "finetune", "--cluster", "slurm", "--steps", 4, "--then", "eval", "--out", out]
    scheduler.answers("scontrol", SILENT)
    first = program(*command, "--corpora", corpora, env=scheduler.env, check=True)
    assert first.stdout.endswith("submitted its evaluation as job 102, after job 101\n")
    for again in ([*command, "--corpora", corpora], ["launch", "run", "eval", "membership", out, "--cluster", "slurm"]):
        result = program(*again, env=scheduler.env)
        assert result.returncode == 1
        reason = NO_ANSWER if again[2] == "finetune" else NO_ANSWER.replace("101", "102")
        assert result.stderr == f"error: {reason}; repeat the command when the queue answers\n"
    assert len(scheduler.submitted()) == 2


def test_a_queued_run_is_not_launched_in_another_way(
    program: Program, corpora: Path, scheduler: Scheduler, tmp_path: Path
) -> None:
    """Its job would start with the plan and the code of the other launch."""
    run = RunDirectory(tmp_path / "runs" / "mine")
    command = ["launch", "run", "finetune", "--steps", 4, "--out", run.path, "--corpora", corpora, "--cluster"]
    program(*command, "slurm", "--nodes", 2, env=scheduler.env, check=True)
    hosts = tmp_path / "hosts.yaml"
    hosts.write_text(f"kind: hostfile\nhostfile: {tmp_path}/hosts.txt\ndevice: cpu\n")
    (tmp_path / "hosts.txt").write_text("localhost slots=1\n")
    scheduler.has(run.code, "PENDING")
    before = run.plan_file.read_bytes()
    for cluster in ("local", hosts):
        result = program(*command, cluster, env=scheduler.env)
        assert result.returncode == 2
        assert result.stderr.endswith(
            f"error: {run.path}: job 101 is pending; run `wellread cancel {run.path}` first, or choose another --out\n"
        )
    assert run.plan_file.read_bytes() == before


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "COMPLETED", "FAILED"])
def test_only_an_active_training_job_prevents_a_launch(run: RunDirectory, scheduler: Scheduler, state: str) -> None:
    """The check is repeated under the lock: another launch may have submitted a job since the first one."""
    run.submit.mkdir()
    noted = {"kind": "finetune", "submitted": "2026-01-02T03:04:05+0000", "tasks": 1, "folder": "/code"}
    write_json(run.submit / "jobs.json", [noted | {"id": "7"}, noted | {"id": "8", "kind": "eval"}])
    scheduler.has(Path("/code"), state)
    if state in ACTIVE:
        with pytest.raises(UserError, match=f"job 7 is {state.lower()}; run `wellread cancel "):
            refuse_queued(run)
    else:
        refuse_queued(run)
    write_json(run.submit / "jobs.json", [noted | {"id": "8", "kind": "eval"}])
    refuse_queued(run)


def test_a_run_can_be_launched_outside_its_cluster(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    run.submit.mkdir()
    noted = {"id": "7", "kind": "finetune", "submitted": "2026-01-02T03:04:05+0000", "tasks": 1, "folder": "/code"}
    write_json(run.submit / "jobs.json", [noted])
    refuse_queued(run)
    assert capsys.readouterr().err == (
        "warning: no answer from SLURM about job 7: scontrol is not installed here; if it is still queued there, "
        "cancel it first\n"
    )


def evaluation_request(run: RunDirectory, steps: int, **settings: Any) -> Request:
    """An evaluation of a run with `steps` checkpoints."""
    plan = Plan(
        model="m", machine=Machine(cluster="local", nodes=1, ranks_per_node=2, device="cpu"),
        counts=Counts(samples=9, trainable=8, sealed=1, exact=True), batch_size=2, micro_batch_size=1, accumulation=1,
        dtype="fp32", engine="torch", strategy="ddp", strategy_reason="a test", seq_len=8, steps=4 * steps, epochs=1.0,
        warmup_steps=1, save_steps=(),
    )  # fmt: skip
    write_json(run.plan_file, plan.as_dict())
    seem_saved(run, *range(0, 4 * steps, 4))
    cluster = ClusterFile(kind="slurm", python="/opt/venv/bin/python", cpus_per_rank=3)
    return Request(command="membership", run=run, cluster=cluster, **settings)


def tasks_of(run: RunDirectory, job: str, parts: int = 0) -> list[CommandTask]:
    names = [f"{job}_{number}" for number in range(parts)] if parts else [job]
    return [pickle.loads((run.submit / f"{name}_submitted.pkl").read_bytes()).function for name in names]


def test_an_evaluation_is_an_array_and_a_comparison_after_it(
    run: RunDirectory, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # otherwise the variable of the tests would be used
    request = evaluation_request(run, steps=8, fan_out=True, parallelism=2, flags=("--max_samples", "50"))
    assert evaluation.run(request) == 0
    assert capsys.readouterr().out == (
        "submitted 8 evaluations as job 101\nsubmitted eval membership as job 102, after job 101\n"
    )
    first, second = map(flags, scheduler.submitted())
    assert (first["--array"], first["--job-name"], first["--nodes"]) == ("0-7%2", f"{run.name} eval parts", "1")
    assert (second["--dependency"], second["--kill-on-invalid-dep"]) == ("afterok:101", "yes")
    assert (second["--job-name"], second["--ntasks-per-node"]) == (f"{run.name} eval", "1")
    assert "--array" not in second
    comparison = ("-m", "eval", "membership", str(run.path), "--max_samples", "50")
    parts = tasks_of(run, "101", parts=8)
    assert [task.arguments for task in parts] == [
        (*comparison, "--steps", str(step), "--scores_only") for step in range(0, 32, 4)
    ]
    assert [task.arguments for task in tasks_of(run, "102")] == [comparison]
    assert parts[0].variables["OMP_NUM_THREADS"] == "3"
    assert [(job["id"], job["kind"], job["tasks"]) for job in slurm.jobs_of(run)] == [
        ("101", "eval", 8), ("102", "eval", 1),
    ]  # fmt: skip


def test_all_parts_run_at_once_by_default(
    run: RunDirectory, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluation.run(evaluation_request(run, steps=3, fan_out=True)) == 0
    assert flags(scheduler.submitted()[0])["--array"] == "0-2%3"


def test_one_checkpoint_needs_no_array(
    run: RunDirectory, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluation.run(evaluation_request(run, steps=1, fan_out=True, parallelism=4)) == 0
    assert ["--array" in flags(text) for text in scheduler.submitted()] == [False, False]
    assert tasks_of(run, "101")[0].arguments[-3:] == ("--steps", "0", "--scores_only")


def test_an_evaluation_without_parts(
    run: RunDirectory, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluation.run(evaluation_request(run, steps=3)) == 0
    assert capsys.readouterr().out == "submitted eval membership as job 101\n"
    assert "--dependency" not in flags(scheduler.submitted()[0])
    assert len(slurm.jobs_of(run)) == 1


def test_an_evaluation_in_a_path_with_special_characters_is_refused(
    tmp_path: Path, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "100%")
    run.path.mkdir()
    with pytest.raises(UserError, match="and control characters have a special meaning"):
        evaluation.run(evaluation_request(run, steps=3))
    assert scheduler.submitted() == []


def test_a_rejected_run_is_one_line_and_exit_code_2(
    program, corpora: Path, scheduler: Scheduler, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    scheduler.answers("sbatch", REFUSING)
    flags = ["--cluster", "slurm", "--partition", "nope", "--steps", 4, "--out", tmp_path / "run", "--corpora", corpora]
    result = program("launch", "run", "finetune", *flags, env=scheduler.env)
    assert result.returncode == 2
    assert result.stderr.endswith(
        "clusters/slurm.yaml: SLURM rejected the job (invalid partition specified: nope); choose another --partition, "
        "or correct partition: in the cluster file; sinfo lists partitions\n"
    )


def test_a_job_whose_id_was_not_written_is_found(run: RunDirectory) -> None:
    """The launcher died after it submitted a job and before it wrote its id."""
    noted = {"id": "7", "kind": "finetune", "submitted": "2026-01-02T03:04:05+0000", "tasks": 1, "folder": "/code"}
    run.submit.mkdir(exist_ok=True)
    write_json(run.submit / "jobs.json", [noted])
    for name in ("7_submission.sh", "31_submission.sh"):
        (run.submit / name).touch()
    assert slurm.jobs_of(run) == [noted]
    write_json(run.submit / slurm.INTENT, noted | {"id": "", "kind": "eval"})
    assert slurm.jobs_of(run) == [noted, noted | {"id": "31", "kind": "eval"}]


def test_a_damaged_list_of_jobs_is_one_line(run: RunDirectory) -> None:
    run.submit.mkdir(exist_ok=True)
    (run.submit / "jobs.json").write_text("{")
    with pytest.raises(UserError) as error:
        slurm.jobs_of(run)
    assert "jobs.json: damaged" in str(error.value)
    assert "\n" not in str(error.value)
