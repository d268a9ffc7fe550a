"""The table of single samples, `eval/membership-samples.parquet`: the group and all scores of each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval.separation import Floats, Ints

if TYPE_CHECKING:
    import pyarrow as pa

    from wellread.run import RunDirectory

FILE = "membership-samples.parquet"


def sample_rows(step: int, groups: Mapping[str, Ints], ids: Ints, values: Mapping[str, Floats]) -> pa.Table:
    """One row for each sample of each group at `step`: step, group, sample_id, and one column for each score.

    Parameters
    ----------
    ids
        The samples of `values`, int64[n], ascending.
    """
    import pyarrow as pa

    names = np.repeat(list(groups), [members.size for members in groups.values()])
    samples = np.concatenate(list(groups.values()))
    rows = np.searchsorted(ids, samples)
    columns = {name: pa.array(column[rows]) for name, column in values.items()}
    fixed = {"step": pa.array(np.full(samples.size, step)), "group": pa.array(names.tolist(), pa.string())}
    return pa.table({**fixed, "sample_id": pa.array(samples), **columns})


def write_samples(run: RunDirectory, tables: Sequence[pa.Table]) -> None:
    """Write the rows of all checkpoints; this replaces the previous table."""
    import pyarrow as pa

    from wellread.results import write_table

    if tables:
        write_table(run.eval / FILE, pa.concat_tables(tables, promote_options="default"))


def read_scores(run: RunDirectory, step: int, score: str) -> dict[str, Floats]:
    """Values of one score by group, defined and finite ones, at one checkpoint; empty when they were not computed."""
    import pyarrow.compute as pc

    from wellread.results import read_table

    if not (run.eval / FILE).exists():
        return {}
    table = read_table(run.eval / FILE)
    if score not in table.column_names:
        return {}
    table = table.filter(pc.equal(table["step"], step))
    groups, values = np.array(table["group"].to_pylist()), table[score].to_numpy()
    return {name: values[(groups == name) & np.isfinite(values)] for name in np.unique(groups).tolist()}
