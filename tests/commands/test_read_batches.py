"""`read --batch` and `--csv`: each answer is computed a second time from corpus, order or source."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from support.reading import BATCH, STEPS, Ask

from wellread.checkpoint import list_checkpoints
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.record.history import History
from wellread.record.reader import Record
from wellread.run import RunDirectory


def test_batch_prints_every_slot_as_it_was_read(
    ask: Ask, tiny_run: RunDirectory, history: History, texts: list[str]
) -> None:
    printed = ask("--batch", 7)
    rows = Record.open(tiny_run.record).table(batches=(7, 8)).to_pylist()
    heads = [line for line in printed.splitlines() if line.startswith("batch 7 slot ")]
    assert len(heads) == BATCH
    for slot, (row, head) in enumerate(zip(rows, heads, strict=True)):
        assert head.startswith(f"batch 7 slot {slot}  sample {row['sample_id']}  sample:")
        assert f"loss {row['loss']:.4f}" in head
        assert all(f"    {line}".rstrip() in printed for line in texts[row["sample_id"]].split("\n"))


def test_jsonl_has_one_object_per_sample(ask: Ask, tmp_path: Path, corpus: Corpus, history: History) -> None:
    ask("--batch", "3:5", "--jsonl", tmp_path / "out.jsonl")
    objects = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(o["batch_id"], o["slot"]) for o in objects] == [(b, s) for b in (3, 4) for s in range(BATCH)]
    assert [o["sample_id"] for o in objects] == history.order.batches(3, 5).ravel().tolist()
    source = corpus.samples()["rows"].to_pylist()
    assert all(o["rows"] == source[o["sample_id"]] and o["n_tokens"] > o["n_targets"] > 0 for o in objects)


def test_save_writes_token_ids_padded_with_minus_one(
    ask: Ask, tmp_path: Path, corpus: Corpus, history: History
) -> None:
    ask("--batch", "3:5", "--save", tmp_path / "out.npy")
    ids, array = history.order.batches(3, 5).ravel(), np.load(tmp_path / "out.npy")
    assert array.shape == (2 * BATCH, corpus.lengths(ids).max())
    for row, sample_id in zip(array, ids, strict=True):
        assert row[row >= 0].tolist() == corpus.tokens(sample_id).tolist()
    assert ((array == -1).sum(axis=1) == array.shape[1] - corpus.lengths(ids)).all()


def test_call_gives_one_line_per_batch(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history: History, texts: list[str]
) -> None:
    (tmp_path / "my_counts.py").write_text(
        "def words(batch):\n    return [batch.batch_id, sum(len(t.split()) for t in batch.texts)]\n"
        "def bad(batch):\n    return {1, 2}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    lines = [json.loads(line) for line in ask("--batch", "2:5", "--call", "my_counts:words").splitlines()]
    assert lines == [[b, sum(len(texts[i].split()) for i in history.order.batch(b))] for b in (2, 3, 4)]
    with pytest.raises(UserError, match="batch 2: did not return a JSON value"):
        ask("--batch", "2", "--call", "my_counts:bad", "--jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    for name, error in {
        "nowhere:f": "no module nowhere",
        "my_counts:g": "has no function g",
        "f": "MODULE:FUN",
    }.items():
        with pytest.raises(UserError, match=error):
            ask("--batch", "2", "--call", name)


def test_csv_has_one_line_per_batch(ask: Ask, tmp_path: Path, tiny_run: RunDirectory, corpus: Corpus) -> None:
    lines = list(csv.DictReader(io.StringIO(ask("--csv"))))
    assert [int(line["batch_id"]) for line in lines] == list(range(STEPS))
    assert sum(int(line["tokens"]) for line in lines) == list_checkpoints(tiny_run.checkpoints)[-1].tokens
    table = Record.open(tiny_run.record).table(batches=(9, 10))
    loss, weights = table["loss"].to_numpy().astype(np.float64), table["n_targets"].to_numpy()
    assert float(lines[9]["loss"]) == pytest.approx((loss * weights).sum() / weights.sum(), abs=1e-6)
    assert float(lines[9]["mean_n_targets"]) == pytest.approx(weights.mean(), abs=1e-6)
    ask("--batch", "3:5", "--csv", tmp_path / "b.csv")
    assert [line.split(",")[0] for line in (tmp_path / "b.csv").read_text().splitlines()] == ["batch_id", "3", "4"]


def test_future_batches_come_from_the_order(copied_run: RunDirectory, ask: Ask, history: History) -> None:
    manifest = json.loads(copied_run.manifest_file.read_text())
    manifest["identity"]["steps"] = 100  # as if the run was stopped at step 12
    copied_run.manifest_file.write_text(json.dumps(manifest))
    printed = ask("--batch", 99, of=copied_run.path)
    assert "not read yet" in printed.splitlines()[0]
    sample_ids = [int(line.split()[5]) for line in printed.splitlines() if line.startswith("batch 99 slot ")]
    assert sample_ids == history.order.batch(99).tolist()
    places = [[str(x) for x in place] for place in history.order.locate(sample_ids[0], batches=100)]
    lines = [line.split() for line in ask("--sample", sample_ids[0], of=copied_run.path).splitlines()[3:]]
    assert [line[:2] for line in lines] == places
    assert lines[-1][:2] == ["99", "0"]
    assert lines[-1][-3:] == ["will", "be", "read"]
