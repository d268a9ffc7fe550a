"""Output of membership without a run: the table on the terminal, and the files below `--out`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.membership.compared import MEMBERS
from eval.section import with_interval
from eval.separation import ALPHAS, Floats, Ints

if TYPE_CHECKING:
    from wellread.results import Result

HEADS = ["model", "score", "AUC", "labels shuffled", *(f"TPR at {100 * alpha:g}% FPR" for alpha in ALPHAS)]


def show(results: Sequence[Result]) -> None:
    """Print one row for each model and score, and one for each gate."""
    from wellread.terminal import say_narrow_table

    cells = {(each.model, each.task, each.group, each.metric): each for each in results}
    rows: list[list[object]] = []
    for model, task in dict.fromkeys((each.model, each.task) for each in results if each.metric == "auc"):
        rates = [cells.get((model, task, MEMBERS, f"tpr_at_fpr_{alpha:g}")) for alpha in ALPHAS]
        p_value, shuffled = cells.get((model, task, MEMBERS, "p_holm")), cells.get((model, task, "shuffled", "auc"))
        rows.append(
            [
                model or "none",
                task.removeprefix("membership/") + (f" (p Holm {p_value.value:.2g})" if p_value else ""),
                with_interval(cells[model, task, MEMBERS, "auc"]) if (model, task, MEMBERS, "auc") in cells else None,
                with_interval(shuffled) if shuffled else None,
                *(rate.value if rate else None for rate in rates),
            ]
        )
    say_narrow_table(HEADS, rows)


def write(folder: Path, results: Sequence[Result], curves: Sequence[Mapping[str, Any]], *, csv: bool) -> None:
    """Write `membership.parquet`, `roc.parquet` and the figure `roc.svg`, and with `csv` the tables as CSV."""
    import pyarrow as pa

    from wellread import results as tables
    from wellread.plots.membership import rocs
    from wellread.results import write_table

    tables.write(folder / "membership.parquet", results)
    names = list(curves[0])
    columns = {name: np.concatenate([np.asarray(curve[name]) for curve in curves]) for name in names}
    write_table(folder / "roc.parquet", pa.table(columns))
    first = curves[0]["score"][0]
    by_model = {curve["model"][0]: (curve["fpr"], curve["tpr"]) for curve in curves if curve["score"][0] == first}
    (folder / "roc.svg").write_bytes(rocs(by_model).svg())
    if csv:
        for name in ("membership", "roc"):
            _write_csv(folder / f"{name}.parquet")
    print(f"all results: {folder / 'membership.parquet'}")


def _write_csv(path: Path) -> None:
    import pyarrow.csv

    from wellread.files import replacing
    from wellread.results import read_table

    with replacing(path.with_suffix(".csv")) as file:
        pyarrow.csv.write_csv(read_table(path), file)


def classify(
    folder: Path, ids: Ints, results: Sequence[Result], values: Mapping[str, Mapping[str, Floats]], *, csv: bool
) -> None:
    """Write `classified.parquet`: whether each text of `--threshold` is called a member, at each threshold.

    `ids` are the places of these texts among the scored ones, int64[n].
    """
    import pyarrow as pa

    from wellread.results import write_table

    rows: list[dict[str, object]] = []
    for each in results:
        if each.group == MEMBERS and each.metric.startswith("threshold_at_fpr_"):
            scores = values[each.model][each.task.removeprefix("membership/")][ids]
            rate = float(each.metric.removeprefix("threshold_at_fpr_"))
            for place, value in enumerate(scores.tolist()):
                about = {"row": place, "model": each.model, "score": each.task.removeprefix("membership/")}
                member = None if np.isnan(value) else value > each.value
                rows.append(about | {"fpr": rate, "threshold": each.value, "value": value, "member": member})
    path = folder / "classified.parquet"
    write_table(path, pa.Table.from_pylist(rows))
    if csv:
        _write_csv(path)
    print(f"classified: {path}")
