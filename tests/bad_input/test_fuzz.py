"""Hundreds of bad inputs to all commands that read a run: never a traceback; one line that names what and where.

A copy of a small run of an old version is damaged file by file and key by key, and repaired after each question.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.outcomes import outcome

from wellread.errors import BAD_INPUT

pytestmark = [pytest.mark.slow, pytest.mark.minutes(0.01)]
FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "run-c5af5a2" / "finetune" / "run"
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
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "not text": lambda content: b"\xff\xfe" * 50,
    "zeros": lambda content: b"\0" * len(content),
    "nested": lambda content: b"[" * 100_000,
    "digits": lambda content: b'{"step": ' + b"9" * 5000 + b"}",
    "list": lambda content: b"[]",
    "number": lambda content: b"5",
    "LFS pointer": lambda content: LFS,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(FIXTURE, path)
    return path


def faults(run: Path, command: str, name: str, contents: Iterator[tuple[str, bytes]]) -> list[str]:
    """What is wrong with the answers of a command to each content of a file."""
    problems, path = [], run / name
    before = path.read_bytes()
    argv = [word.replace("RUN", str(run)) for word in COMMANDS[command]]
    try:
        for label, content in contents:
            path.write_bytes(content)
            try:
                code, message = outcome(argv)
            except Exception as error:
                problems.append(f"{label}: {type(error).__name__}: {error}"[:150])
                continue
            if code == BAD_INPUT and (str(run) not in message or "\n" in message):
                problems.append(f"{label}: {message}")
            assert code in (0, 1, BAD_INPUT)
    finally:
        path.write_bytes(before)
    return problems


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
    assert faults(run, command, name, iter(contents)) == []


FILES = JSON | OTHERS


@pytest.mark.parametrize(("name", "command"), [(name, command) for name in FILES for command in FILES[name]])
def test_damaged_files(command: str, name: str, run: Path) -> None:
    content = (run / name).read_bytes()
    assert faults(run, command, name, iter([(label, damage(content)) for label, damage in CONTENTS.items()])) == []
