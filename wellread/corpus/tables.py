"""The tables of a corpus: samples, segments of packed samples, metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus import arrow
from wellread.corpus.columns import Columns, n_targets
from wellread.corpus.digest import DIGEST_BYTES
from wellread.corpus.read import METRICS, Corpus
from wellread.corpus.segments import FILE
from wellread.files import replacing, sha256_file, with_checksum, write_array, write_json
from wellread.whole import read_whole

if TYPE_CHECKING:
    import pyarrow


@contextmanager
def table_of_samples(path: Path) -> Iterator[Callable[[pyarrow.Table], None]]:
    """Yield a function that appends one part of the table to the Parquet file `path`."""
    import pyarrow.parquet

    writer: Any = None

    def write(table: pyarrow.Table) -> None:
        nonlocal writer
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer:
            writer.close()


def samples_table(part: Columns, sets: Sequence[str], sample_ids: NDArray[np.int64]) -> pyarrow.Table:
    """A table of samples or segments with the columns of docs/formats.md."""
    import pyarrow

    return pyarrow.table(
        {
            "sample_id": arrow.numbers(sample_ids, np.int64),
            "digest": arrow.digests(part["digest"].tobytes(), DIGEST_BYTES),
            "split": arrow.categories(part["sealed"], ["trainable", "sealed"]),
            "n_tokens": arrow.numbers(part["lengths"], np.int32),
            "n_targets": arrow.numbers(n_targets(part), np.int32),
            "document": arrow.numbers(part["document"], np.int64),
            "source": arrow.categories(part["set_id"], sets),
            "rows": arrow.lists(part["rows"], part["n_rows"], np.int64),
            "category": arrow.words(part["category"]),
            "author": arrow.words(part["author"]),
        }
    )


def write_segments(
    build: Path, segments: Columns, n_segments: NDArray[np.int64], sets: Sequence[str]
) -> tuple[str, ...]:
    """Write the segments of packed samples; return the names of the files."""
    import pyarrow
    import pyarrow.parquet

    write_array(build / "segments.npy", np.concatenate([[0], np.cumsum(segments["lengths"])]).astype(np.int64))
    write_array(build / "segment_offsets.npy", np.concatenate([[0], np.cumsum(n_segments)]).astype(np.int64))
    numbers = arrow.numbers(np.arange(len(segments["lengths"])), np.int64)
    table = samples_table(segments, sets, np.repeat(np.arange(len(n_segments)), n_segments))
    pyarrow.parquet.write_table(table.add_column(0, "segment", numbers), build / FILE, compression="zstd")
    return "segments.npy", "segment_offsets.npy", FILE


def write_metrics(build: Path, columns: dict[str, NDArray[Any]]) -> None:
    """Write metrics.parquet: one row per sample, in order of sample id, and one float32 column per metric."""
    import pyarrow
    import pyarrow.parquet

    n = len(next(iter(columns.values())))
    table = {"sample_id": arrow.numbers(np.arange(n), np.int64)}
    table |= {name: arrow.numbers(values, np.float32) for name, values in columns.items()}
    with replacing(build / METRICS) as file:
        pyarrow.parquet.write_table(pyarrow.table(table), file, compression="zstd")


def add_metrics(directory: Path, columns: dict[str, NDArray[Any]]) -> None:
    """Add metrics to a corpus that is compiled: metrics.parquet has its other ones too, and corpus.json names all."""
    corpus = Corpus.open(directory)
    write_metrics(directory, {name: corpus.metric(name) for name in corpus.metrics} | columns)
    meta = json.loads(read_whole(directory / "corpus.json"))
    meta["metrics"] = [*corpus.metrics, *columns]
    meta["sizes"][METRICS] = (directory / METRICS).stat().st_size
    if "sha256" in meta:  # not in older corpora
        meta["sha256"][METRICS] = sha256_file(directory / METRICS)
    write_json(directory / "corpus.json", with_checksum(meta))
