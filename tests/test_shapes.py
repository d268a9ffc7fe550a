"""Shapes of JSON files: a wrong value or a missing key is one line that names file and key."""

import json
from pathlib import Path
from typing import Any

import pytest

from wellread.errors import UserError
from wellread.files import read_json
from wellread.shapes import mismatch

SHAPE = {"step": int, "loss": (float, None), "files": {...: {"size": int}}, "batches": [int], "notes": object}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, ""),
        ({"step": 1, "loss": 2, "files": {"a": {"size": 3}}, "batches": [], "other": []}, ""),
        ({"loss": None, "notes": None}, ""),
        ([], "content: expected an object, found []"),
        ({"step": "1"}, "step: expected a whole number, found '1'"),
        ({"step": True}, "step: expected a whole number, found True"),
        ({"loss": "low"}, "loss: expected a number or null, found 'low'"),
        ({"files": []}, "files: expected an object, found []"),
        ({"files": {"model/a": {"size": None}}}, "files.model/a.size: expected a whole number, found None"),
        ({"batches": [0, "8"]}, "batches[1]: expected a whole number, found '8'"),
        ({"step": "x" * 99}, f"step: expected a whole number, found '{'x' * 39}…"),
    ],
)
def test_a_wrong_value_is_named(value: Any, problem: str) -> None:
    assert mismatch(value, SHAPE, "") == problem


def test_a_missing_key_is_named_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"files": {"a": {}}}))
    content = read_json(tmp_path / "x.json", SHAPE)
    assert content.get("step") is None
    assert json.loads(json.dumps(content)) == {"files": {"a": {}}}
    with pytest.raises(UserError, match=r"x\.json: damaged \('size' is missing\); restore it from a copy"):
        content["files"]["a"]["size"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"step": ' + "9" * 5000 + "}", "\xff", "", '{"step": 1'])
def test_what_is_not_json_is_damaged(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"x\.json: damaged \(.{5,150}\); restore it from a copy"):
        read_json(tmp_path / "x.json", SHAPE)
