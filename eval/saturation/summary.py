"""The summary of a run: one row per checkpoint with what it writes, and with what it read until then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.saturation.inputs import InputMeans
    from wellread.results import Result

READ = "read "
"""Beginning of the names of columns of what was read; the span follows, and after a slash the metric."""


def summary(results: Sequence[Result], inputs: Mapping[str, InputMeans]) -> Any:
    """The summary as an Arrow table.

    Columns are `step`, `tokens`; of each output metric GROUP/METRIC and its interval GROUP/METRIC_low, …_high; of each
    input metric `read interval/METRIC` and `read cumulative/METRIC`. Undefined values are null.

    Parameters
    ----------
    results
        Output metrics at all checkpoints, the group `reference` with the true continuations.
    inputs
        Input metrics, one value per step of the results.
    """
    import pyarrow as pa

    rows: dict[int, dict[str, Any]] = {}
    for result in sorted(results, key=lambda result: result.step):
        row = rows.setdefault(result.step, {"step": result.step, "tokens": result.tokens})
        name = f"{result.group}/{result.metric}"
        row[name] = result.value
        if result.ci_low is not None:
            row |= {f"{name}_low": result.ci_low, f"{name}_high": result.ci_high}
    for place, row in enumerate(rows.values()):
        for name, means in inputs.items():
            for span, values in (("interval", means.interval), ("cumulative", means.cumulative)):
                row[f"{READ}{span}/{name}"] = None if values[place] != values[place] else float(values[place])
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return pa.table({name: [row.get(name) for row in rows.values()] for name in names})
