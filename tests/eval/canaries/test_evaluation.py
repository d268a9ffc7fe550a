"""The evaluation `canaries` on a run of 12 samples, of which two are canaries; its model is replaced by columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_evaluations import make_run

from eval import kept
from eval.__main__ import main
from eval.canaries.evaluation import Canaries
from eval.groups import Groups
from wellread.corpus.canaries import Texts
from wellread.errors import UserError
from wellread.results import Result, read
from wellread.run import RunDirectory
from wellread.tokens import Tokens

N = 19
TEXTS = Texts(
    sequences=[np.array([1, 2, 3, 4 + i], dtype=np.uint32) for i in range(2 + N)],
    repeats=np.array([1, 1] + [0] * N),
    control=np.arange(2 + N) >= 2,
    rows=np.arange(2 + N),
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """Batch 3 reads both canaries, samples 6 and 7.

    Control i has mean log p -i. Canary 0 has -10.5 before it is read and then 1; canary 1 has -18 always. At step 4,
    canary 0 has ranks 0 in its second half.
    """

    def run_model(checkpoint: Any, corpus: Any, ids: Any, how: Any, progress: Any) -> Iterator[Tokens]:
        assert how.variant == "canaries"
        assert [corpus.tokens(i).tolist() for i in (0, 20)] == [[1, 2, 3, 4], [1, 2, 3, 24]]
        progress(ids.size)
        was_read = checkpoint.step > 3
        means = np.array([1.0 if was_read else -10.5, -18.0, *(-np.arange(N))])[ids]
        rank = np.zeros((ids.size, 3), dtype=np.int32)
        rank[:, 0] = 5  # the second token, which is in the first half
        rank[~((ids == 0) & was_read), 2] = 1
        zeros = np.zeros(3 * ids.size)
        columns = {"logp": np.repeat(means, 3), "rank": rank.ravel(), "mu": zeros, "sigma": zeros, "top40": zeros}
        yield Tokens(sample_id=ids, bounds=3 * np.arange(ids.size + 1), **columns)

    monkeypatch.setattr(kept, "_run_model", run_model)
    return make_run(tmp_path / "run", canaries=TEXTS)


def rows(run: RunDirectory) -> dict[tuple[int, str, str], Result]:
    return {(r.step, r.group, r.metric): r for r in read(run.eval / "canaries.parquet")}


def test_results_by_hand(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["canaries", str(run.path), "--steps", "2,4"]) == 0
    of = rows(run)
    assert {row.task for row in of.values()} == {"canaries/repeats_1"}
    assert of[2, "sample:6", "p"].value == pytest.approx(12 / 20)  # controls 0 to 10 are higher
    assert of[4, "sample:6", "p"].value == 1 / 20
    assert of[4, "sample:7", "p"].value == 1  # a tie with the last control counts as higher
    assert of[4, "sample:6", "exposure"].value == pytest.approx(np.log2(20))
    assert (of[4, "all", "found"].value, of[4, "all", "found"].n) == (0.5, 2)
    assert (of[2, "all", "found"].value, of[2, "all", "extractible"].value) == (0, 0)
    assert of[4, "all", "extractible"].value == of[4, "age:0-10", "extractible"].value == 0.5
    assert (of[4, "sample:6", "extractible"].value, of[4, "sample:7", "extractible"].value) == (1, 0)
    assert (of[4, "sample:6", "readings"].value, of[4, "sample:6", "steps_since"].value) == (1, 1)
    assert of[2, "sample:6", "readings"].value == 0
    assert (2, "sample:6", "steps_since") not in of
    assert of[2, "unread", "p"].value == of[2, "all", "p"].value > 0.05
    assert (4, "unread", "p") not in of
    assert of[4, "all", "undefined"].value == 0
    (picture,) = Canaries.pictures([*of.values()])
    assert picture.alt.endswith("At step 4: 1 reading: 1 of 2 [0.01, 0.99].")
    printed = capsys.readouterr()
    assert "1 of 2 [0.01, 0.99]" in printed.out
    assert "canaries: 2, against 19 controls: the smallest p of one canary is 0.05; registered as " in printed.err


def test_canaries_are_in_no_group(run: RunDirectory) -> None:
    groups = Groups.of(run, 100, 0).at(2)
    assert {name: ids.tolist() for name, ids in groups.items()} == {
        "read": [0, 1, 2, 3], "unread": [4, 5], "sealed": [8, 9, 10, 11],
    }  # fmt: skip


def test_a_changed_control_is_refused(run: RunDirectory) -> None:
    changed = [*TEXTS.sequences[:-1], np.array([1, 2, 3, 5], dtype=np.uint32)]
    Texts(changed, TEXTS.repeats, TEXTS.control, TEXTS.rows).write(run.corpus)
    meta = (run.corpus / "corpus.json").read_text()
    size = (run.corpus / "canaries.parquet").stat().st_size
    content = json.loads(meta)
    content["sizes"]["canaries.parquet"] = size
    (run.corpus / "corpus.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="not the registered canaries and controls; run wellread verify"):
        main(["canaries", str(run.path)])


def test_a_run_without_canaries(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="its corpus has no canaries; train with --canaries"):
        main(["canaries", str(run.path)])
