"""Sources: names, files, and rows that cannot be read."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from wellread.config import CONFIGS
from wellread.data.sources import Row, find, fingerprint, rows

GOOD = {"instruction": "Add 1 and 1.", "context": "", "response": "2", "category": "open_qa"}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> list[Row]:
    return list(rows(find(str(path))))


def test_names() -> None:
    sample = find("sample")
    assert (sample.name, sample.schema, sample.hub) == ("sample", "dolly", None)
    assert sample.path == CONFIGS / "data" / "sample.jsonl"
    dolly = find("dolly")
    assert (dolly.path, dolly.hub, dolly.published_rows) == (None, "databricks/databricks-dolly-15k", 15011)
    assert fingerprint(dolly) == "hub:databricks/databricks-dolly-15k"
    assert find("alpaca").published_rows == 52002


def test_files(tmp_path: Path) -> None:
    path = write(tmp_path / "my.rows.jsonl", json.dumps(GOOD))
    plain, named = find(str(path)), find(f"alpaca@{path}")
    assert (plain.name, plain.schema, plain.path) == ("my.rows", None, path)
    assert (named.name, named.schema, named.path) == ("alpaca", "alpaca", path)
    assert fingerprint(plain) == fingerprint(named)
    odd = tmp_path / "me@home"
    odd.mkdir()
    assert find(str(write(odd / "x.jsonl", "{}"))).path == odd / "x.jsonl"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nope", "--data nope: neither a known set (sample, dolly, alpaca) nor a file"),
        ("nope@DIR/x.jsonl", "--data nope@DIR/x.jsonl: unknown set 'nope'; known: sample, dolly, alpaca"),
        ("dolly,alpaca", "--data dolly,alpaca: mixtures of several sets are not supported yet; name one"),
        ("DIR/none.jsonl", "--data DIR/none.jsonl: DIR/none.jsonl does not exist"),
        ("dolly@DIR/none.jsonl", "--data dolly@DIR/none.jsonl: DIR/none.jsonl does not exist"),
        ("DIR", "--data DIR: DIR is not a file"),
        ("DIR/x.csv", "--data DIR/x.csv: .csv is not a known kind of file (.jsonl .json .parquet)"),
        ("DIR/bare", "--data DIR/bare: no suffix is not a known kind of file (.jsonl .json .parquet)"),
        ("DIR/empty.jsonl", "--data DIR/empty.jsonl: DIR/empty.jsonl is empty"),
    ],
)
def test_what_is_no_data(data: str, message: str, tmp_path: Path) -> None:
    for name in ("x.csv", "bare"):
        write(tmp_path / name, "a,b\n")
    write(tmp_path / "empty.jsonl", "")
    with pytest.raises(ValueError) as refused:
        find(data.replace("DIR", str(tmp_path)))
    assert str(refused.value) == message.replace("DIR", str(tmp_path))


def test_jsonl_rows_are_lines(tmp_path: Path) -> None:
    text = '{"a": 1}\n\n  \n{"a": "\u2028 ä"}\r\n{"a": 3}'
    assert read(write(tmp_path / "x.jsonl", text)) == [Row(1, {"a": 1}), Row(4, {"a": "\u2028 ä"}), Row(5, {"a": 3})]
    assert read(write(tmp_path / "bom.jsonl", '\ufeff{"a": 1}\n')) == [Row(1, {"a": 1})]


def test_broken_lines_are_named(tmp_path: Path) -> None:
    content = b'{"a": 1}\n{"a": \n[1]\n"text"\n{"a": "\xff"}\nnull\n{"a": 2}\n'
    assert read(write(tmp_path / "x.jsonl", content)) == [
        Row(1, {"a": 1}),
        Row(2, None, "not JSON: Expecting value at column 6"),
        Row(3, None, "not a JSON object"),
        Row(4, None, "not a JSON object"),
        Row(5, None, "not UTF-8 at byte 7 of the line"),
        Row(6, None, "not a JSON object"),
        Row(7, {"a": 2}),
    ]


def test_json_lists(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", json.dumps([GOOD, 3, GOOD]))
    assert read(path) == [Row(1, GOOD), Row(2, None, "not a JSON object"), Row(3, GOOD)]
    with pytest.raises(ValueError) as refused:
        read(write(tmp_path / "y.json", json.dumps(GOOD)))
    assert str(refused.value) == f"{tmp_path / 'y.json'}: expected a JSON list of objects, found dict"
    with pytest.raises(
        ValueError, match=r"z\.json: not a JSON file: .*; one object a line belongs into a \.jsonl file"
    ):
        read(write(tmp_path / "z.json", '{"a": 1}\n{"a": 2}\n'))


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    values = [{**GOOD, "response": str(i)} for i in range(5000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path, row_group_size=999)
    found = read(path)
    assert [row.number for row in found] == list(range(1, 5001))
    assert found[4999].fields == {**GOOD, "response": "4999"}
    whole = path.read_bytes()
    for name, content in (("text", b"hello"), ("cut", whole[: len(whole) // 2])):
        with pytest.raises(ValueError, match=f"{name}.parquet: not a Parquet file: "):
            read(write(tmp_path / f"{name}.parquet", content))


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    values = [{**GOOD, "response": f"{i} ä"} for i in range(7)]
    write(tmp_path / "x.jsonl", "".join(json.dumps(v) + "\n" for v in values))
    write(tmp_path / "x.json", json.dumps(values))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "x.parquet")
    expected = [Row(i, value) for i, value in enumerate(values, start=1)]
    for suffix in ("jsonl", "json", "parquet"):
        assert read(tmp_path / f"x.{suffix}") == expected


def test_the_hub_out_of_reach() -> None:
    with pytest.raises(ValueError) as refused:
        next(rows(find("dolly")))
    message = str(refused.value)
    assert message.startswith("--data dolly: hub set databricks/databricks-dolly-15k cannot be had (")
    assert message.endswith("); download its file and pass --data dolly@FILE")


@pytest.mark.shared
def test_real_files(shared: Path) -> None:
    dolly = read(shared / "dolly" / "databricks-dolly-12k.jsonl")
    assert len(dolly) == 12_000
    assert not [row for row in dolly if row.error]
    assert len(read(shared / "alpaca" / "alpaca_5000.json")) == 5000
