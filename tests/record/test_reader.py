"""Reading a record: parts, ranges, and every way in which it can be damaged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow.parquet
import pytest
from support.records import START, write_record

from wellread.errors import UserError
from wellread.record.reader import Record
from wellread.record.writer import COLUMNS, RecordWriter


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


def test_a_part_with_a_flipped_byte_is_one_error(tmp_path: Path) -> None:
    """Wherever the byte is: the error names the file, or the table is readable."""
    write_record(tmp_path)
    record = Record.open(tmp_path)
    path = tmp_path / record.parts[0]["name"]
    content, messages = path.read_bytes(), []
    for place in range(4, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            record.table()
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 10
    for message in messages:
        assert message.startswith(f"{path}: damaged (")
        assert message.endswith(f"; run wellread verify {tmp_path.parent}")


def test_a_head_without_a_key(tmp_path: Path) -> None:
    (tmp_path / "head.json").write_text('{"stap": 3}')
    with pytest.raises(UserError, match=r"head\.json: damaged \('head' is missing\)"):
        Record.open(tmp_path)


def without_parts(directory: Path, *numbers: int) -> Record:
    """A record whose head.json does not list some of its parts."""
    head = json.loads((directory / "head.json").read_text())
    head["parts"] = [part for number, part in enumerate(head["parts"]) if number not in numbers]
    (directory / "head.json").write_text(json.dumps(head))
    return Record.open(directory)


@pytest.mark.parametrize(("missing", "first"), [((0,), 0), ((1,), 3), ((0, 1), 0)])
def test_batches_that_no_part_has_are_an_error(tmp_path: Path, missing: tuple[int, ...], first: int) -> None:
    """Not fewer rows, which look like a shorter record."""
    write_record(tmp_path)
    record = without_parts(tmp_path, *missing)
    message = rf"no part has batch {first}; run wellread verify"
    with pytest.raises(UserError, match=message):
        record.table()
    with pytest.raises(UserError, match=message):
        list(record.pieces(["sample_id"], 100))
    with pytest.raises(UserError, match=message):
        record.skipped()
    with pytest.raises(UserError, match=message):
        record.table(batches=(first, 5))


def test_a_part_with_other_rows_than_head_json_says_is_an_error(tmp_path: Path) -> None:
    write_record(tmp_path)
    path = tmp_path / Record.open(tmp_path).parts[0]["name"]
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 8), path)
    with pytest.raises(UserError, match=r"part-00000000-00000003.parquet: damaged \(8 rows, head.json says 12\); run"):
        Record.open(tmp_path).table()
