"""What the code uses of torch exists in the oldest supported version and in the installed one."""

import json
import tomllib
from pathlib import Path

import pytest
from support.torch_names import ANY, look_up, used

USED = used()


def test_the_oldest_supported_torch_is_the_recorded_one(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert "torch>=2.11" in project["optional-dependencies"]["train"]
    assert len(USED) > 80


@pytest.mark.parametrize("name", sorted(USED))
def test_names_and_keywords_of_torch(name: str, root: Path) -> None:
    recorded = json.loads((root / "tests" / "golden" / "torch-2.11.0.json").read_text())
    assert name in recorded, f"torch 2.11 lacks {name}, or run `python tests/support/torch_names.py` with torch 2.11"
    exists, installed = look_up(name)
    assert exists
    for parameters in (recorded[name], installed):
        if parameters is not None and ANY not in parameters:
            assert USED[name] <= set(parameters)
