"""Losses of sealed samples in the record: their files, resuming, and verifying them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from support.records import START, recorded_batch
from support.tampering import column, put

from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.files import sha256_file, with_checksum, write_json
from wellread.record import writer as records
from wellread.record.reader import Record
from wellread.record.sealed import SealedLosses
from wellread.record.verify import verify
from wellread.record.writer import RecordWriter
from wellread.run import RunDirectory

Change = Callable[[Any], Any]


def measured(step: int) -> SealedLosses:
    ids = np.array([20, 21 + step])
    return SealedLosses(step=step, sample_ids=ids, n_targets=ids - 10, losses=(ids / 8 + step).astype(np.float32))


def write(directory: Path, *, saves: tuple[int, ...] = (0, 2, 4), every: int = 1) -> dict[int, str]:
    """A record measured at each step, with a checkpoint at `saves`; step -> head of each checkpoint."""
    writer, heads = RecordWriter(directory, start=START), {}
    for step in range(saves[-1] + 1):
        if step % every == 0 or step in saves:
            writer.measured(measured(step))
        if step in saves:
            writer.flush()
            heads[step] = writer.head
        if step < saves[-1]:
            writer.append(recorded_batch(step))
    return heads


def steps_of(directory: Path) -> list[int]:
    return sorted(set(Record.open(directory).sealed()["step"].to_pylist()))


def test_files_have_the_measured_values(tmp_path: Path) -> None:
    write(tmp_path)
    record = Record.open(tmp_path)
    names = ["sealed-00000000-00000000.parquet", "sealed-00000001-00000002.parquet", "sealed-00000003-00000004.parquet"]
    assert [file["name"] for file in record.sealed_files] == names
    assert sorted(path.name for path in tmp_path.glob("sealed-*")) == names
    assert [file["rows"] for file in record.sealed_files] == [2, 4, 4]
    assert all(file["sha256"] == sha256_file(tmp_path / file["name"]) for file in record.sealed_files)
    table = record.sealed()
    assert table.schema.names == ["step", "sample_id", "n_targets", "loss"]
    assert table["step"].to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert table["sample_id"].to_pylist() == [20, 21, 20, 22, 20, 23, 20, 24, 20, 25]
    assert table["n_targets"].to_pylist() == [10, 11, 10, 12, 10, 13, 10, 14, 10, 15]
    assert table["loss"].to_pylist() == [i / 8 + s for s in range(5) for i in (20, 21 + s)]


def test_they_do_not_change_the_chain(tmp_path: Path) -> None:
    without = RecordWriter(tmp_path / "without", start=START)
    for step in range(4):
        without.append(recorded_batch(step))
    without.flush()
    assert write(tmp_path / "with")[4] == without.head
    assert "sealed" not in json.loads((tmp_path / "without" / "head.json").read_text())
    assert len(Record.open(tmp_path / "without").sealed()) == 0


def test_resuming_drops_measurements_after_the_checkpoint(tmp_path: Path) -> None:
    heads = write(tmp_path)
    writer = RecordWriter(tmp_path, start=START, step=2, head=heads[2])
    assert steps_of(tmp_path) == [0, 1, 2]
    assert writer.sealed_values == 6
    assert len(list(tmp_path.glob("sealed-*"))) == 2
    writer.append(recorded_batch(2))
    writer.measured(measured(3))
    assert writer.sealed_values == 8
    (tmp_path / "sealed-00000009-00000009.parquet").write_bytes(b"of an attempt that was killed")
    RecordWriter(tmp_path, start=START, step=0, head=heads[0])
    assert steps_of(tmp_path) == [0]
    assert [path.name for path in tmp_path.glob("sealed-*")] == ["sealed-00000000-00000000.parquet"]


def test_killed_before_the_first_checkpoint(tmp_path: Path) -> None:
    """Step 0 was measured, but its checkpoint is missing: it is measured again."""
    write(tmp_path, saves=(0,))
    writer = RecordWriter(tmp_path, start=START)
    assert (steps_of(tmp_path), list(tmp_path.glob("sealed-*"))) == ([], [])
    writer.measured(measured(0))
    writer.flush()
    assert steps_of(tmp_path) == [0]


def test_a_crash_between_file_and_head(tmp_path: Path) -> None:
    heads = write(tmp_path, saves=(0, 2))
    before = (tmp_path / "head.json").read_bytes()
    writer = RecordWriter(tmp_path, start=START, step=2, head=heads[2])
    writer.append(recorded_batch(2))
    writer.measured(measured(3))
    writer.flush()
    (tmp_path / "head.json").write_bytes(before)
    assert steps_of(tmp_path) == [0, 1, 2]
    RecordWriter(tmp_path, start=START, step=2, head=heads[2])
    assert len(list(tmp_path.glob("sealed-*"))) == 2


def test_many_values_are_written_before_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ROWS_PER_PART", 4)
    heads = write(tmp_path, saves=(0, 5))
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert len(Record.open(tmp_path).sealed_files) > 2
    RecordWriter(tmp_path, start=START, step=5, head=heads[5])
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4, 5]


def test_each_step_is_measured_once(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, start=START)
    writer.measured(measured(0))
    for step in (0, 1):
        with pytest.raises(AssertionError, match=f"step {step} measured at step 0, after step 0"):
            writer.measured(measured(step))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "sealed-00000001-00000002.parquet"
    path.write_bytes(b"not Parquet")
    with pytest.raises(UserError, match=r"sealed-00000001-00000002.parquet: damaged .*; run wellread verify"):
        Record.open(tmp_path).sealed()


def test_a_run_records_them_at_its_checkpoints(tiny_run: RunDirectory, corpus: Corpus) -> None:
    """The sample set has fewer sealed documents than 256: each is measured once per checkpoint."""
    table = Record.open(tiny_run.record).sealed()
    steps, ids = table["step"].to_numpy(), table["sample_id"].to_numpy()
    documents = corpus.samples()["document"].to_numpy()
    assert sorted(set(steps.tolist())) == [0, 4, 8, 12]
    for step in (0, 4, 8, 12):
        measured_documents = documents[ids[steps == step]]
        assert sorted(measured_documents) == sorted(set(documents[corpus.n_trainable :]))
    assert (table["n_targets"].to_numpy() == corpus.n_targets(ids)).all()
    losses = table["loss"].to_numpy()
    assert losses[steps == 0].mean() == pytest.approx(np.log(2048), abs=0.1)  # an untrained model of 2,048 tokens
    assert losses[steps == 12].mean() < losses[steps == 0].mean() - 0.3


def tampered(run: RunDirectory, name: str, change: Change) -> Path:
    """Alter the second file with losses of sealed samples, and renew its hash in head.json."""
    head = json.loads((run.record / "head.json").read_text())
    entry = head["sealed"][1]
    path = run.record / entry["name"]
    pyarrow.parquet.write_table(column(pyarrow.parquet.read_table(path), name, change), path)
    entry["sha256"] = sha256_file(path)
    write_json(run.record / "head.json", with_checksum(head))
    return path


TAMPERING: dict[str, tuple[str, Change, str]] = {
    "a trainable sample": ("sample_id", put(0, 0), "row 0: its sample is not a sealed one"),
    "a sample beyond the corpus": ("sample_id", put(-1, 10**6), "its sample is not a sealed one"),
    "a sample twice": ("sample_id", lambda v: [*v[:1], v[0], *v[2:]], "row 1: step and sample do not ascend"),
    "number of targets": ("n_targets", put(2, lambda n: n + 1), "n_targets: row 2"),
    "a loss below 0": ("loss", put(3, -1.0), "row 3: loss is not a number of at least 0"),
    "no loss": ("loss", put(3, float("nan")), "row 3: loss is not a number of at least 0"),
    "the step": ("step", put(-1, 9), "first and last step: [4, 9], expected [4, 4]"),
}


@pytest.mark.parametrize("kind", TAMPERING)
def test_altered_values_are_named(kind: str, copied_run: RunDirectory) -> None:
    name, change, line = TAMPERING[kind]
    path = tampered(copied_run, name, change)
    problems = verify(copied_run)
    assert any(problem.startswith(f"{path}: ") and line in problem for problem in problems), problems


def test_altered_files_are_named(copied_run: RunDirectory) -> None:
    assert verify(copied_run) == []
    place, (first, second, *_) = copied_run.record / "head.json", Record.open(copied_run.record).sealed_files
    path = copied_run.record / second["name"]
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))
    assert verify(copied_run) == [f"{path}: altered (its sha256 is not the one in head.json)"]
    path.unlink()
    assert verify(copied_run) == [f"{path}: missing"]
    path.write_bytes(content)
    head = json.loads(place.read_text())
    head["sealed"][1]["rows"] += 1
    write_json(place, with_checksum(head))
    assert verify(copied_run) == [f"{path}: rows: {second['rows']}, expected {second['rows'] + 1} (head.json)"]
    head["sealed"] = [first, first]
    write_json(place, with_checksum(head))
    assert f"{place}: sealed losses {first['name']}: steps after 0 and up to 12 expected" in verify(copied_run)
