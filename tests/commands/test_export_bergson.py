"""``wellread export RUN --format bergson``, compared with the record, the corpus and the schedule of the run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from support.commands import OLD_RUN

from wellread import open_run
from wellread.__main__ import main
from wellread.commands import export_bergson
from wellread.errors import UserError
from wellread.planning.rate import planned_rate

RUN = OLD_RUN / "finetune/run"


@pytest.fixture
def exported(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(root)
    assert main(["export", str(RUN), "--format", "bergson", "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


def test_one_file_describes_checkpoints_rates_and_data(exported: Path, root: Path) -> None:
    settings = yaml.safe_load((exported / "bergson.yaml").read_text())["steps"][0]["approxunrolling"]
    unrolling, index = settings["approx_unrolling_cfg"], settings["index_cfg"]
    run = open_run(root / RUN)
    models = [str(root / RUN / "checkpoints" / f"step-{step:08}" / "model") for step in (8, 10)]
    assert unrolling["checkpoints"] == models
    assert index["model"] == models[-1]
    assert (unrolling["segments"], unrolling["step_size_list"]) == (2, [8, 2])
    rates = [planned_rate(batch, run.plan, run.config.optim) for batch in range(10)]
    assert unrolling["lr_list"] == pytest.approx([np.mean(rates[:8]), np.mean(rates[8:])])
    as_they_are = {"split": "train", "chunk_length": 0}
    assert index["data"] == {"dataset": str(exported / "train"), **as_they_are}
    assert unrolling["query"] == {"dataset": str(exported / "query"), **as_they_are}
    assert settings["hessian_cfg"]["ev_correction"] is True
    assert "query_aggregation" not in unrolling  # bergson 1 moved it, and refuses keys that it does not know


def test_samples_are_in_the_order_of_their_first_reading(exported: Path, root: Path) -> None:
    run = open_run(root / RUN)
    recorded = run.record.table(["batch_id", "slot", "sample_id"], (0, 10)).to_pylist()
    recorded.sort(key=lambda row: (row["batch_id"], row["slot"]))
    readings = pq.read_table(exported / "readings.parquet").to_pylist()
    assert [tuple(row.values()) for row in readings] == [tuple(row.values()) for row in recorded]
    ids = [row["sample_id"] for row in recorded]
    rows = pq.read_table(exported / "train/data.parquet").to_pylist()
    assert [row["sample_id"] for row in rows] == list(dict.fromkeys(ids))
    assert {row["sample_id"]: row["times"] for row in rows} == Counter(ids)
    for row in rows[:20]:
        tokens, targets = run.corpus.tokens(row["sample_id"]), run.corpus.targets(row["sample_id"])
        assert row["input_ids"] == tokens.tolist()
        assert row["labels"] == [t if loss else -100 for t, loss in zip(tokens.tolist(), targets, strict=True)]
        assert row["length"] == len(tokens)
        assert row["batch"] == recorded[ids.index(row["sample_id"])]["batch_id"]
    query = pq.read_table(exported / "query/data.parquet")["sample_id"].to_pylist()
    assert query == list(range(run.corpus.n_trainable, run.corpus.n))


def steps_of(checkpoints: list[int], skipped: set[int] = frozenset()) -> list[tuple[list[int], int]]:  # type: ignore[assignment]
    """Steps of the checkpoints, and number of steps, of each segment of a run with these checkpoints."""
    each: Any = [SimpleNamespace(step=step, damage=lambda: "") for step in checkpoints]
    optim = SimpleNamespace(lr=1.0, min_lr=0.1)
    run: Any = SimpleNamespace(
        path="runs/x",
        checkpoints=each,
        plan=SimpleNamespace(warmup_steps=1, steps=1000),
        config=SimpleNamespace(optim=optim),
    )
    batches = np.array([batch for batch in range(checkpoints[-1]) if batch not in skipped])
    segments = export_bergson.segments_of(run, each[-1], {"batch": batches})
    return [([of.step for of in segment.checkpoints], segment.steps) for segment in segments]


def test_segments_have_equally_many_checkpoints_and_all_steps() -> None:
    assert steps_of([0, 5]) == [([5], 5)]
    assert steps_of([0, 2, 4, 6, 9]) == [([4], 4), ([6], 2), ([9], 3)]  # step 2 is left out
    assert steps_of([0, 1, 2, 3, 4, 5, 6]) == [([1, 2], 2), ([3, 4], 2), ([5, 6], 2)]
    assert steps_of([0, 4, 8, 12], {1, 5, 6}) == [([4], 3), ([8], 2), ([12], 4)]
    with pytest.raises(UserError, match="no checkpoint after step 0"):
        steps_of([0])
    with pytest.raises(UserError, match="all batches before step 8 were skipped"):
        steps_of([0, 4, 8, 12], {4, 5, 6, 7})


def test_what_cannot_be_exported(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(root)

    def refusal(name: str) -> str:
        with pytest.raises(UserError) as refused:
            main(["export", name, "--format=bergson", "--out", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()
        return str(refused.value)

    assert "no checkpoint after step 0; give a run that has trained" in refusal(f"{RUN}@step-0")
    assert "no checkpoint step-7" in refusal(f"{RUN}@step-7")
    monkeypatch.setattr("wellread.corpus.read.Corpus.packed", True)
    assert "its samples are packed" in refusal(str(RUN))
    monkeypatch.setattr("wellread.corpus.read.Corpus.packed", False)
    monkeypatch.setattr("wellread.corpus.read.Corpus.n_trainable", open_run(RUN).corpus.n)
    assert "no sealed samples" in refusal(str(RUN))
