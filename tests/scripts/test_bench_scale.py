"""The benchmark at scale: verify accepts its run without a training, and its memory does not grow with the record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.scale import LONGEST, curriculum, measure, program, write_rows, write_run
from wellread.config import RunConfig
from wellread.corpus.read import Corpus
from wellread.record.reader import Record
from wellread.record.verify import examine
from wellread.run import RunDirectory

ROOT = Path(__file__).parents[2]
BATCH = 512


def config_of(folder: Path, name: str, steps: int, order: str = "shuffle") -> RunConfig:
    return RunConfig.of(
        model="tiny",
        data=f"alpaca@{folder / 'rows.jsonl'}",
        seq_len=LONGEST,
        corpora=str(folder / "corpora"),
        out=str(folder / name),
        steps=steps,
        batch_size=BATCH,
        strategy="ddp",
        dtype="fp32",
        order=order,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder, and the corpus of its rows."""
    folder = tmp_path_factory.mktemp("scale")
    write_rows(folder / "rows.jsonl", 300)
    flags = [f"--data=alpaca@{folder / 'rows.jsonl'}", "--model=tiny", f"--seq_len={LONGEST}"]
    command = [sys.executable, "-m", "finetune", "prepare", *flags, f"--corpora={folder / 'corpora'}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = (each.parent for each in (folder / "corpora").glob("*/corpus.json"))
    return folder, path


@pytest.mark.long
def test_a_run_without_a_training_is_verified(corpus: tuple[Path, Path]) -> None:
    folder, path = corpus
    for name, order in (("plain", "shuffle"), ("phases", curriculum(folder, 8))):
        run = RunDirectory(write_run(folder / name, config_of(folder, name, 8, order), path, 8))
        result = examine(run)
        assert result.problems == []
        assert (result.batches, result.readings, result.checkpoints) == (8, 8 * BATCH, 2)
        assert Record.open(run.record).sample_ids().max() < Corpus.open(path).n_trainable


@pytest.mark.long
def test_the_memory_of_verify_does_not_grow_with_the_record(corpus: tuple[Path, Path]) -> None:
    """3 million readings of a curriculum, whose list of ids takes 24 MB, need hardly more than a tenth of them."""
    folder, path = corpus
    peaks = []
    for readings in (300_000, 3_000_000):
        steps, name = readings // BATCH, f"run-{readings}"
        run = write_run(folder / name, config_of(folder, name, steps, curriculum(folder, steps)), path, steps)
        peaks.append(measure(name, program("wellread", "verify", run))["peak_mib"])
    assert peaks[1] - peaks[0] < 100, peaks
