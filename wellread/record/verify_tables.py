"""Verify the tables of a corpus, piece by piece: every column that follows from its tokens, and its hash and counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus import canaries
from wellread.corpus.digest import DIGEST_BYTES, HASH_BEGINS
from wellread.corpus.holdout import is_sealed
from wellread.corpus.read import METRICS, Corpus
from wellread.corpus.segments import FILE as SEGMENTS
from wellread.corpus.segments import Segments
from wellread.errors import UserError
from wellread.record.findings import Findings

if TYPE_CHECKING:
    import pyarrow

SAMPLES = "samples.parquet"
COLUMNS = (
    "sample_id", "digest", "split", "n_tokens", "n_targets", "document", "source", "rows", "category", "author",
)  # fmt: skip
TYPES = {
    **dict.fromkeys(("sample_id", "segment", "document", "step", "batch_id"), "int64"),
    **dict.fromkeys(("n_tokens", "n_targets", "slot", "epoch"), "int32"),
    "digest": f"fixed_size_binary[{DIGEST_BYTES}]",
    "rows": "list<int64>",
    "loss": "float",
    "skipped": "bool",
    **dict.fromkeys(("split", "source", "category", "author"), "string"),
}
"""Arrow type of each column of samples, segments and the record."""
HASHED = np.dtype([("digest", "V16"), ("document", "<i8"), ("split", "S1")])
"""What the hash of a corpus covers of each sample."""
ROWS_AT_ONCE = 1 << 16
MOST_ROWS = 1 << 29
"""Rows with a larger number are not counted."""
Seen = dict[str, NDArray[np.bool_]]
"""Name of a data set -> whether each of its rows is part of a sample."""


def check_samples(findings: Findings, corpus: Corpus) -> NDArray[np.uint8] | None:
    """Check samples.parquet; return the digests of all samples, (n, 16), or None when it has too few or many rows."""
    place = corpus.path / SAMPLES
    if not check_form(findings, place, COLUMNS, corpus.n):
        return None
    digests, sources = np.empty((corpus.n, DIGEST_BYTES), np.uint8), np.empty(corpus.n, np.int64)
    documents = np.empty(corpus.n, np.int64)
    state, counts = hashlib.sha256(HASH_BEGINS), Counter[str]()
    marks = unseen(corpus)
    for start, table in pieces(place):
        ids = np.arange(start, start + len(table))
        digests[ids], documents[ids] = digest_array(table["digest"]), table["document"].to_numpy()
        sources[ids] = _first_rows(corpus, table)
        state.update(_hashed(table))
        _check_columns(findings, corpus, place, table, ids)
        check_rows(findings, corpus, place, table, start, marks)
        if not corpus.packed:
            check_holdout(findings, corpus, place, table, start)
        _count(counts, corpus, table, ids)
        corpus.release()
    findings.expect(corpus.path / "corpus.json", "hash", corpus.hash, state.hexdigest(), "its samples")
    _check_counts(findings, corpus, counts, documents, sources)
    _check_taken(findings, corpus, marks)
    return digests


def check_form(
    findings: Findings, place: Path, columns: tuple[str, ...], n: int, source: str = "counts of corpus.json"
) -> bool:
    """Columns and number of rows; return whether the rows can be compared."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(place) as file:
        names, rows = file.schema_arrow.names, file.metadata.num_rows
        check_types(findings, place, file.schema_arrow)
    foreign = [name for name in names if name not in columns or names.count(name) > 1]
    findings.add(*(f"{place}: {name}: is not a column of this table" for name in foreign))
    return findings.expect(place, "rows", rows, n, source)


def check_types(findings: Findings, place: Path, schema: pyarrow.Schema) -> None:
    """Every column has the type that docs/formats.md states."""
    for name, arrow_type in zip(schema.names, schema.types, strict=True):
        if name in TYPES or place.name == METRICS:
            expected = TYPES.get(name, "float")
            findings.expect(place, f"type of {name}", _type_name(arrow_type), expected, "docs/formats.md")


def _type_name(arrow_type: pyarrow.DataType) -> str:
    """Name of a type: equal for texts in all encodings, and for lists whatever their elements are called."""
    from pyarrow import types

    if types.is_dictionary(arrow_type):
        return _type_name(arrow_type.value_type)
    if types.is_list(arrow_type):
        return f"list<{arrow_type.value_type}>"
    return "string" if types.is_large_string(arrow_type) else str(arrow_type)


def refuse_nulls(place: Path | str, table: pyarrow.Table, start: int) -> None:
    """Raise UserError when a value is missing; only older versions leave out categories and authors.

    Parameters
    ----------
    start : int
        Number of the table's first row.
    """
    for name in table.column_names:
        if table[name].null_count and name not in ("category", "author"):
            row = start + table[name].is_null().to_pylist().index(True)
            raise UserError(f"{place}: {name}: row {row}: has no value; restore it from a copy")


def pieces(place: Path) -> Iterator[tuple[int, pyarrow.Table]]:
    """The rows of a table, some at once, with the number of the first; a missing value is an error."""
    import pyarrow.parquet

    start = 0
    with pyarrow.parquet.ParquetFile(place) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE):
            table = pyarrow.Table.from_batches([batch])
            refuse_nulls(place, table, start)
            yield start, table
            start += len(batch)


def digest_array(column: pyarrow.ChunkedArray) -> NDArray[np.uint8]:
    """Digests of a table's column as a uint8 array (rows, 16), without a Python object per row."""
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * DIGEST_BYTES :][: len(chunk) * DIGEST_BYTES]
        for chunk in column.chunks
    ]
    return np.concatenate([np.empty(0, np.uint8), *parts]).reshape(-1, DIGEST_BYTES)


def column_of(table: pyarrow.Table, name: str) -> NDArray[Any]:
    """A column of a table, of any type."""
    return np.array(table[name].to_pylist())


def _hashed(table: pyarrow.Table) -> bytes:
    """What the hash of a corpus covers of these rows."""
    rows = np.empty(len(table), HASHED)
    rows["digest"] = digest_array(table["digest"]).view("V16").ravel()
    rows["document"] = table["document"].to_numpy()
    rows["split"] = [split[:1].encode() for split in table["split"].to_pylist()]
    return rows.tobytes()


def _check_columns(
    findings: Findings, corpus: Corpus, place: Path, table: pyarrow.Table, ids: NDArray[np.int64]
) -> None:
    """Columns that follow from the arrays."""
    digests = table["digest"].to_pylist()
    findings.add_rows(
        f"{corpus.path}: sample {{}}: its tokens or loss mask do not match its digest",
        [i for i in ids.tolist() if corpus.digest(i) != digests[i - ids[0]]],
    )
    columns = {
        "sample_id": ids,
        "split": np.where(ids < corpus.n_trainable, "trainable", "sealed"),
        "n_tokens": corpus.lengths(ids),
        "n_targets": corpus.n_targets(ids),
    }
    for name, expected in columns.items():
        findings.expect_column(place, name, column_of(table, name), expected, "sample", int(ids[0]))


def check_holdout(findings: Findings, corpus: Corpus, place: Path, table: pyarrow.Table, start: int) -> None:
    """The split follows from documents and holdout; canaries are trainable."""
    settings = corpus.meta["settings"]
    if not {"holdout", "holdout_seed"} <= settings.keys():
        return
    documents = table["document"].to_pylist()
    sealed = np.array([is_sealed(each, settings["holdout"], settings["holdout_seed"]) for each in documents])
    if corpus.canaries:  # they are exempt
        sealed &= column_of(table, "source") != canaries.SET
    expected = np.where(sealed, "sealed", "trainable")
    findings.expect_column(place, "split by its document", column_of(table, "split"), expected, "row", start)


def check_rows(findings: Findings, corpus: Corpus, place: Path, table: pyarrow.Table, start: int, marks: Seen) -> None:
    """Every source is a data set of the corpus, and every sample has rows; mark these rows as seen."""
    pairs = zip(table["source"].to_pylist(), table["rows"].to_pylist(), strict=True)
    for i, (source, rows) in enumerate(pairs, start):
        if source not in marks:
            findings.add(f"{place}: source: row {i}: {source}, which is not a data set of corpus.json")
        elif not rows or min(rows) < 0:
            findings.add(f"{place}: rows: row {i}: {rows}, expected numbers of rows")
        elif max(rows) < MOST_ROWS:
            if max(rows) >= len(marks[source]):  # lines of a file, of which some may be empty
                marks[source] = np.concatenate([marks[source], np.zeros(2 * max(rows), np.bool_)])
            marks[source][rows] = True


def unseen(corpus: Corpus) -> Seen:
    """For each data set: no row is seen."""
    return {name: np.zeros(1, np.bool_) for name in corpus.set_names}


def _check_taken(findings: Findings, corpus: Corpus, marks: Seen) -> None:
    """No data set gives samples of more rows than were taken of it."""
    for each in corpus.meta.get("sets") or [corpus.meta["source"]]:
        n = int(marks[each["name"]].sum())
        if "taken" in each and n > each["taken"]:
            findings.add(
                f"{corpus.path / 'corpus.json'}: sets: {each['name']}: taken {each['taken']}, its samples name {n}"
            )


def _count(counts: Counter[str], corpus: Corpus, table: pyarrow.Table, ids: NDArray[np.int64]) -> None:
    lengths = corpus.lengths(ids)
    counts.update(each for each in table["split"].to_pylist() if each in ("trainable", "sealed"))
    counts["samples"] += len(table)
    counts["tokens"] += int(lengths.sum())
    counts["targets"] += int(corpus.n_targets(ids).sum())
    counts["sealed_tokens"] += int(lengths[ids >= corpus.n_trainable].sum())
    counts["longest"] = max(counts["longest"], int(lengths.max()))


def _first_rows(corpus: Corpus, table: pyarrow.Table) -> NDArray[np.int64]:
    """A number per row of the table: equal for samples whose first row is the same row of the same data set."""
    places = {name: i << 48 for i, name in enumerate(corpus.set_names)}
    pairs = zip(table["source"].to_pylist(), table["rows"].to_pylist(), strict=True)
    return np.array([places.get(source, 0) + (rows[0] if rows else 0) for source, rows in pairs], np.int64)


def _check_counts(
    findings: Findings,
    corpus: Corpus,
    counts: Counter[str],
    documents: NDArray[np.int64],
    sources: NDArray[np.int64],
) -> None:
    expected = {name: counts[name] for name in ("samples", "trainable", "sealed", "tokens", "targets")}
    expected |= {name: counts[name] for name in ("sealed_tokens", "longest")}
    if corpus.packed:
        segments = Segments(corpus)
        parts = [(documents[:0], sources[:0])]  # the file may be empty
        for _, table in pieces(corpus.path / SEGMENTS):
            parts.append((table["document"].to_numpy(), _first_rows(corpus, table)))
        documents, sources = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        expected |= {"segments": segments.n, "sealed_segments": segments.n - segments.n_trainable}
    stored, n_documents = corpus.meta["counts"], len(np.unique(documents))
    n_duplicates = {len(np.unique(sources)) - n_documents, len(documents) - n_documents}  # the second: older corpora
    expected["duplicates"] = stored.get("duplicates") if stored.get("duplicates") in n_duplicates else min(n_duplicates)
    values: dict[str, tuple[object, object]] = {
        f"counts.{name}": (stored.get(name), value) for name, value in expected.items()
    }
    findings.expect_all(corpus.path / "corpus.json", values, "its samples")


def check_names(findings: Findings, place: Path, columns: Sequence[str], source: str = "") -> int:
    """Compare the columns of a table and their order; return its number of rows."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(place) as file:
        findings.expect(place, "columns", list(file.schema_arrow.names), list(columns), source)
        if place.name == METRICS:
            check_types(findings, place, file.schema_arrow)
        return int(file.metadata.num_rows)


def check_metrics(findings: Findings, corpus: Corpus) -> None:
    """Check metrics.parquet: a column per metric that corpus.json names, a row per sample."""
    place = corpus.path / METRICS
    rows = check_names(findings, place, ["sample_id", *corpus.metrics], "metrics in corpus.json")
    findings.expect(place, "rows", rows, corpus.n)
    for start, table in pieces(place):
        ids = np.arange(start, start + len(table))
        findings.expect_column(place, "sample_id", column_of(table, "sample_id"), ids, "row", start)
