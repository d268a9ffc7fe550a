"""Means of text metrics of what a run has read, computed from the decoded text of each reading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from eval.saturation.inputs import input_means
from eval.saturation.measured import measure, metrics_of
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.data.text_metrics import NAMES
from wellread.data.text_metrics import measure as measure_texts
from wellread.record.reader import Record
from wellread.run import RunDirectory


def compare_means(run: RunDirectory, steps: Sequence[int]) -> int:
    """Compare input means at these steps, ascending, with those of the decoded texts; return the number of readings.

    The texts of the run are measured and kept, unless its corpus has text metrics.
    """
    corpus, record = Corpus.open(run.corpus), Record.open(run.record)
    if not metrics_of(run, corpus):
        measure(run, corpus, record)
    means = input_means(record, steps, metrics_of(run, corpus))
    tokenizer = Tokenizer.load(corpus.tokenizer)
    batches, texts = [], []
    for row in record.table(columns=["batch_id", "sample_id"], batches=(0, steps[-1])).to_pylist():
        text = tokenizer.decode(corpus.tokens(row["sample_id"]).tolist())
        for token in tokenizer.backend.all_special_tokens:
            text = text.replace(token, "")
        batches.append(row["batch_id"])
        texts.append(text)
    values, batch = measure_texts(texts), np.array(batches)
    for place, (start, stop) in enumerate(zip([0, *steps], steps, strict=False)):
        expected = values[(start <= batch) & (batch < stop)].mean(axis=0)
        total = values[batch < stop].mean(axis=0)
        for column, name in enumerate(NAMES):
            assert means[name].interval[place] == pytest.approx(expected[column], rel=1e-4, abs=1e-6)
            assert means[name].cumulative[place] == pytest.approx(total[column], rel=1e-4, abs=1e-6)
    return len(texts)
