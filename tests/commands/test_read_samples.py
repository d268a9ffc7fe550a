"""`read --sample`, `--row` and `--text`: each answer is computed a second time from corpus, order or source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.reading import Ask

from wellread.corpus.read import Corpus
from wellread.record.history import History


def test_past_and_future_readings_are_distinguished(ask: Ask, history: History) -> None:
    sample_id = int(history.order.batch(6)[3])
    assert "read 1 time by step 12\n" in ask("--sample", sample_id)
    printed = ask("--sample", sample_id, "--checkpoint", "step-4")
    assert "read 0 times by step 4, 1 more to come by step 12" in printed
    assert printed.splitlines()[-1].split() == ["6", "3", "0", "7", "-", "will", "be", "read"]


def test_sealed_samples_are_named(ask: Ask, corpus: Corpus) -> None:
    assert "sealed: never read" in ask("--sample", corpus.n - 1)


@pytest.mark.parametrize("name", ["sample", "sample.jsonl"])
def test_row_leads_to_its_sample(ask: Ask, corpus: Corpus, name: str) -> None:
    rows = corpus.samples()["rows"].to_pylist()
    assert ask("--row", f"{name}:{rows[77][0]}") == ask("--sample", 77)


def test_text_names_samples_and_readings(ask: Ask, history: History, texts: list[str], tmp_path: Path) -> None:
    sample_id = int(history.order.batch(5)[2])
    piece = texts[sample_id][-60:-20]
    printed = ask("--text", piece)
    assert f"sample {sample_id}  sample:" in printed
    assert "    batch 5 slot 2  epoch 0  loss " in printed
    assert printed.splitlines()[-1].endswith("read 1 time by step 12, in 1 batch from 5 to 5")
    assert "read 0 times by step 4" in ask("--text", piece, "--checkpoint", "4").splitlines()[-1]
    ask("--text", piece, "--jsonl", tmp_path / "hits.jsonl")
    (hit,) = map(json.loads, (tmp_path / "hits.jsonl").read_text().splitlines())
    assert hit["sample_id"] == sample_id
    assert [(r["batch_id"], r["slot"]) for r in hit["readings"]] == [(5, 2)]
    assert ask("--text", "xyzzy plugh") == f"none of {history.reader.n} samples contains it\n"
