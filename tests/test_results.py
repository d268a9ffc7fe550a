from pathlib import Path

import numpy as np
import pytest

from wellread import results
from wellread.errors import UserError
from wellread.results import Result
from wellread.scores import Scores, read_scores, write_scores

AUC = Result(
    run="a", model="tiny", step=1200, tokens=5, task="membership/loss", metric="auc", group="read",
    value=0.61234, stderr=0.02, ci_low=0.57, ci_high=0.65, n=1500,
)  # fmt: skip
COUNT = Result(
    run="a", model="tiny", step=0, tokens=0, task="membership/loss", metric="n_sealed", group="read", value=2146, n=7
)


def test_results_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "eval" / "membership.parquet"
    results.write(path, [AUC, COUNT])
    assert results.read(path) == [AUC, COUNT]
    assert [p.name for p in path.parent.iterdir()] == ["membership.parquet"]


def test_the_columns_of_a_result_table(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    results.write(tmp_path / "none.parquet", [])
    names = ", ".join(pq.read_schema(tmp_path / "none.parquet").names)
    assert names == "run, model, step, tokens, task, metric, group, shots, value, stderr, ci_low, ci_high, n"
    assert results.read(tmp_path / "none.parquet") == []


def test_a_file_without_a_result_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(UserError, match=r"x\.parquet: no such file"):
        results.read(path)
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match=r"x\.parquet: not a readable Parquet file"):
        results.read(path)
    scores = Scores(sample_id=np.array([1]), n_targets=np.array([1]), log_likelihood=np.array([0.0]))
    write_scores(path, scores, head="00", checkpoint="11")
    with pytest.raises(UserError, match=r"not a result table \(no column run, model, step"):
        results.read(path)


def test_scores_belong_to_one_head_and_one_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    assert read_scores(path, head="aa", checkpoint="bb") is None
    scores = Scores(sample_id=np.array([2, 5]), n_targets=np.array([4, 0]), log_likelihood=np.array([-6.0, 0.0]))
    write_scores(path, scores, head="aa", checkpoint="bb")
    back = read_scores(path, head="aa", checkpoint="bb")
    assert back is not None
    assert back.sample_id.tolist() == [2, 5]
    assert back.mean[0] == -1.5
    assert np.isnan(back.mean[1])
    assert read_scores(path, head="ab", checkpoint="bb") is None
    assert read_scores(path, head="aa", checkpoint="bc") is None


def test_merged_scores_are_ascending_by_sample() -> None:
    first = Scores(sample_id=np.array([1, 7]), n_targets=np.array([1, 7]), log_likelihood=np.array([-1.0, -7.0]))
    second = Scores(sample_id=np.array([0, 3]), n_targets=np.array([9, 3]), log_likelihood=np.array([-9.0, -3.0]))
    merged = first.merged(second)
    assert merged.sample_id.tolist() == [0, 1, 3, 7]
    assert merged.at(np.array([3, 0])).log_likelihood.tolist() == [-3.0, -9.0]
    assert Scores.empty().merged(first).n_targets.tolist() == [1, 7]
