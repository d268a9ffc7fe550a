"""LT-IQR: equal to quartiles computed sample by sample, and the listing of a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support.programs import Program

from eval.membership.vulnerable import listing, ranges_of, ranges_of_run
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.record.reader import Record
from wellread.run import RunDirectory


def test_by_hand() -> None:
    """Sample 7 has losses 1, 2, 3, 4: quartiles 1.75 and 3.25. Sample 2 has a larger range, sample 5 three readings."""
    samples = np.array([7, 2, 5, 7, 2, 5, 7, 2, 5, 7, 2])
    losses = np.array([4, 9, 1, 3, 5, 1, 2, 1, 1, 1, 1], dtype=np.float32)
    ranges = ranges_of(samples, losses)
    assert ranges.sample_ids.tolist() == [2, 7]
    assert ranges.ranges.tolist() == [5.0, 1.5]  # 9, 5, 1, 1: quartiles 1 and 6
    assert (ranges.readings.tolist(), ranges.first.tolist(), ranges.last.tolist()) == ([4, 4], [9, 4], [1, 1])
    assert ranges.too_few == 1


def test_any_number_of_readings() -> None:
    rng = np.random.default_rng(5)
    samples = rng.integers(40, size=300)
    losses = rng.normal(size=300).astype(np.float32)
    ranges = ranges_of(samples, losses)
    expected = {
        i: float(np.subtract(*np.percentile(losses[samples == i].astype(np.float64), [75, 25])))
        for i in range(40)
        if (samples == i).sum() >= 4
    }
    assert dict(zip(ranges.sample_ids.tolist(), ranges.ranges.tolist(), strict=True)) == pytest.approx(expected)
    assert (np.diff(ranges.ranges) <= 0).all()
    assert ranges.too_few == len(set(samples.tolist())) - len(expected)


def test_a_run_with_too_few_readings_is_refused(tiny_run: RunDirectory, in_process: Program) -> None:
    result = in_process("eval", "membership", tiny_run.path, "--vulnerable", 50)
    assert result.returncode == 2
    assert result.stderr == (
        f"error: --vulnerable: needs 4 readings of a sample, but no sample of {tiny_run.path} has more than 1; "
        "train for more epochs\n"
    )


def test_canaries_are_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read often on purpose, and would be at the top of every list."""
    ids = np.repeat([3, 8, 9], 5)
    record = pyarrow.table({"sample_id": ids, "loss": np.arange(15.0), "skipped": np.zeros(15, dtype=np.bool_)})
    monkeypatch.setattr(Record, "open", lambda path: SimpleNamespace(table=record.select))
    monkeypatch.setattr(Corpus, "open", lambda path: SimpleNamespace(n_ordinary=9))
    assert sorted(ranges_of_run(RunDirectory(tmp_path)).sample_ids.tolist()) == [3, 8]


def test_samples_are_listed_without_a_model(copied_run: RunDirectory, in_process: Program) -> None:
    """A record in which four batches read the same samples; a skipped one is not a reading."""
    for part in json.loads((copied_run.record / "head.json").read_text())["parts"]:
        path = copied_run.record / part["name"]
        table = pyarrow.parquet.read_table(path)
        batches, slots = table["batch_id"].to_numpy(), table["slot"].to_numpy()
        losses = (slots * (batches + 1) / 10).astype(np.float32)
        columns = {
            "sample_id": np.where(slots < 15, slots, 20).astype(np.int64),
            "loss": losses,
            "skipped": batches > 4,
        }
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, pyarrow.array(values))
        pyarrow.parquet.write_table(table, path)
    for checkpoint in copied_run.checkpoints.glob("step-*/model/model.safetensors"):
        checkpoint.unlink()
    result = in_process("eval", "membership", copied_run.path, "--vulnerable", 2)
    assert result.returncode == 0, result.stderr
    heads, first, second, remark = result.stdout.splitlines()
    assert heads.split()[:3] == ["sample", "LT-IQR", "readings"]
    assert first.split()[:5] == ["20", "3.0000", "5", "1.5000", "7.5000"]  # 1.5, 3, 4.5, 6, 7.5
    assert second.split()[:5] == ["14", "2.8000", "5", "1.4000", "7.0000"]
    assert remark == "2 of 16 samples with 4 readings or more"
    with pytest.raises(UserError, match=r"--vulnerable 0: must be at least 1"):
        listing(copied_run, 0)
