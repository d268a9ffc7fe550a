"""Measure one case: start its ranks, watch their memory, and summarize their results."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from bench.memory import private, shared
from launch import cluster as clusters
from launch import ops
from launch.backends import base as backends
from launch.backends.elastic import end_children
from scripts.gpu_check.cases import Case, Settled, flops_per_token, peak, settle
from scripts.gpu_check.machine import ROOT, Inventory, environment, last_line, used_before
from scripts.gpu_check.rows import Row
from wellread.config import to_dict
from wellread.errors import UserError
from wellread.files import write_json
from wellread.planning import host_memory
from wellread.planning.fallback import WORDS
from wellread.planning.host_memory import Kills

SECONDS_TO_FOLLOW = 10
"""Time for the other ranks to end after one has failed."""
SECONDS_BETWEEN = 0.01
LONGEST_TRACE = 5000
"""Characters of the log in the row of a rank that failed."""
WALKS_EVERY = 100
"""Number of samples between two reads of smaps, which pause the process."""


def measure(case: Case, inventory: Inventory, folder: Path, limit: float) -> Row | None:
    """Run a case for at most `limit` seconds; None if it is predicted not to fit and is not part of the story."""
    try:
        settled = settle(case, inventory.machine, folder / "nvme")
    except UserError as error:
        return Row(case.model, case.strategy, f"not run: {error}", story=case.story, name=case.name)
    if settled is None:
        return None
    row = _predicted(settled)
    if settled.plan.engine == "deepspeed" and not inventory.deepspeed:
        row.outcome = "not run: DeepSpeed is missing"
        return row
    variables = environment(inventory.machine.device) | backends.of(clusters.load("local")).environment(settled.plan)
    errors = [_op_error(op, frozenset(variables.items())) for op in ops.needed(settled.plan)]
    if any(errors):
        row.outcome = f"not run: {next(filter(None, errors))}"
        return row
    work = folder / "case"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (folder / "nvme").mkdir(exist_ok=True)
    before = used_before() if inventory.gpus else []
    task = {"plan": settled.plan.as_dict(), "config": to_dict(settled.config), "used_before": before}
    write_json(work / "task.json", task)
    port, kills = _free_port(), Kills.so_far()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        free = host_memory.available()
        for rank in range(settled.plan.ranks):
            processes.append(_start(work, rank, settled.plan.ranks, port, variables))
        row.host, in_time = _watch(processes, free, limit)
        codes = [process.poll() for process in processes]  # before remaining processes are ended
    finally:
        end_children()
        for process in processes:
            process.wait()
        shutil.rmtree(folder / "nvme", ignore_errors=True)
    _summarize(row, work, codes, in_time, limit, kills)
    _rate(row, inventory)
    return row


@cache
def _op_error(op: str, variables: frozenset[tuple[str, str]]) -> str | None:
    """Why one of DeepSpeed's ops cannot be compiled on this machine (tried once); None if it can."""
    try:
        ops.ensure(op, dict(variables))
    except UserError as error:
        return str(error)
    return None


def _predicted(settled: Settled) -> Row:
    plan, predicted = settled.plan, settled.predicted
    return Row(
        model=settled.case.model,
        strategy=plan.strategy,
        outcome="",
        story=settled.case.story,
        checkpointing=predicted.checkpointing,
        ratio=predicted.ratio,
        ranks=plan.ranks,
        micro_batch=plan.micro_batch_size,
        seq_len=plan.seq_len,
        fits=predicted.fits,
        predicted={"gpu": predicted.gpu_bytes, "host": predicted.host_bytes},
        peaks=predicted.peaks,
        parts=predicted.parts,
        name=settled.case.name,
    )


def _free_port() -> int:
    """A free port, on which the ranks of a case connect."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start(work: Path, rank: int, ranks: int, port: int, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    rank_variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with open(work / f"rank-{rank}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "scripts.gpu_check.rank", str(work)],
            cwd=ROOT,
            env=variables | rank_variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _watch(processes: list[subprocess.Popen[bytes]], free: int, limit: float) -> tuple[dict[str, int], bool]:
    """Wait for the ranks; return their peak host memory, and whether they ended in time."""
    most = decrease = beyond = samples = 0
    until = time.monotonic() + limit
    failed = False
    while any(process.poll() is None for process in processes):
        if time.monotonic() > until:
            return {"pss": most, "taken": decrease}, failed
        if not failed and any(process.poll() for process in processes):
            failed, until = True, time.monotonic() + SECONDS_TO_FOLLOW
        numbers = [process.pid for process in processes]
        if samples % WALKS_EVERY == 0:
            beyond = sum(map(shared, numbers))
            decrease = max(decrease, free - host_memory.available())
        most = max(most, sum(map(private, numbers)) + beyond)
        samples += 1
        time.sleep(SECONDS_BETWEEN)
    return {"pss": most, "taken": decrease}, True


def _summarize(row: Row, work: Path, codes: list[int | None], in_time: bool, limit: float, kills: Kills) -> None:
    """Set the outcome of the row: the first error of a rank, or what rank 0 measured.

    Parameters
    ----------
    codes : list of int
        Exit codes; None for a rank that was still running at the time limit.
    """
    files = [work / f"rank-{rank}.json" for rank in range(len(codes))]
    results = [json.loads(file.read_text()) if file.exists() else {} for file in files]
    for name in ("idle", "parameters", "losses", "seconds"):
        setattr(row, name, results[0].get(name) or getattr(row, name))
    gpus = [result["gpu"] for result in results if result.get("gpu")]
    row.gpu = max(gpus, key=lambda gpu: gpu["process"], default=None)
    broken = next((result for result in results if result.get("error")), None)
    failed = next((rank for rank, code in enumerate(codes) if code), 0)
    phase, code = (broken or results[failed]).get("phase", "start"), codes[failed] or 0
    log = (work / f"rank-{failed}.log").read_text(errors="replace")
    if broken:
        row.short = broken["short"]
        row.outcome = f"{f'out of {WORDS[row.short]}' if row.short else 'failed'} in {phase}: {broken['error']}"
    elif code == -signal.SIGKILL and (evidence := Kills.so_far().since(kills)):
        row.short = "host"
        row.outcome = f"out of {WORDS['host']} in {phase}: {evidence}"
    elif code:
        row.outcome = f"failed in {phase}: " + (f"{signal.Signals(-code).name}" if code < 0 else last_line(log))
    elif not in_time:
        row.outcome = f"timed out after {limit:.0f} s in {phase}"
    if row.outcome:
        row.trace = log[-LONGEST_TRACE:]
    else:
        row.trained = True
        row.outcome = f"trained, loss {row.losses[0]:.2f} to {row.losses[-1]:.2f}"


def _rate(row: Row, inventory: Inventory) -> None:
    if not row.trained:
        return
    tokens = row.ranks * row.micro_batch * row.seq_len
    row.tokens_per_second = tokens / statistics.median(row.seconds[1:])
    best = peak(inventory.gpus[0]) if inventory.gpus else None
    if best:
        row.mfu = row.tokens_per_second * flops_per_token(row.model, row.seq_len) / (best * row.ranks)
