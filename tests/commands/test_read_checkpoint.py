"""`read --checkpoint` and `--diff`: each answer is computed a second time from corpus, order or source."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter

import numpy as np
import pyarrow.parquet
import pytest
from support.reading import BATCH, Ask, value

from wellread.checkpoint import list_checkpoints
from wellread.corpus.read import Corpus
from wellread.record.reader import Record
from wellread.run import RunDirectory


def test_checkpoint_shows_what_it_has_read(ask: Ask, tiny_run: RunDirectory, corpus: Corpus) -> None:
    printed = ask("--checkpoint", "step-8")
    ids = Record.open(tiny_run.record).sample_ids((0, 8))
    checkpoint = next(c for c in list_checkpoints(tiny_run.checkpoints) if c.step == 8)
    assert value(printed, "samples").startswith(f"{len(set(ids.tolist()))} distinct of {corpus.n_trainable} trainable")
    assert value(printed, "readings") == "128"
    assert value(printed, "tokens") == f"{corpus.lengths(ids).sum():,}" == f"{checkpoint.tokens:,}"
    assert value(printed, "targets") == f"{corpus.n_targets(ids).sum():,}"
    assert value(printed, "epochs") == f"{128 / corpus.n_trainable:.4f}"
    assert value(printed, "since the previous checkpoint").startswith("batches 4:8, 64 readings of 64 samples")
    assert value(printed, "record head") == checkpoint.head
    assert ask("--checkpoint", "8") == printed
    assert value(ask(), "step") == "12 of 12"


def test_checkpoint_counts_categories_and_means_of_metrics(ask: Ask, tiny_run: RunDirectory, corpus: Corpus) -> None:
    printed = ask("--checkpoint", 8)
    ids = Record.open(tiny_run.record).sample_ids((0, 8))
    table = corpus.samples()
    categories = table["category"].to_pylist()
    expected = Counter(categories[i] for i in ids)
    rows = {line.split()[1]: line.split() for line in printed.splitlines() if line.startswith("sample ")}
    assert {name: int(row[3]) for name, row in rows.items()} == dict(expected)
    assert sum(int(row[4].replace(",", "")) for row in rows.values()) == corpus.lengths(ids).sum()
    assert value(printed, "n_targets").split()[0] == f"{table['n_targets'].to_numpy()[ids].mean():.4f}"
    assert value(printed, "n_targets").split()[1] == f"{table['n_targets'].to_numpy()[ids[64:]].mean():.4f}"


def test_a_metric_is_averaged_without_missing_values(copied_run: RunDirectory, ask: Ask) -> None:

    grades = [float(i) if i % 3 else None for i in range(Corpus.open(copied_run.corpus).n)]
    path = copied_run.corpus / "samples.parquet"
    table = pyarrow.parquet.read_table(path).append_column("grade", pyarrow.array(grades))
    pyarrow.parquet.write_table(table, path)
    meta = json.loads((copied_run.corpus / "corpus.json").read_text())
    meta["sizes"]["samples.parquet"] = path.stat().st_size
    (copied_run.corpus / "corpus.json").write_text(json.dumps(meta))
    ids = Record.open(copied_run.record).sample_ids((0, 4))
    expected = np.mean([i for i in ids if i % 3])
    assert value(ask("--checkpoint", 4, of=copied_run.path), "grade").split()[0] == f"{expected:.4f}"
    lines = list(csv.DictReader(io.StringIO(ask("--csv", of=copied_run.path))))
    assert np.mean([i for i in ids[:BATCH] if i % 3]) == pytest.approx(float(lines[0]["mean_grade"]), abs=1e-6)


def test_diff_shows_what_the_second_read_in_addition(ask: Ask, tiny_run: RunDirectory) -> None:
    printed = ask("--diff", "step-4", "step-12")
    record = Record.open(tiny_run.record)
    old, new = set(record.sample_ids((0, 4)).tolist()), set(record.sample_ids((4, 12)).tolist())
    assert value(printed, "new samples").startswith(f"{len(new - old)} ")
    assert value(printed, "between").startswith("batches 4:12, 128 readings")
    assert value(printed, "read again").startswith(f"{len(new & old)} ")
