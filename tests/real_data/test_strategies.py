"""DDP and ZeRO 1 to 3 on the real Dolly file, with two ranks in bf16: same losses, same record.

tests/runs/test_finetune.py compares ZeRO in fp32 with DDP.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wellread.checkpoint import list_checkpoints, name_of
from wellread.record.reader import Record
from wellread.run import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.shared]

STEPS, SAVED = 20, [0, 10, 20]
OTHERS = ["ddp", "zero1", "zero3"]
SAME_RECORD = ["step", "batch_id", "slot", "sample_id", "digest"]
"""Two records are equal if these columns are (design.md)."""

Program = Callable[..., "subprocess.CompletedProcess[str]"]
Run = Callable[[str, int], RunDirectory]


@pytest.fixture(scope="module")
def dolly(shared: Path) -> Path:
    return shared / "dolly" / "databricks-dolly-12k.jsonl"


@pytest.fixture(scope="module")
def runs(program: Program, corpora: Path, dolly: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Train once with `strategy` on `ranks` ranks; return the finished run, which tests only read."""
    folder = tmp_path_factory.mktemp("strategies")

    def run(strategy: str, ranks: int) -> RunDirectory:
        directory = RunDirectory(folder / f"{strategy}-{ranks}")
        if not directory.path.exists():
            settings = ["--model", "tiny", "--data", dolly, "--corpora", corpora, "--out", directory.path]
            size = ["--steps", STEPS, "--save_every", 10, "--batch_size", 8, "--seq_len", 128, "--holdout", 0.01]
            size += ["--generations", 0]
            how = ["--strategy", strategy, "--ranks_per_node", ranks, "--dtype", "bf16"]
            program("launch", "run", "finetune", *settings, *size, *how, env={"OMP_NUM_THREADS": "1"}, check=True)
        return directory

    yield run
    shutil.rmtree(folder)  # it is large


def step_losses(run: RunDirectory) -> np.ndarray:
    """Mean loss over all target tokens of each batch, from the record."""
    table = Record.open(run.record).table(["batch_id", "loss", "n_targets"])
    loss, n = table["loss"].to_numpy().astype(np.float64), table["n_targets"].to_numpy()
    return np.bincount(table["batch_id"].to_numpy(), loss * n) / np.bincount(table["batch_id"].to_numpy(), n)


def same_record(one: RunDirectory, other: RunDirectory) -> bool:
    records = Record.open(one.record), Record.open(other.record)
    tables: list[Any] = [record.table(SAME_RECORD) for record in records]
    return bool(tables[0].equals(tables[1])) and records[0].head == records[1].head


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["zero2", *OTHERS])
def test_strategy_trains_and_verifies(in_process: Program, runs: Run, strategy: str) -> None:
    run = runs(strategy, 2)
    losses = step_losses(run)
    assert len(losses) == STEPS
    assert losses[0] == pytest.approx(np.log(2048), abs=0.3)  # a fresh model predicts uniformly
    assert losses[-1] < losses[0] - 0.5  # and learns
    checkpoints = list_checkpoints(run.checkpoints)
    assert [c.step for c in checkpoints] == SAVED
    assert [c.manifest["strategy"] for c in checkpoints] == [strategy] * len(SAVED)
    assert [c.batches for c in checkpoints] == [(0, 0), (0, 10), (10, 20)]
    result = in_process("eval", "verify", run.path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"verified: {STEPS} batches, ")
    assert result.stdout.endswith(f" checkpoints agree, head {checkpoints[-1].head}\n")


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_strategy_reads_and_learns_what_ddp_does(runs: Run, strategy: str) -> None:
    ddp, run = runs("ddp", 2), runs(strategy, 2)
    assert same_record(ddp, run)
    starts = [(r.checkpoints / name_of(0) / "model/model.safetensors").read_bytes() for r in (ddp, run)]
    assert starts[0] == starts[1]
    differences = np.abs(step_losses(run) - step_losses(ddp))
    assert differences.max() < 1e-2, differences
    ends = [list_checkpoints(r.checkpoints)[-1] for r in (ddp, run)]
    assert ends[0].head == ends[1].head
    assert ends[0].tokens == ends[1].tokens
    assert abs(ends[0].manifest["holdout_loss"] - ends[1].manifest["holdout_loss"]) < 1e-2
