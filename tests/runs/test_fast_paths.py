"""Whole runs with fast paths: the same record, and losses that are equal except for rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.programs import Program

from wellread.checkpoint import list_checkpoints
from wellread.record.reader import Record
from wellread.run import RunDirectory

pytestmark = pytest.mark.slow


@pytest.mark.long
@pytest.mark.parametrize("packed", [False, True], ids=["samples", "packed"])
def test_all_paths_together_leave_the_record_as_it_is(
    program: Program, corpora: Path, tmp_path: Path, packed: bool
) -> None:
    """On two ranks."""
    runs = {}
    for fast in ("off", "on"):
        sizes = ["--steps", 4, "--save_every", 4, "--batch_size", 8, "--seq_len", 96, "--dtype", "fp32"]
        where = ["--corpora", corpora, "--out", tmp_path / fast, "--generations", 1, "--snapshot", "off"]
        where += ["--ranks_per_node", 2]
        program("launch", "run", "finetune", *sizes, *where, *["--pack"] * packed, "--fast", fast, check=True)
        runs[fast] = RunDirectory.open(tmp_path / fast)
    last = {fast: list_checkpoints(run.checkpoints)[-1].manifest for fast, run in runs.items()}
    assert {fast: manifest["fast"] for fast, manifest in last.items()} == {"off": [], "on": ["varlen", "ahead"]}
    assert last["on"]["record"] == last["off"]["record"]  # the head of the chain
    assert last["on"]["holdout_loss"] == pytest.approx(last["off"]["holdout_loss"], rel=1e-6)
    off, on = (Record.open(run.record).table() for run in runs.values())
    for name in set(off.column_names) - {"loss"}:
        assert on[name].equals(off[name]), name
    np.testing.assert_allclose(on["loss"].to_numpy(), off["loss"].to_numpy(), rtol=1e-6)
