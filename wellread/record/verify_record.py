"""Verify a record: its parts, its chain, and every column that follows from the order and the corpus."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.read import Corpus
from wellread.order.permutation import Order
from wellread.record.chain import link
from wellread.record.findings import Findings
from wellread.record.reader import HEAD, Record
from wellread.record.verify_tables import check_types, digest_array, refuse_nulls
from wellread.record.writer import COLUMNS

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_ONCE = 1 << 18
MOST = 100
"""Rows of one piece of the record that are named one by one."""


@dataclass
class Walked:
    """What the record says at each step that has a checkpoint."""

    heads: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    """Only up to the first batch with tokens that are not those of the corpus."""
    skipped: dict[int, int] = field(default_factory=dict)


def check_parts(findings: Findings, record: Record, start: str, batch_size: int) -> bool:
    """Check head.json and the parts; return whether their rows can be compared: an altered part proves nothing."""
    place = record.directory / "head.json"
    findings.expect_all(
        place, {"version": (record.info.get("version"), 1), "genesis": (record.info.get("genesis"), start)}
    )
    findings.expect_checksum(place, record.info)
    findings.expect_keys(place, record.info, HEAD)
    damaged = record.damaged_parts()
    findings.add(*damaged)
    if damaged:
        return False
    readable = True
    for part in record.parts:
        first, stop, path = part["from"], part["to"], record.directory / part["name"]
        findings.expect(
            place, f"name of batches {first} … {stop}", part["name"], f"part-{first:08d}-{stop:08d}.parquet"
        )
        readable &= _check_schema(findings, record, part, (stop - first) * batch_size)
        findings.expect(place, f"rows of {path.name}", part["rows"], (stop - first) * batch_size)
    return readable


def _check_schema(findings: Findings, record: Record, part: dict[str, object], rows: int) -> bool:
    """Columns and number of rows of one part; return whether it has the rows that it must have."""
    import pyarrow.parquet

    path = record.directory / str(part["name"])
    with findings.reading(path), pyarrow.parquet.ParquetFile(path) as file:
        names = list(file.schema_arrow.names)
        check_types(findings, path, file.schema_arrow)
        findings.expect(path, "columns", names if "skipped" in names else [*names, "skipped"], list(COLUMNS))
        return findings.expect(path, "rows", file.metadata.num_rows, rows) and {*COLUMNS} <= {*names, "skipped"}
    return False


def walk(
    findings: Findings,
    record: Record,
    corpus: Corpus,
    order: Order,
    digests: NDArray[np.uint8],
    start: str,
    steps: Iterable[int],
) -> Walked:
    """Recompute the chain over all recorded batches, part by part, and compare them with order and corpus.

    Parameters
    ----------
    digests : (n, 16)
        Of the samples of the corpus.
    start : str
        Head of the empty record.
    steps : iterable of int
        Those with a checkpoint.
    """
    steps_left, head, tokens, skipped, same_so_far = {*steps}, start, 0, 0, True
    walked = Walked({0: head}, {0: 0}, {0: 0})
    for first, stop, table in record.pieces(list(COLUMNS), ROWS_AT_ONCE):
        size = order.batch_size
        refuse_nulls(record.directory, table, first * size)
        ids, read = table["sample_id"].to_numpy(), digest_array(table["digest"])
        same = _compare(findings, table, first, stop, order, digests)
        _compare_columns(findings, record, table, first, order, corpus, same)
        inside = (ids >= 0) & (ids < corpus.n)
        lengths = np.where(inside, corpus.lengths(np.where(inside, ids, 0)), 0).reshape(-1, size).sum(axis=1)
        of_corpus = np.asarray(same.reshape(-1, size).all(axis=1))
        updates = table["skipped"].to_numpy().reshape(-1, size)[:, 0]
        for i, batch_id in enumerate(range(first, stop)):
            rows = slice(i * size, (i + 1) * size)
            head = link(head, batch_id, ids[rows], read[rows].tobytes())
            tokens, skipped = tokens + int(lengths[i]), skipped + int(updates[i])
            same_so_far &= bool(of_corpus[i])
            if batch_id + 1 in steps_left:
                walked.heads[batch_id + 1], walked.skipped[batch_id + 1] = head, skipped
                if same_so_far:
                    walked.tokens[batch_id + 1] = tokens
        corpus.release()
        order.release()
    if head != record.head:
        findings.add(f"{record.directory}: its chain ends at {head}, head.json says {record.head}")
    return walked


def _compare(
    findings: Findings, table: pyarrow.Table, start: int, stop: int, order: Order, digests: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Compare batches ``start … stop-1`` with order and corpus; return which rows have the tokens of their sample."""
    size, ids = order.batch_size, table["sample_id"].to_numpy()
    expected = order.batches(start, stop).ravel()
    places = np.arange(start * size, stop * size)
    inside = (ids >= 0) & (ids < len(digests))
    same = inside & (digests[np.where(inside, ids, 0)] == digest_array(table["digest"])).all(axis=1)
    numbered = (table["batch_id"].to_numpy() == places // size) & (table["slot"].to_numpy() == places % size)
    moved, altered = places[~numbered], np.flatnonzero(~same)
    wrong = np.flatnonzero(ids != expected)
    findings.add(*(f"{_place(p, size)}: missing, duplicate or in the wrong place" for p in moved[:MOST]))
    findings.add(
        *(f"{_place(places[i], size)}: read sample {ids[i]}, the order says {expected[i]}" for i in wrong[:MOST])
    )
    findings.add(
        *(
            f"{_place(places[i], size)}: the tokens read as sample {ids[i]} are not those of the corpus"
            for i in altered[:MOST]
        )
    )
    if (more := sum(max(0, len(each) - MOST) for each in (moved, wrong, altered))) > 0:
        findings.add(f"batches {start} … {stop - 1}: {more:,} more such rows")
    return np.asarray(same)


def _compare_columns(
    findings: Findings,
    record: Record,
    table: pyarrow.Table,
    start: int,
    order: Order,
    corpus: Corpus,
    same: NDArray[np.bool_],
) -> None:
    """Columns that the chain does not cover, but that follow from it, and what a loss can be."""
    size, ids = order.batch_size, table["sample_id"].to_numpy()
    places = np.arange(start * size, start * size + len(ids))
    skipped, losses = table["skipped"].to_numpy(), table["loss"].to_numpy()
    expected = {
        "step": places // size + 1,
        "epoch": order.epochs(places),
        "n_targets": np.where(same, corpus.n_targets(np.where(same, ids, 0)), table["n_targets"].to_numpy()),
        "skipped": np.repeat(skipped[::size], size),
    }
    for name, values in expected.items():
        for i in np.flatnonzero(table[name].to_numpy() != values)[:5]:
            value = table[name][i].as_py()
            findings.add(f"{record.directory}: {_place(places[i], size)}: {name} is {value}, expected {values[i]}")
    for i in np.flatnonzero((losses < 0) | (~np.isfinite(losses) & ~skipped))[:5]:
        findings.add(f"{record.directory}: {_place(places[i], size)}: loss is {losses[i]}, not finite or below 0")


def _place(position: int, batch_size: int) -> str:
    return f"batch {position // batch_size} slot {position % batch_size}"
