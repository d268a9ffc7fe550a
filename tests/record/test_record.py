"""The record: its chain by hand, its parts, resuming, and every way in which it can be damaged."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from wellread.errors import UserError
from wellread.order.permutation import Order
from wellread.record import writer as records
from wellread.record.chain import genesis, link
from wellread.record.reader import Record
from wellread.record.writer import COLUMNS, RecordedBatch, RecordWriter

ORDER = Order(kind="shuffle", seed=3, n=10, batch_size=4)
START = genesis("corpus", ORDER.identity())


def recorded_batch(batch_id: int, *, digest: bytes = b"d") -> RecordedBatch:
    ids = ORDER.batch(batch_id)
    return RecordedBatch(
        batch_id=batch_id,
        sample_ids=ids,
        epochs=np.array([(batch_id * 4 + slot) // 10 for slot in range(4)]),
        n_targets=ids + 1,
        losses=(ids / 8).astype(np.float32),
        digests=[hashlib.blake2b(digest + bytes([i]), digest_size=16).digest() for i in ids.tolist()],
    )


def write_record(directory: Path, *, flushes: tuple[int, ...] = (3, 5)) -> RecordWriter:
    writer = RecordWriter(directory, start=START)
    for batch_id in range(flushes[-1]):
        writer.append(recorded_batch(batch_id))
        if batch_id + 1 in flushes:
            writer.flush()
    return writer


def test_the_first_head_binds_corpus_and_order() -> None:
    identity = {"kind": "shuffle", "seed": 3, "n": 10, "batch_size": 4, "version": 1}
    assert ORDER.identity() == identity
    text = '["corpus", {"batch_size": 4, "kind": "shuffle", "n": 10, "seed": 3, "version": 1}]'
    assert hashlib.sha256(text.encode()).hexdigest() == START
    assert genesis("other", identity) != START
    assert genesis("corpus", identity | {"seed": 4}) != START


def test_a_link_by_hand() -> None:
    """sha256(32 bytes of head | batch id | ids | digests), every integer as 8 little-endian bytes."""
    content = bytes.fromhex("ab" * 32) + bytes.fromhex("0201000000000000" + "0500000000000000" + "0700000000000000")
    expected = hashlib.sha256(content + b"x" * 32).hexdigest()
    assert link("ab" * 32, 258, np.array([5, 7]), b"x" * 32) == expected
    assert link("ab" * 32, 258, np.array([5, 7], dtype=np.int32), b"x" * 32) == expected
    assert link("ab" * 32, 258, np.array([7, 5]), b"x" * 32) != expected


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


def test_the_head_can_be_recomputed_from_the_rows(tmp_path: Path) -> None:
    writer = write_record(tmp_path)
    head = START
    for i in range(5):
        table = Record.open(tmp_path).table(batches=(i, i + 1))
        head = link(head, i, table["sample_id"].to_numpy(), b"".join(table["digest"].to_pylist()))
    assert head == writer.head == Record.open(tmp_path).head


def test_parts_and_head(tmp_path: Path) -> None:
    write_record(tmp_path)
    record = Record.open(tmp_path)
    assert record.batches == 5
    assert [(p["name"], p["from"], p["to"], p["rows"]) for p in record.parts] == [
        ("part-00000000-00000003.parquet", 0, 3, 12),
        ("part-00000003-00000005.parquet", 3, 5, 8),
    ]
    assert record.info["genesis"] == START
    for part in record.parts:
        assert hashlib.sha256((tmp_path / part["name"]).read_bytes()).hexdigest() == part["sha256"]
    assert record.damaged_parts() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.json", *(p["name"] for p in record.parts)]


@pytest.mark.parametrize("flushes", [(5,), (1, 2, 3, 4, 5), (2, 5)])
def test_content_does_not_depend_on_parts(flushes: tuple[int, ...], tmp_path: Path) -> None:
    a, b = write_record(tmp_path / "a"), write_record(tmp_path / "b", flushes=flushes)
    assert a.head == b.head
    assert Record.open(tmp_path / "a").table().equals(Record.open(tmp_path / "b").table())
    for batches in ((0, 5), (1, 4), (2, 3), (4, 5), (3, 3)):
        tables = [Record.open(tmp_path / name).table(["sample_id"], batches) for name in "ab"]
        assert tables[0].equals(tables[1])
        assert tables[0].num_rows == 4 * (batches[1] - batches[0])


def test_losses_are_not_part_of_the_chain(tmp_path: Path) -> None:
    """The head depends on the tokens, not on losses, which another machine may round differently."""
    heads = []
    for name, digest in (("a", b"d"), ("b", b"d"), ("c", b"e")):
        writer = RecordWriter(tmp_path / name, start=START)
        writer.append(recorded_batch(0, digest=digest))
        heads.append(writer.head)
    assert heads[0] == heads[1] != heads[2]


def test_many_rows_are_written_before_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ROWS_PER_PART", 8)
    writer = RecordWriter(tmp_path, start=START)
    for i in range(5):
        writer.append(recorded_batch(i))
    assert [part["to"] for part in Record.open(tmp_path).parts] == [2, 4]
    assert Record.open(tmp_path).batches == 4


def test_an_empty_record(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, start=START)
    writer.flush()
    record = Record.open(tmp_path)
    assert (record.batches, record.head, record.parts, record.damaged_parts()) == (0, START, [], [])
    assert record.table().num_rows == 0
    assert tuple(record.table().column_names) == COLUMNS
    assert record.sample_ids().tolist() == []


def test_ranges_beyond_the_last_batch_are_refused(tmp_path: Path) -> None:
    write_record(tmp_path)
    for batches in ((0, 6), (-1, 2), (3, 2)):
        with pytest.raises(UserError) as refused:
            Record.open(tmp_path).table(batches=batches)
        assert str(refused.value) == (f"batches {batches[0]}:{batches[1]}: out of range, the record has batches 0:5")


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


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    write_record(tmp_path)
    first, second = (tmp_path / part["name"] for part in Record.open(tmp_path).parts)
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert Record.open(tmp_path).damaged_parts() == [f"{first}: altered (its sha256 is not the one in head.json)"]
    first.write_bytes(content)
    second.unlink()
    assert Record.open(tmp_path).damaged_parts() == [f"{second}: missing"]
    head = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps(head | {"parts": head["parts"][:1]}))
    assert Record.open(tmp_path).damaged_parts() == [f"{tmp_path}: parts end at batch 3, head.json says 5"]
    (tmp_path / "head.json").write_text(json.dumps(head | {"parts": head["parts"][1:]}))
    assert f"{second}: starts at batch 3, expected 0" in Record.open(tmp_path).damaged_parts()


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


def test_a_missing_or_damaged_head_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        Record.open(tmp_path)
    assert str(refused.value) == f"{tmp_path}: no record (head.json is missing); has the run started?"
    (tmp_path / "head.json").write_text("{")
    with pytest.raises(UserError, match=r"head\.json: damaged \(Expecting property name"):
        Record.open(tmp_path)


def test_parts_are_plain_parquet_files(tmp_path: Path) -> None:
    write_record(tmp_path)
    parts = [pyarrow.parquet.read_table(path) for path in sorted(tmp_path.glob("part-*.parquet"))]
    types = {field.name: str(field.type) for field in parts[0].schema}
    assert types == {
        "step": "int64", "batch_id": "int64", "slot": "int32", "sample_id": "int64", "epoch": "int32",
        "n_targets": "int32", "loss": "float", "digest": "fixed_size_binary[16]", "skipped": "bool",
    }  # fmt: skip
    assert [part.num_rows for part in parts] == [12, 8]
