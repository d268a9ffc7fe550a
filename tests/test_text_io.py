"""Text of users: byte-order marks, and names that appear twice."""

import json
from pathlib import Path

import pytest

from wellread.errors import UserError
from wellread.text_io import Parser, RepeatedKey, read_text, repeated, unmarked

MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_a_byte_order_mark_is_removed_from_blocks_of_any_size(size: int) -> None:
    for content in (b"", b"a", b"ab", b"\xef\xbb", b"text " + MARK, b"some text"):
        for data in (content, MARK + content):
            blocks = [data[i : i + size] for i in range(0, len(data), size)]
            assert b"".join(unmarked(blocks)) == content
            assert all(unmarked(blocks))


def test_a_file_is_utf8_without_its_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(MARK + "ä\r\nb".encode())
    assert read_text(tmp_path / "a.txt") == "ä\nb"
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"b\.txt: not UTF-8 at byte 0 of the file; save it as UTF-8"):
        read_text(tmp_path / "b.txt")


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 1}', '[{"b": {"c": 1, "a": 2, "a": 3}}]', '{"a": {}, "b": 1, "\\u0061": 2}']
)
def test_keys_that_appear_twice(text: str) -> None:
    with pytest.raises(RepeatedKey, match="key 'a' appears twice in an object; remove one"):
        Parser().decode(text)
    value, stop, problem = Parser().raw_decode(f"  {text},", 2)
    assert (value, stop, str(problem)) == (
        json.loads(text),
        2 + len(text),
        "key 'a' appears twice in an object; remove one",
    )


def test_a_parser_forgets_earlier_texts() -> None:
    parser = Parser()
    with pytest.raises(RepeatedKey):
        parser.decode('{"a": 1, "a": 2}')
    with pytest.raises(json.JSONDecodeError):
        parser.decode('{"a": {"a": 1, "a": 2}')
    assert parser.decode('[{"a": 1}, {"a": 2}]') == [{"a": 1}, {"a": 2}]


def test_names_that_appear_twice() -> None:
    assert repeated(["a", "b", "a"]) == "a"
    assert repeated(["", "a", ""]) == ""
    assert repeated(["a", "A"]) is None
