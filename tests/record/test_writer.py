"""Writing a record: its rows, and resuming after a crash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from support.records import ORDER, START, recorded_batch, write_record

from wellread.errors import UserError
from wellread.record import writer as records
from wellread.record.reader import Record
from wellread.record.writer import COLUMNS, RecordWriter


def test_rows_equal_the_batches_read(tmp_path: Path) -> None:
    write_record(tmp_path)
    record = Record.open(tmp_path)
    table = record.table()
    assert tuple(table.column_names) == COLUMNS
    assert table["batch_id"].to_pylist() == [i for i in range(5) for _ in range(4)]
    assert table["step"].to_pylist() == [i + 1 for i in range(5) for _ in range(4)]
    assert table["slot"].to_pylist() == [0, 1, 2, 3] * 5
    assert table["sample_id"].to_pylist() == ORDER.samples(np.arange(20)).tolist()
    assert table["epoch"].to_pylist() == [0] * 10 + [1] * 10
    assert table["n_targets"].to_pylist() == (ORDER.samples(np.arange(20)) + 1).tolist()
    assert table["loss"].to_pylist() == (ORDER.samples(np.arange(20)) / 8).tolist()
    assert table["digest"].to_pylist() == [d for i in range(5) for d in recorded_batch(i).digests]
    assert record.sample_ids((1, 3)).tolist() == ORDER.batches(1, 3).ravel().tolist()


def test_many_rows_are_written_before_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ROWS_PER_PART", 8)
    writer = RecordWriter(tmp_path, start=START)
    for i in range(5):
        writer.append(recorded_batch(i))
    assert [part["to"] for part in Record.open(tmp_path).parts] == [2, 4]
    assert Record.open(tmp_path).batches == 4


def test_resuming_drops_batches_after_the_checkpoint(tmp_path: Path) -> None:
    """Killed after batch 5, resumed from step 3: each batch is recorded exactly once, and the head is the same."""
    uninterrupted = write_record(tmp_path / "uninterrupted")
    head = write_record(tmp_path / "run", flushes=(3,)).head
    second_attempt = RecordWriter(tmp_path / "run", start=START, step=3, head=head)
    second_attempt.append(recorded_batch(3))
    second_attempt.flush()  # a part beyond the checkpoint
    (tmp_path / "run" / "part-00000090-00000091.parquet").write_bytes(b"of an attempt that was killed")
    third_attempt = RecordWriter(tmp_path / "run", start=START, step=3, head=head)
    assert Record.open(tmp_path / "run").batches == 3
    assert len(list((tmp_path / "run").glob("part-*"))) == 1
    for i in (3, 4):
        third_attempt.append(recorded_batch(i))
    third_attempt.flush()
    assert third_attempt.head == uninterrupted.head
    assert Record.open(tmp_path / "run").table().equals(Record.open(tmp_path / "uninterrupted").table())
    assert Record.open(tmp_path / "run").damaged_parts() == []


def test_a_crash_between_part_and_head(tmp_path: Path) -> None:
    """The part exists, but the head does not name it yet: it does not belong to the record."""
    writer = write_record(tmp_path, flushes=(3,))
    before = (tmp_path / "head.json").read_bytes()
    head = writer.head
    writer.append(recorded_batch(3))
    writer.flush()
    (tmp_path / "head.json").write_bytes(before)
    assert Record.open(tmp_path).batches == 3
    RecordWriter(tmp_path, start=START, step=3, head=head)
    assert [path.name for path in tmp_path.glob("part-*")] == ["part-00000000-00000003.parquet"]


def test_a_step_without_its_part_is_refused(tmp_path: Path) -> None:
    head = write_record(tmp_path).head
    with pytest.raises(UserError) as refused:
        RecordWriter(tmp_path, start=START, step=4, head=head)
    assert str(refused.value) == (f"{tmp_path}: the record has no part that ends at step 4; its files are incomplete")
    assert Record.open(tmp_path).batches == 5  # refused before anything was deleted


def test_only_the_next_batch_can_be_appended(tmp_path: Path) -> None:
    writer = write_record(tmp_path, flushes=(2,))
    for wrong in (1, 3):
        with pytest.raises(AssertionError, match=f"batch {wrong} recorded at step 2"):
            writer.append(recorded_batch(wrong))


def test_skipped_batches_are_marked(tmp_path: Path) -> None:
    """They are in the chain and marked as skipped. Parts without the column have no skipped batches."""
    writer = RecordWriter(tmp_path, start=START)
    for batch_id in range(4):
        writer.append(replace(recorded_batch(batch_id), skipped=batch_id in (1, 2)))
        writer.flush()
    unskipped = RecordWriter(tmp_path / "other", start=START)
    for batch_id in range(4):
        unskipped.append(recorded_batch(batch_id))
    assert unskipped.head == writer.head
    record = Record.open(tmp_path)
    assert record.skipped().tolist() == [1, 2]
    assert record.skipped((2, 4)).tolist() == [2]
    assert record.table(["slot", "skipped"], (0, 2))["skipped"].to_pylist() == [False] * 4 + [True] * 4
    path = tmp_path / "part-00000002-00000003.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).drop(["skipped"]), path)
    assert record.skipped().tolist() == [1]
    assert tuple(record.table().column_names) == COLUMNS
