"""Fallbacks after out-of-memory errors: only with evidence, each strategy once, with the same training."""

import errno
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.programs import missing

from launch import attempts, ladder
from launch.backends.base import Training
from launch.backends.local import Local
from launch.cluster import ClusterFile
from scripts.oom_demo import LIMIT, may_limit_memory
from wellread.config import RunConfig
from wellread.errors import UserError
from wellread.files import write_json
from wellread.models.registry import find
from wellread.planning.fallback import Failure, Shortage, narrowed, that_count
from wellread.planning.host_memory import Kills
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.planning.planner import make_plan, replan
from wellread.recipes.registry import resolve
from wellread.run import RunDirectory
from wellread.train.shortage import shown_by
from wellread.units import GIB

SPEC = find("pythia-1b")
COUNTS = Counts(samples=1000, trainable=900, sealed=100, exact=True)
CLUSTER = Machine(cluster="local", nodes=1, ranks_per_node=2, device="cuda", gpu_mem=80, host_mem=500)


def config(**changes: Any) -> RunConfig:
    return resolve(RunConfig.of(model="pythia-1b", data="dolly", **changes), SPEC)


def failure(of: Plan, attempt: int = 1, limit: float = 80) -> Failure:
    assert of.needs
    shortage = Shortage(place="gpu", evidence="CUDA: out of memory", limit=int(limit * GIB))
    needed = of.needs["gpu_bytes"]
    return Failure(
        attempt=attempt,
        strategy=of.strategy,
        activation_checkpointing=of.activation_checkpointing,
        shortage=shortage,
        needed=needed,
        believed=limit,
    )


# --- the next strategy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_each_fallback_is_tried_once_and_needs_less_memory(strategy: Any) -> None:
    plan = make_plan(config(strategy=strategy), SPEC, CLUSTER, COUNTS)
    assert plan.strategy == "ddp"
    failures: list[Failure] = []
    needed = []
    while True:
        failures.append(failure(plan, len(failures) + 1))
        needed.append(failures[-1].needed)
        try:
            plan = replan(config(strategy=strategy), SPEC, plan, failures)
        except ValueError as error:
            refusal = str(error)
            break
        assert str(failures[-1]) in plan.strategy_reason
        assert plan.failures == tuple(asdict(one) for one in failures)
    assert f"GPU memory ran out under {failures[-1].strategy}" in refusal
    rungs = [one.rung for one in failures]
    assert len(set(rungs)) == len(rungs) > 2
    assert all(after < 0.951 * before for before, after in pairwise(needed))


def test_a_new_plan_changes_only_the_strategy() -> None:
    plan = make_plan(config(strategy="ddp"), SPEC, CLUSTER, COUNTS)
    lower = replan(config(strategy="ddp"), SPEC, plan, [failure(plan)]).as_dict()
    other = {key for key, value in plan.as_dict().items() if lower[key] != value}
    assert other <= {
        "engine", "strategy", "strategy_reason", "strategies", "failures", "micro_batch_size", "accumulation",
        "activation_checkpointing", "offload_ratio", "fast_reason", "grad_accum_dtype",
    }  # fmt: skip


def test_a_larger_machine_ignores_failures_on_a_smaller_one() -> None:
    plan = make_plan(config(), SPEC, CLUSTER, COUNTS)
    failed = [failure(plan, limit=24)]
    assert that_count(failed, Machine(gpu_mem=24)) == tuple(failed)
    assert that_count(failed, Machine(gpu_mem=80)) == ()
    assert make_plan(config(), SPEC, CLUSTER, COUNTS, failures=failed).strategy == "ddp"
    assert make_plan(config(), SPEC, replace(CLUSTER, gpu_mem=24), COUNTS, failures=failed).strategy != "ddp"


def test_the_limit_combines_memory_and_estimate() -> None:
    one = Failure(
        attempt=1,
        strategy="ddp",
        activation_checkpointing=False,
        shortage=Shortage(place="host", evidence="", limit=30 * GIB),
        needed=20 * GIB,
        believed=64,
    )
    assert narrowed(Machine(host_mem=64, gpu_mem=8), [one]) == Machine(host_mem=20, gpu_mem=8)
    assert narrowed(Machine(), [replace(one, needed=40 * GIB)]) == Machine(host_mem=30)
    assert narrowed(Machine(host_mem=10), [one]) == Machine(host_mem=10)


# --- evidence ---------------------------------------------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """An error with the name of torch's."""


def chained() -> BaseException:
    try:
        try:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        except RuntimeError as first:
            raise RuntimeError("the step failed") from first
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "trace", "place"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "", "gpu"),
        (chained(), "", "gpu"),
        (RuntimeError("CUDA error: out of memory"), "in get_partition\n  tensor.pin_memory()", "host"),
        (RuntimeError("CUDA error: out of memory"), "in forward", "gpu"),
        (RuntimeError("CUDA driver error: out of memory"), "", "gpu"),
        (RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB."), "", "gpu"),
        (RuntimeError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"), "", "gpu"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "", "gpu"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "", "gpu"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "", "gpu"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "", "gpu"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), "", None),
        (RuntimeError("NCCL error: unhandled cuda error, NCCL version 2.28.9"), "", None),
        (MemoryError(), "", "host"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9"), "", "host"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "", "host"),
        (OSError(errno.ENOSPC, "No space left on device"), "", None),
        (RuntimeError("CUDA error: device-side assert triggered"), "", None),
        (FloatingPointError("loss is not finite"), "", None),
    ],
)
def test_errors_that_mean_out_of_memory(error: BaseException, trace: str, place: str | None) -> None:
    shortage = shown_by(error, trace)
    assert (shortage.place if shortage else None) == place
    assert shortage is None or shortage.evidence


def test_evidence_of_a_full_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: out of memory")  # as on a GPU without memory for a context

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    debugging = "CUDA kernel errors might be reported asynchronously.\nFor debugging pass CUDA_LAUNCH_BLOCKING=1"
    shortage = shown_by(RuntimeError(f"CUDA error: out of memory\n{debugging}"), "")
    assert shortage == Shortage(place="gpu", evidence="CUDA: CUDA error: out of memory", limit=None)
    error = RuntimeError(
        "NCCL error in: init.cpp:90, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"
    )
    assert (nccl := shown_by(error, ""))
    assert nccl.evidence == "CUDA: Cuda failure 2 'out of memory'"


def test_gpu_memory_that_runs_out_under_a_plan_for_cpus(
    failed: tuple[RunDirectory, Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    run, plan = failed
    shortage = {"place": "gpu", "evidence": "CUDA: out of memory", "limit": None}
    write_json(run.log / "attempt-001-rank-0.error.json", {"time": 1, "rank": 0, "error": "", "shortage": shortage})
    assert ladder.note(run, replace(plan, machine=replace(plan.machine, device="cpu")), 1) is None
    assert "this run is planned for CPUs" in capsys.readouterr().err
    assert ladder.failures(run) == ()


@pytest.fixture
def failed(tmp_path: Path) -> tuple[RunDirectory, Plan]:
    """A run of two ranks with one attempt."""
    run = RunDirectory(tmp_path / "run")
    run.log.mkdir(parents=True)
    plan = make_plan(config(strategy="ddp"), SPEC, CLUSTER, COUNTS)
    write_json(run.plan_file, plan.as_dict())
    write_json(run.manifest_file, {"version": 1, "identity": {}, "attempts": [{"attempt": 1, "job": "7"}]})
    run.write_config(config(strategy="ddp"))
    return run, plan


def kernel(run: RunDirectory) -> None:
    values = {"place": "host", "evidence": "n1: the kernel killed 1", "limit": 4 * GIB}
    write_json(run.log / "attempt-001-node-0.memory.json", values)


def test_a_kill_by_a_user_has_no_fallback(failed: tuple[RunDirectory, Plan]) -> None:
    run, plan = failed
    attempts.note_signal(run, 1, 0, 9)
    attempts.note_signal(run, 1, 1, 9)
    assert ladder.note(run, plan, 1) is None
    assert ladder.failures(run) == ()


def test_a_kill_of_another_process_has_no_fallback(failed: tuple[RunDirectory, Plan]) -> None:
    run, plan = failed
    kernel(run)
    attempts.note_error(run, 1, 0, "KeyError: 3")
    attempts.note_signal(run, 1, 1, 11)
    assert ladder.note(run, plan, 1) is None


kernel_kills: list[int] = []
"""One entry per kill of the OOM killer."""


class Ending(Local):
    """Ranks that end as the variables of the cluster file say, while another process is killed; later they succeed."""

    def start(
        self, run: RunDirectory, arguments: list[str], plan: Plan, variables: dict[str, str], code: Path, attempt: int
    ) -> int:
        """Return the exit code."""
        with ladder.watched(run, attempt):
            if attempt > 2:
                return 0
            kernel_kills.append(1)
            if "ERROR" in variables:
                attempts.note_error(run, attempt, 1, variables["ERROR"])
            return int(variables["CODE"])


@pytest.mark.parametrize(
    ("code", "error", "moves"),
    [
        (130, {}, False),
        (143, {}, False),
        (143, {"ERROR": "memory ran out while saving"}, False),
        (1, {"ERROR": "KeyError: 3"}, False),  # rank 0 was then ended without an error file
        (137, {}, True),
    ],
    ids=["Ctrl-C", "cancel", "an error while saving", "an error of one rank", "a killed rank"],
)
def test_a_kill_of_another_process_does_not_continue_a_run_that_ended(
    failed: tuple[RunDirectory, Plan],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    error: dict[str, str],
    moves: bool,
) -> None:
    run, plan = failed
    monkeypatch.setattr(Kills, "so_far", lambda: Kills(group=None, machine=len(kernel_kills)))
    backend = Ending(ClusterFile(kind="local", environment={"CODE": str(code)} | error))
    training = Training(run=run, program="finetune", code=run.path)
    assert backend._train(training, plan) == (0 if moves else code)
    assert len(run.manifest()["attempts"]) == 2 + moves
    assert len(ladder.failures(run)) == moves


@pytest.mark.parametrize("silent", [True, False])
def test_a_kill_by_the_oom_killer_has_a_fallback(failed: tuple[RunDirectory, Plan], silent: bool) -> None:
    run, plan = failed
    kernel(run)
    attempts.note_error(run, 1, 0, "Connection closed by peer")
    if not silent:
        attempts.note_signal(run, 1, 1, 9)
    failure = ladder.note(run, plan, 1, lost=[1] * silent)
    assert failure
    assert (failure.strategy, failure.shortage.place, failure.shortage.limit) == ("ddp", "host", 4 * GIB)
    assert ladder.failures(run) == (failure,)


def test_an_out_of_memory_error_has_a_fallback(failed: tuple[RunDirectory, Plan]) -> None:
    run, plan = failed
    shortage = Shortage(place="gpu", evidence="CUDA: out of memory", limit=40 * GIB)
    note = {"time": 1.0, "rank": 1, "error": "OutOfMemoryError", "trace": "", "shortage": asdict(shortage)}
    write_json(run.log / "attempt-001-rank-1.error.json", note)
    assert ladder.note(run, plan, 1)
    lower = ladder.next_plan(run, plan)
    assert lower
    assert lower.strategy != "ddp"
    assert lower.needs["gpu_bytes"] < 0.95 * 40 * GIB  # type: ignore[index]
    assert Plan.open(run.plan_file) == lower


def test_a_kill_on_another_node_has_no_fallback(failed: tuple[RunDirectory, Plan]) -> None:
    run, plan = failed
    two = replace(plan, machine=replace(plan.machine, nodes=2, ranks_per_node=1))
    kernel(run)  # on node 0, on which the rank has failed by itself
    attempts.note_error(run, 1, 0, "Connection closed by peer")
    attempts.note_signal(run, 1, 1, 9)
    assert ladder.note(run, two, 1) is None
    (run.log / "attempt-001-node-0.memory.json").rename(run.log / "attempt-001-node-1.memory.json")
    assert ladder.note(run, two, 1)


def test_requested_settings_are_changed_one_by_one() -> None:
    """After ddp failed, a request for activation checkpointing or for another strategy can still be met."""
    plan = make_plan(config(strategy="ddp"), SPEC, CLUSTER, COUNTS)
    failed = [replace(failure(plan), needed=int(70 * GIB))]
    again = make_plan(config(strategy="ddp", activation_checkpointing="on"), SPEC, CLUSTER, COUNTS, failures=failed)
    assert (again.strategy, again.activation_checkpointing) == ("ddp", True)
    other = make_plan(config(strategy="zero2"), SPEC, CLUSTER, COUNTS, failures=failed)
    assert (other.strategy, other.strategy_reason) == ("zero2", "asked for")
    tight = [replace(failed[0], needed=GIB)]
    with pytest.raises(UserError, match="what would fit: --ladder off, which retries"):
        make_plan(config(strategy="ddp"), SPEC, CLUSTER, COUNTS, failures=tight)


@pytest.mark.parametrize(
    ("job", "state", "moves"), [("7", "OUT_OF_MEMORY", True), ("7", "FAILED", False), ("8", "OUT_OF_MEMORY", False)]
)
def test_out_of_memory_reported_by_slurm(failed: tuple[RunDirectory, Plan], job: str, state: str, moves: bool) -> None:
    run, _ = failed
    assert bool(ladder.note_job(run, job, state)) is moves
    assert not ladder.note_job(run, job, state)  # only once


# --- a real kill ------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.minutes(4)
def test_fallbacks_after_real_kills(root: Path, tmp_path: Path) -> None:
    """With a real limit and a real kill, the record equals that of a run with the right strategy from the start."""
    if not may_limit_memory():
        missing("no memory controller of control groups that may be written to")
    command = [sys.executable, "-m", "scripts.oom_demo", "--keep", str(tmp_path)]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert re.search(r"^fallback +0 +[12] .* ddp -> zero1$", result.stdout, re.MULTILINE)
    moved, planned = (RunDirectory(tmp_path / "runs" / name) for name in ("ladder", "planned"))
    first, second = moved.manifest()["attempts"]
    assert "the OOM killer killed" in first["out_of_memory"]["shortage"]["evidence"]
    assert (first["exit_code"], second["exit_code"], second["strategy"]) == (137, 0, "zero1")
    assert first["out_of_memory"]["shortage"]["limit"] == pytest.approx(LIMIT * GIB, abs=4096)  # complete pages
    assert "host memory ran out under ddp" in (moved.log / "attempt-002-rank-0.log").read_text()
    assert any(b"ran out under ddp" in path.read_bytes() for path in moved.tb.iterdir())
    heads = [
        json.loads((run.checkpoints / "step-00000004" / "checkpoint.json").read_text())["record"]["head"]
        for run in (moved, planned)
    ]
    assert heads[0] == heads[1]
