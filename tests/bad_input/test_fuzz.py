"""Hundreds of bad inputs to status, read and verify: never a traceback; one line that names what and where.

`test_fuzz_runs.py` asks all other commands that open a run.

A copy of a small run of an old version is damaged file by file and key by key, and repaired after each question.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.damaged import OLD, damaged, faults

pytestmark = [pytest.mark.slow, pytest.mark.minutes(0.01)]
COMMANDS: dict[str, tuple[str, ...]] = {
    "status": ("status", "RUN"),
    "read": ("read", "RUN"),
    "checkpoint": ("read", "RUN", "--checkpoint", "8"),
    "batch": ("read", "RUN", "--batch", "1"),
    "sample": ("read", "RUN", "--sample", "3"),
    "text": ("read", "RUN", "--text", "river"),
    "verify": ("verify", "RUN"),
}
READ = ("read", "checkpoint", "batch", "sample", "verify")
JSON: dict[str, tuple[str, ...]] = {
    "manifest.json": ("status", *READ),
    "record/head.json": READ,
    "corpus/corpus.json": READ,
    "checkpoints/step-00000008/checkpoint.json": ("status", "checkpoint", "verify"),
}
"""Files of a run, and commands that read them."""
OTHERS: dict[str, tuple[str, ...]] = {
    "config.yaml": ("status", "read", "verify"),
    "plan.json": ("status", "read"),
    "corpus/samples.parquet": ("checkpoint", "sample", "verify"),
    "corpus/offsets.npy": ("checkpoint", "batch", "verify"),
    "corpus/targets.npy": ("batch", "verify"),
    "corpus/target_offsets.npy": ("batch", "verify"),
    "corpus/tokens.bin": ("batch", "text", "verify"),
    "corpus/tokenizer/tokenizer.json": ("batch", "sample", "text"),
    "record/part-00000000-00000008.parquet": READ,
}
VALUES: tuple[Any, ...] = (None, [], "x")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(OLD / "run", path)
    return path


def variants(content: Any, place: tuple[Any, ...] = (), depth: int = 4) -> Iterator[tuple[str, Any]]:
    """The content with one key removed or one value replaced, for each of its first keys."""
    if not isinstance(content, dict | list) or not depth:
        return
    for key in list(content)[:12] if isinstance(content, dict) else range(min(len(content), 1)):
        for value in VALUES:
            if value != content[key]:
                copy = content.copy()
                copy[key] = value
                yield f"{place}{key}={value!r}", copy
        if isinstance(content, dict):
            yield f"{place}{key} removed", {name: value for name, value in content.items() if name != key}
        for label, inner in variants(content[key], (*place, key), depth - 1):
            copy = content.copy()
            copy[key] = inner
            yield label, copy


@pytest.mark.parametrize(("name", "command"), [(name, command) for name in JSON for command in JSON[name]])
def test_altered_keys(command: str, name: str, run: Path) -> None:
    content = json.loads((run / name).read_text())
    contents = [(label, json.dumps(value).encode()) for label, value in variants(content)]
    assert len(contents) > 20
    assert faults(run, COMMANDS[command], name, iter(contents)) == []


FILES = JSON | OTHERS


@pytest.mark.parametrize(("name", "command"), [(name, command) for name in FILES for command in FILES[name]])
def test_damaged_files(command: str, name: str, run: Path) -> None:
    assert faults(run, COMMANDS[command], name, damaged(run / name)) == []
