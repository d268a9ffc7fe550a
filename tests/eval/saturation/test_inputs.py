"""What was read: means compared with a computation from the decoded text of each batch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from support.decoded import compare_means
from support.records import write_record

from eval.saturation import inputs
from eval.saturation.inputs import input_means
from wellread.record.reader import Record
from wellread.run import RunDirectory


def test_means_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five batches of four from ten samples: each id counts as often as it was read."""
    write_record(tmp_path)
    record = Record.open(tmp_path)
    rows = record.table(columns=["batch_id", "sample_id"]).to_pylist()
    metric = np.arange(10.0) ** 2
    under = -np.arange(10.0)  # log p of a sample with i + 1 targets
    means = input_means(record, [0, 2, 5], {"square": metric}, {"under": under})
    single = input_means(record, range(1, 6), {"square": metric}, {"under": under})
    monkeypatch.setattr(inputs, "BATCHES_AT_ONCE", 2)  # batches 0 and 1, 2 and 3, 4
    for name, values in inputs.batch_means(record, {"square": metric}, {"under": under}).items():
        assert values == pytest.approx(single[name].interval)
    by_batch = [[row["sample_id"] for row in rows if row["batch_id"] == batch] for batch in range(5)]
    assert single["square"].interval == pytest.approx([np.mean(np.square(ids)) for ids in by_batch])
    for place, (start, stop) in enumerate([(0, 0), (0, 2), (2, 5)]):
        ids = [row["sample_id"] for row in rows if start <= row["batch_id"] < stop]
        since_start = [row["sample_id"] for row in rows if row["batch_id"] < stop]
        if not ids:
            assert math.isnan(means["square"].interval[place])
            assert math.isnan(means["square"].cumulative[place])
            continue
        assert means["square"].interval[place] == pytest.approx(np.mean([i**2 for i in ids]))
        assert means["square"].cumulative[place] == pytest.approx(np.mean([i**2 for i in since_start]))
        loss = sum(i / 8 * (i + 1) for i in ids) / sum(i + 1 for i in ids)  # loss i / 8, i + 1 targets
        assert means["loss"].interval[place] == pytest.approx(loss)
        assert means["perplexity"].interval[place] == pytest.approx(math.exp(loss))
        for values, of in ((means["under"].interval, ids), (means["under"].cumulative, since_start)):
            assert values[place] == pytest.approx(math.exp(sum(of) / sum(i + 1 for i in of)))


def test_means_are_those_of_the_decoded_text_of_all_batches(copied_run: RunDirectory) -> None:
    assert compare_means(copied_run, [4, 12]) == 12 * 16
