"""Runs of an old version stay usable: they can be read, verified, reported, and trained to their end.

tests/fixtures/run-c5af5a2/README.md describes how they were created.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.outcomes import outcome
from support.programs import ROOT, Program

import wellread
from launch.job import Job, same_but_version
from launch.options import LaunchOptions
from wellread.config import RunConfig
from wellread.errors import BAD_INPUT

OLD = ROOT / "tests" / "fixtures" / "run-c5af5a2"


@dataclass(frozen=True)
class OldRun:
    """A copy of a run that an old version stopped, and the results of that version at its end."""

    folder: Path
    final: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / "run"

    def rows(self) -> list[dict[str, Any]]:
        """Rows of the record, read without code of this project."""
        parts = sorted((self.path / "record").glob("part-*.parquet"))
        return [row for part in parts for row in pq.read_table(part).to_pylist()]


@pytest.fixture(params=["finetune", "pretrain"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> OldRun:
    folder = shutil.copytree(OLD / request.param, tmp_path / request.param)
    return OldRun(folder, json.loads((folder / "FINAL.json").read_text()))


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in OLD.rglob("*")) < 1_000_000


def test_it_is_read(old: OldRun, in_process: Program) -> None:
    stopped = old.final["stopped"]["step"]
    rows = [row for row in old.rows() if row["batch_id"] == stopped - 1]
    assert len(rows) == 4
    printed = in_process("eval", "read", old.path, "--batch", stopped - 1, check=True).stdout
    for row in rows:
        assert f"batch {stopped - 1} slot {row['slot']}  sample {row['sample_id']}  " in printed
    run = wellread.open_run(old.path)
    batch = run.history.batch(stopped - 1)
    assert batch.sample_ids == [row["sample_id"] for row in rows]
    assert batch.losses == pytest.approx([row["loss"] for row in rows])
    assert all(text.split()[0] in printed for text in batch.texts)
    assert run.record.batches == stopped
    assert run.corpus.hash == old.final["corpus_hash"]
    assert (run.config.data.seq_len, run.plan.seq_len) == (old.final["identity"]["seq_len"],) * 2
    assert [checkpoint.step for checkpoint in run.checkpoints] == [0, 8, stopped]


def test_it_is_verified(old: OldRun, in_process: Program) -> None:
    printed = in_process("eval", "verify", old.path, check=True).stdout
    assert old.final["stopped"]["head"] in printed
    part = max((old.path / "record").glob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[::-1])
    assert in_process("eval", "verify", old.path).returncode == 1


def test_it_is_resumed_on_its_own_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A newer version may compile other samples from the same settings; other settings are another corpus."""
    folder = shutil.copytree(OLD / "finetune", tmp_path / "finetune")
    monkeypatch.chdir(folder)

    def corpus_directory(seq_len: int) -> Path:
        config = RunConfig.of(model="model", data="data.jsonl", seq_len=seq_len, out="run", corpora="corpora")
        return Job.resolve(config, LaunchOptions()).corpus_directory()

    assert corpus_directory(128) == folder.resolve() / "run" / "corpus"
    assert corpus_directory(64).parent == Path("corpora")
    shutil.rmtree(folder / "run" / "checkpoints")
    assert corpus_directory(128).parent == Path("corpora")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            "--batch_size 4 --ranks_per_node 3",
            "run: reads batches of 4 samples, which 3 ranks cannot share",
        ),
        (
            "--batch_size 8 --ranks_per_node 3",
            "--batch_size 8: run reads batches of 4 samples, which never",
        ),
        ("--batch_size 4 --ranks_per_node 2", ""),
    ],
)
def test_ranks_and_batches_of_a_run_that_is_resumed(
    flags: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(shutil.copytree(OLD / "finetune", tmp_path / "finetune"))
    usual = ["--model", "model", "--data", "data.jsonl", "--seq_len", "128", "--steps", "24", "--out", "run"]
    code, message = outcome(["plan", "finetune", *usual, *flags.split()])
    assert (code, message[: len(line)]) == (BAD_INPUT if line else 0, line), message


def test_settings_of_an_older_version_mean_the_same() -> None:
    """It kept byte-order marks, and wrote nothing about chats."""
    older = {"version": 1, "sets": [{"template": ["t.txt", "\ufeff{instruction}"]}], "seq_len": 64}
    newer = {"version": 3, "sets": [{"template": ["t.txt", "{instruction}"]}], "seq_len": 64}
    chat = {"chat": {"version": 2, "date": "2024-07-26"}}
    assert same_but_version(older, newer)
    assert same_but_version(older, newer | chat)
    assert same_but_version(older | chat, newer | chat)
    assert same_but_version(older | chat, newer | {"chat": {"version": 3, "date": "2024-07-26"}})
    assert not same_but_version(older | chat, newer)
    assert not same_but_version(older | chat, newer | {"chat": {"version": 2, "date": "2025-01-01"}})
    assert not same_but_version(older, newer | {"seq_len": 65})
    assert not same_but_version(older, newer | {"sets": [{"template": ["t.txt", "{instruction} "]}]})
    assert not same_but_version(older, newer | {"sets": newer["sets"] * 2})
    assert not same_but_version(older | {"sets": older["sets"] * 2}, newer)


def test_settings_without_the_kinds_of_files_mean_the_same() -> None:
    """A run that has begun keeps its corpus; once the kinds are written, other kinds are another corpus."""
    before: dict[str, Any] = {"version": 3, "sets": [{"name": "a"}, {"name": "b"}]}
    after: dict[str, Any] = {"version": 3, "sets": [{"name": "a"}, {"name": "b", "kinds": [".txt"]}]}
    assert same_but_version(before, after)
    assert not same_but_version(after, before)
    assert not same_but_version(
        after, {"version": 3, "sets": [{"name": "a"}, {"name": "b", "kinds": [".txt", ".json"]}]}
    )


@pytest.mark.slow
@pytest.mark.parametrize("old", ["finetune", pytest.param("pretrain", marks=pytest.mark.long)], indirect=True)
def test_it_is_trained_to_its_end(old: OldRun, in_process: Program) -> None:
    """The same command compiles the same corpus, resumes at step 10, and ends like the old version."""
    before = old.rows()
    assert json.loads((old.path / "record/head.json").read_text())["head"] == old.final["stopped"]["head"]
    result = again(old.folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"finished at step {old.final['steps']}" in result.stdout
    head = json.loads((old.path / "record/head.json").read_text())
    assert (head["step"], head["head"]) == (old.final["steps"], old.final["head"])
    assert old.rows()[: len(before)] == before  # no batch was read twice
    assert json.loads((old.path / "manifest.json").read_text())["identity"] == old.final["identity"]
    assert json.loads((old.path / "corpus" / "corpus.json").read_text())["hash"] == old.final["corpus_hash"]
    assert "verified" in in_process("eval", "verify", old.path, check=True).stdout
    assert "nothing to do" in again(old.folder).stdout
    in_process("eval", "report", old.path, check=True)
    assert (old.path / "report" / "index.html").stat().st_size > 1000


def again(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command that created the run, in the folder of its relative paths."""
    python, *words = shlex.split((folder / "COMMAND.txt").read_text())
    assert python == "python"
    variables = os.environ | {"PYTHONPATH": str(OLD.parents[2])}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False
    )
