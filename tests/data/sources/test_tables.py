"""Tables: kinds of files, the hub, and malformed rows."""

import csv
import json
import re
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from wellread.data import sets
from wellread.data.rows import instruct
from wellread.data.sources.source import Row, Source, Unreadable
from wellread.data.sources.tables import fingerprint, json_rows, rows
from wellread.errors import UserError

GOOD = {"instruction": "Add 1 and 1.", "context": "", "response": "2", "category": "open_qa"}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> list[Row]:
    return list(rows(sets.find(str(path)).sources[0]))


def test_jsonl_rows_are_lines(tmp_path: Path) -> None:
    text = '{"a": 1}\n\n  \n{"a": "\u2028 ä"}\r\n{"a": 3}'
    assert read(write(tmp_path / "x.jsonl", text)) == [Row(1, {"a": 1}), Row(4, {"a": "\u2028 ä"}), Row(5, {"a": 3})]
    assert read(write(tmp_path / "bom.jsonl", '\ufeff{"a": 1}\n')) == [Row(1, {"a": 1})]


def test_malformed_lines_are_reported(tmp_path: Path) -> None:
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
    with pytest.raises(UserError) as refused:
        read(write(tmp_path / "y.json", json.dumps(GOOD)))
    assert str(refused.value) == f"{tmp_path / 'y.json'}: expected a JSON list of objects, but it contains dict"
    with pytest.raises(
        UserError, match=r"z\.json: not a JSON file: .*; if it has one object per line, name it \.jsonl"
    ):
        read(write(tmp_path / "z.json", '{"a": 1}\n{"a": 2}\n'))


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    values = [{**GOOD, "response": str(i)} for i in range(5000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path, row_group_size=999)
    parsed = read(path)
    assert [row.number for row in parsed] == list(range(1, 5001))
    assert parsed[4999].fields == {**GOOD, "response": "4999"}
    content = path.read_bytes()
    for name, damaged in (("text", b"hello"), ("cut", content[: len(content) // 2])):
        with pytest.raises(UserError, match=f"{name}.parquet: not a Parquet file: "):
            read(write(tmp_path / f"{name}.parquet", damaged))


def test_all_kinds_of_files_give_the_same_rows(tmp_path: Path) -> None:
    values = [{**GOOD, "response": f"{i} ä"} for i in range(7)]
    write(tmp_path / "x.jsonl", "".join(json.dumps(v) + "\n" for v in values))
    write(tmp_path / "x.json", json.dumps(values))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "x.parquet")
    expected = [Row(i, value) for i, value in enumerate(values, start=1)]
    with open(tmp_path / "x.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*GOOD])
        writer.writeheader()
        writer.writerows(values)
    for suffix in ("jsonl", "json", "parquet", "csv"):
        assert read(tmp_path / f"x.{suffix}") == expected


def test_the_hub_out_of_reach() -> None:
    with pytest.raises(UserError) as refused:
        next(rows(sets.find("dolly").sources[0]))
    message = str(refused.value)
    assert message.startswith(
        "--data dolly: data set databricks/databricks-dolly-15k could not be downloaded from the hub ("
    )
    assert message.endswith("); download its file and pass --data dolly@FILE")


def test_csv(tmp_path: Path) -> None:
    text = '\ufeffa,b\r\n1,"two\nlines, ""quoted"""\r\n\r\n3\r\n4,ä\r\n'
    assert read(write(tmp_path / "x.csv", text)) == [
        Row(1, {"a": "1", "b": 'two\nlines, "quoted"'}),
        Row(2, None, "has 1 field, but the header has 2"),
        Row(3, {"a": "4", "b": "ä"}),
    ]
    long = "x" * 200_000  # longer than the default limit of the csv module
    assert read(write(tmp_path / "long.csv", f"a\n{long}\n")) == [Row(1, {"a": long})]
    for name, content, message in (
        ("cut", 'a,b\n1,"two', "not a CSV file: unexpected end of data at line 2"),
        ("latin", "a\nä\n".encode("latin-1"), "not UTF-8 (invalid continuation byte); save it as UTF-8"),
    ):
        with pytest.raises(UserError) as refused:
            read(write(tmp_path / f"{name}.csv", content))
        assert str(refused.value) == f"{tmp_path / name}.csv: {message}"


def test_a_folder_is_one_data_set(tmp_path: Path) -> None:
    """Files are sorted by name, also in subfolders. Rows are numbered over all files; an error names the file's row."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "README.md", "no data")
    write(tmp_path / "b.jsonl", '{"a": 3}\n\n{"a": \n')
    write(tmp_path / "data" / "a.json", '[{"a": 4}]')
    write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": 2}\n')
    source = sets.find(str(tmp_path)).sources[0]
    assert [path.name for path in source.paths] == ["a.jsonl", "b.jsonl", "a.json"]
    parsed = list(rows(source))
    assert [row.number for row in parsed] == [1, 2, 3, 5, 6]
    assert [row.fields for row in parsed] == [{"a": 1}, {"a": 2}, {"a": 3}, None, {"a": 4}]
    assert parsed[3].where(source) == f"{tmp_path / 'b.jsonl'} row 3"
    before = fingerprint(source)
    write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": 7}\n')
    assert fingerprint(source) != before


def test_hub_data_sets_are_read_with_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of the hub, the client can read a folder with the same layout."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    values = [{**GOOD, "response": str(i)} for i in range(3)]
    (tmp_path / "hub" / "data").mkdir(parents=True)
    table = pyarrow.Table.from_pylist(values)
    pyarrow.parquet.write_table(table, tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    source = Source(name="dolly", schemas=("dolly",), hub=str(tmp_path / "hub"), revision="abc")
    assert list(rows(source)) == [Row(i, value) for i, value in enumerate(values, start=1)]
    assert fingerprint(source) == f"hub:{tmp_path / 'hub'}@abc"


@pytest.mark.shared
def test_real_files(shared: Path) -> None:
    dolly = read(shared / "dolly" / "databricks-dolly-12k.jsonl")
    assert len(dolly) == 12_000
    assert not [row for row in dolly if row.error]
    assert len(read(shared / "alpaca" / "alpaca_5000.json")) == 5000
    assert len(read(shared / "hc3")) == 1187 + 842


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_json_list_is_read_object_by_object(size: int) -> None:
    """Blocks may end inside a character, a string or a number; errors say where a list is malformed."""
    values = [{"a": "é😀", "b": [1, {"c": "]"}]}, 12, {"a": ""}]
    for text in (json.dumps(values, ensure_ascii=False), json.dumps(values, indent=2), " [ ] "):
        content = text.encode()
        parsed = json_rows(Path("x"), (content[i : i + size] for i in range(0, len(content), size)))
        expected = [value if isinstance(value, dict) else None for value in json.loads(text)]
        assert [row.fields for row in parsed] == expected
    for broken, message in {
        b'[{"a":1},]': "object 2: Expecting value",
        b'[{"a":1}': "ends before its list does",
        b'[{"a":1} {"b":2}]': "no comma after object 1",
        b'[{"a":1}] x': "text after the end of the list",
        b'[{"a": "\xff"}]': "not UTF-8 at byte 8 of the file",
    }.items():
        with pytest.raises(UserError, match=message):
            list(json_rows(Path("x"), (broken[i : i + size] for i in range(0, len(broken), size))))


def test_a_name_that_appears_twice_is_refused(tmp_path: Path) -> None:
    """Which of the two values was meant is unknown."""
    twice = '{"a": "first", "b": 1, "a": "second"}'
    problem = "key 'a' appears twice in an object; remove one"
    assert read(write(tmp_path / "x.jsonl", f'{{"a": 1}}\n{twice}\n')) == [Row(1, {"a": 1}), Row(2, None, problem)]
    assert read(write(tmp_path / "x.json", f'[{{"a": 1}}, {twice}, {{"a": 2}}]')) == [
        Row(1, {"a": 1}), Row(2, None, problem), Row(3, {"a": 2}),
    ]  # fmt: skip
    with pytest.raises(UserError) as refused:
        read(write(tmp_path / "x.csv", "a,b,a\n1,2,3\n"))
    assert str(refused.value) == f"{tmp_path / 'x.csv'}: two columns are called 'a'; rename or remove one"
    path, column = tmp_path / "x.parquet", pyarrow.array(["1"])
    struct = pyarrow.StructArray.from_arrays([column, column], names=["a", "a"])
    for arrays, names in (([column, column], ["a", "a"]), ([struct], ["b"])):
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names=names), path)
        with pytest.raises(UserError, match=r"x\.parquet: two columns are called 'a'; rename or remove one"):
            read(path)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_a_byte_order_mark_is_removed(tmp_path: Path, suffix: str) -> None:
    text = {"json": '[{"a": "1"}]', "jsonl": '{"a": "1"}\n', "csv": "a\n1\n"}[suffix]
    assert read(write(tmp_path / f"x.{suffix}", f"\ufeff{text}")) == [Row(1, {"a": "1"})]


def test_hidden_folders_are_skipped(tmp_path: Path) -> None:
    """.ipynb_checkpoints contains old copies; a folder above the data set may be hidden."""
    folder = tmp_path / ".home" / "set"
    for name in ("a.jsonl", "b/c.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "b/.git/d.jsonl", ".e.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, '{"a": 1}\n')
    source = sets.find(str(folder)).sources[0]
    assert [str(path.relative_to(folder)) for path in source.paths] == ["a.jsonl", "b/c.jsonl"]
    assert source.file_count == " (2 files)"
    assert sets.find(str(folder / "a.jsonl")).sources[0].file_count == ""


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_json_beyond_the_limits_of_the_parser_is_a_malformed_row(tmp_path: Path, ending: str) -> None:
    values = ['{"a": 1}', '{"a": %s}' % ("7" * 5000), '{"b": "]}", "a": %s}' % DEEP, '{"a": 2}']  # noqa: UP031
    text = "\n".join(values) if ending == "jsonl" else f"[{','.join(values)}]"
    assert read(write(tmp_path / f"a.{ending}", text)) == [
        Row(1, {"a": 1}),
        Row(2, None, "contains an integer of more than 4,300 digits"),
        Row(3, None, "its JSON is nested too deeply"),
        Row(4, {"a": 2}),
    ]


def test_a_nested_object_instead_of_a_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json: not a JSON file: its JSON is nested too deeply"):
        read(write(tmp_path / "a.json", '{"a": %s}' % DEEP))  # noqa: UP031


def test_a_json_list_that_ends_inside_a_nested_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json: not a JSON file: object 1: its JSON is nested too deeply"):
        read(write(tmp_path / "a.json", '[{"a": ' + "[" * 100_000))


def test_a_damaged_page_of_a_parquet_file(tmp_path: Path) -> None:
    """Its beginning and its end are whole, so the damage is noticed while rows are read."""
    path = tmp_path / "x.parquet"
    table = pyarrow.table({"instruction": ["Name a bird."] * 50, "response": [f"Wren {i}." for i in range(50)]})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    page = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    end = page.data_page_offset + page.total_compressed_size
    content[end - 60 : end] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read(path)
    assert re.fullmatch(rf"{path}: damaged \(.+\), after row 0; copy or download it again", str(refused.value)), (
        refused.value
    )


def test_values_of_parquet_that_python_cannot_represent_are_errors_of_their_rows(tmp_path: Path) -> None:
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(),
        3,
        [None, pyarrow.py_buffer(np.array([0, 2, 4, 5], dtype=np.int32)), pyarrow.py_buffer(b"ok\xff\xfez")],
    )
    days = pyarrow.array([0, 2**31 - 1, 1], pyarrow.int32()).cast(pyarrow.date32())
    path = tmp_path / "a.parquet"
    names = {"instruction": pyarrow.array(["q", "q", "q"]), "response": bad, "when": days}
    pyarrow.parquet.write_table(pyarrow.table(names), path)
    fields = [row.fields or {} for row in read(path)]
    assert [each["response"] for each in fields] == ["ok", Unreadable("not UTF-8 at byte 0"), "z"]
    assert [type(each["when"]) for each in fields] == [date, Unreadable, date]
    source = Source(name="a", paths=(path,))
    outcomes = [instruct.dialogues(row, instruct.SCHEMAS["dolly"], source) for row in rows(source)]
    assert outcomes[1] == "'response' is not UTF-8 at byte 0"
    assert [type(each) for each in outcomes] == [list, str, list]
