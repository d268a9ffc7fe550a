"""One altered byte in a kept table gives an error that names the file, or is as if the table were missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_evaluations import tokens_with

from eval.kept_table import KeptTable, settings_in
from eval.token_store import TokenFile
from wellread import results
from wellread.errors import UserError
from wellread.results import Result
from wellread.tokens import COLUMNS

IDS = np.arange(60)
KEY = {"record_head": "a0" * 32, "checkpoint": "b1" * 32}
SETTINGS = {"seed": 0, "max_samples": 10, "checkpoint": "b1" * 32}
FLIPS = 400
"""Altered bytes of each file: evenly spaced, so that all parts of the file have some."""


def token_columns(path: Path) -> Any:
    """All values of a file of token columns; None if it is as if it were empty."""
    file = TokenFile(path, KEY)
    if not file.sample_id.size:
        return None
    part = file.read(IDS)
    return [getattr(part, name).tolist() for name in ("sample_id", "bounds", *COLUMNS)]


def kept_table(path: Path) -> Any:
    if not settings_in(path):
        return None
    table = KeptTable(path, SETTINGS).read()
    return None if table is None else table.to_pydict()


def write_tokens(path: Path) -> None:
    TokenFile(path, KEY).write(iter([tokens_with(IDS, -np.random.default_rng(0).random(60))]))


def write_kept(path: Path) -> None:
    words = [f"text {i}" for i in IDS]
    table = pa.table({"sample_id": IDS, "loss": np.random.default_rng(0).random(60), "text": words})
    KeptTable(path, SETTINGS).write(table)


def write_results(path: Path) -> None:
    about: dict[str, Any] = {"run": "r", "model": "m", "task": "membership/loss", "group": "read", "n": 30, "tokens": 1}
    values = np.random.default_rng(0).random(60).tolist()
    results.write(path, [Result(**about, metric="auc", step=i, value=value) for i, value in enumerate(values)])


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "token columns": (write_tokens, token_columns),
    "kept table": (write_kept, kept_table),
    "results": (write_results, results.read),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_altered_byte_never_gives_other_values(kind: str, tmp_path: Path) -> None:
    write, read = KINDS[kind]
    path, rng = tmp_path / "table.parquet", np.random.default_rng(0)
    write(path)
    content, values, outcomes = path.read_bytes(), read(path), Counter[str]()
    for place in np.linspace(0, len(content) - 1, FLIPS).astype(int).tolist():
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            after = read(path)
        except UserError as error:
            outcomes[str(error)] += 1
        else:
            assert after is None or after == values, f"other values after a change of byte {place}"
            outcomes["missing" if after is None else "same"] += 1
    unreadable = f"{path}: not a readable Parquet file; delete it and run the evaluation again"
    assert set(outcomes) <= {"missing", "same", unreadable}
    assert outcomes[unreadable] > FLIPS / 2


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_older_versions_without_checksums_are_read(kind: str, tmp_path: Path) -> None:
    write, read = KINDS[kind]
    path = tmp_path / "table.parquet"
    write(path)
    values, table = read(path), pq.read_table(path)
    metadata = {key: value for key, value in table.schema.metadata.items() if key != results.DIGEST}
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")
    assert read(path) == values


def test_types_that_parquet_stores_as_others(tmp_path: Path) -> None:
    """Seconds become milliseconds: the digest is of what is stored."""
    columns = {"at": pa.array([1, 2], pa.timestamp("s")), "lists": pa.array([[1], []]), "none": pa.nulls(2)}
    results.write_table(tmp_path / "table.parquet", pa.table(columns))
    assert results.read_table(tmp_path / "table.parquet").to_pydict()["lists"] == [[1], []]
