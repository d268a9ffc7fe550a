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


def test_samples_without_a_value_are_left_out_of_this_metric_only(tmp_path: Path) -> None:
    write_record(tmp_path)
    record = Record.open(tmp_path)
    rows = record.table(columns=["batch_id", "sample_id"]).to_pylist()
    square, under = np.arange(10.0) ** 2, -np.arange(10.0)  # log p of a sample with i + 1 targets
    partly, partly_under = (np.where(np.arange(10) == 3, np.nan, of) for of in (square, under))
    metrics, likelihoods = {"square": square, "partly": partly, "none": np.full(10, np.nan)}, {"u": partly_under}
    means = input_means(record, [0, 2, 5], metrics, likelihoods)
    assert 3 in {row["sample_id"] for row in rows}
    for start, stop, place, of in ((0, 2, 1, "interval"), (2, 5, 2, "interval"), (0, 5, 2, "cumulative")):
        ids = [row["sample_id"] for row in rows if start <= row["batch_id"] < stop]
        defined = [i for i in ids if i != 3]
        numbers = {name: getattr(each, of)[place] for name, each in means.items()}
        assert numbers["square"] == pytest.approx(np.mean([i**2 for i in ids]))
        assert numbers["partly"] == pytest.approx(np.mean([i**2 for i in defined]))
        assert numbers["u"] == pytest.approx(math.exp(sum(defined) / sum(i + 1 for i in defined)))
        assert np.isfinite(numbers["loss"])
        assert np.isnan(numbers["none"])


def test_means_are_those_of_the_decoded_text_of_all_batches(copied_run: RunDirectory) -> None:
    assert compare_means(copied_run, [4, 12]) == 12 * 16
