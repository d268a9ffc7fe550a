"""Measuring losses of sealed samples at every step changes nothing in a run, on one and two ranks, also with ZeRO-3."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from support.programs import Program

from wellread.checkpoint import list_checkpoints
from wellread.corpus.read import Corpus
from wellread.record.reader import Record
from wellread.record.verify import verify
from wellread.run import RunDirectory
from wellread.train.rotation import REPEATS

EVERY_STEP = ["--eval_every", 1, "--eval_samples", 4]


def outcome(run: RunDirectory) -> tuple[str, list[tuple[bytes, float]]]:
    """Head of the record; weights and holdout loss of each checkpoint."""
    ends = [
        ((each.model / "model.safetensors").read_bytes(), each.manifest["holdout_loss"])
        for each in list_checkpoints(run.checkpoints)
    ]
    return Record.open(run.record).head, ends


def check_measured(run: RunDirectory, steps: int, corpus: Corpus) -> None:
    """Each step has four samples of four documents, and as many documents take turns as are measured four times."""
    table = Record.open(run.record).sealed()
    assert table["step"].to_pylist() == [step for step in range(steps + 1) for _ in range(4)]
    documents = corpus.samples()["document"].to_numpy()[table["sample_id"].to_numpy()]
    assert all(len(set(four)) == 4 for four in documents.reshape(-1, 4).tolist())
    times = Counter(documents.tolist())
    assert len(times) == 4 * max(1, (steps + 1) // REPEATS)
    assert max(times.values()) - min(times.values()) <= 1
    assert verify(run) == []


@pytest.mark.slow
def test_measuring_changes_nothing(
    program: Program, tiny_run: RunDirectory, corpus: Corpus, corpora: Path, tmp_path: Path
) -> None:
    """The run of `tiny_run`, ddp on two ranks, measured at every step."""
    flags = ["--steps", 12, "--save_every", 4, "--keep_states", 4, "--ranks_per_node", 2, "--generations", 0]
    out = ["--out", tmp_path / "run", "--corpora", corpora]
    printed = program("launch", "run", "finetune", *flags, *EVERY_STEP, *out, check=True).stdout
    run = RunDirectory.open(tmp_path / "run")
    assert outcome(run) == outcome(tiny_run)
    check_measured(run, 12, corpus)
    at_checkpoints = Record.open(tiny_run.record).sealed().to_pylist()
    values = {(row["step"], row["sample_id"]): row["loss"] for row in at_checkpoints}
    compared = [row for row in Record.open(run.record).sealed().to_pylist() if row["step"] in (0, 4, 8, 12)]
    for row in compared:  # the same samples in other micro-batches: bf16 rounds them in another way
        assert row["loss"] == pytest.approx(values[row["step"], row["sample_id"]], rel=2e-2)
    assert printed.count("holdout loss") == 4  # the mean over the fixed samples is measured only at checkpoints


@pytest.mark.long
@pytest.mark.parametrize(("strategy", "ranks"), [("ddp", 1), ("zero3", 2)])
def test_measuring_changes_nothing_elsewhere(
    strategy: str, ranks: int, program: Program, small_model: Path, corpus: Corpus, corpora: Path, tmp_path: Path
) -> None:
    flags = ["--model", small_model, "--data", "sample", "--seq_len", 64, "--steps", 6, "--save_every", 3]
    flags += ["--strategy", strategy, "--ranks_per_node", ranks, "--batch_size", 8, "--corpora", corpora]
    for name, more in (("without", []), ("with", EVERY_STEP)):
        program("launch", "run", "finetune", *flags, *more, "--out", tmp_path / name, check=True)
    runs = [RunDirectory.open(tmp_path / name) for name in ("without", "with")]
    assert outcome(runs[0]) == outcome(runs[1])
    check_measured(runs[1], 6, Corpus.open(runs[1].corpus))
