from pathlib import Path

import pyarrow as pa
import pytest

from wellread import results
from wellread.errors import UserError
from wellread.results import Result

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
    results.write_table(path, pa.table({"sample_id": [1]}))
    with pytest.raises(UserError, match=r"not a result table \(no column run, model, step"):
        results.read(path)
