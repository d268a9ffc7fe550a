"""Reading rows from local JSON, JSONL, CSV and Parquet files, and from data sets of the hub."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from wellread.data.sources.json_rows import json_rows, jsonl_rows, lines_of
from wellread.data.sources.source import MAX_DOCUMENT, Row, Source, Unreadable, too_long
from wellread.errors import UserError
from wellread.text_io import repeated
from wellread.units import plural

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
UNSUPPORTED = (
    ".tsv", ".ndjson", ".feather", ".xlsx", ".bz2", ".xz", ".lz4", ".7z", ".rar", ".tar", ".tgz",
)  # fmt: skip
"""Endings of files that contain data, but are of a kind that is not read."""
READ = 1 << 18
"""Bytes read at once."""
SECONDS_TO_ANSWER = 10
"""Seconds in which the hub must answer whether it has a data set."""


def fingerprint(source: Source) -> str:
    """Identify the content of `source`: hash of its files' bytes, or name and revision of a hub data set."""
    from wellread.files import sha256_file

    if not source.paths:
        return f"hub:{source.hub}@{source.revision}" if source.revision else f"hub:{source.hub}"
    hashes = [sha256_file(path) for path in source.paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def rows(source: Source) -> Iterator[Row]:
    """Yield all rows in the order of the source; a row that cannot be read is yielded with its error."""
    if not source.paths:
        yield from hub_rows(source)
        return
    last = before = 0
    for path in source.paths:
        for row in _file_rows(path, source.max_document):
            last = before + row.number
            yield row if len(source.paths) == 1 else Row(last, row.fields, row.error, path, before)
        before = last


def _file_rows(path: Path, limit: int) -> Iterator[Row]:
    if path.suffix == ".jsonl":
        with open(path, "rb") as file:
            yield from jsonl_rows(lines_of(path, file, limit), where=path)
    elif path.suffix == ".json":
        with open(path, "rb") as file:
            yield from json_rows(path, iter(lambda: file.read(READ), b""), limit=limit)
    elif path.suffix == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from csv_rows(path, file, limit)
    else:
        yield from parquet_rows(path, limit=limit)


def csv_rows(path: Path, file: IO[str], limit: int = MAX_DOCUMENT) -> Iterator[Row]:
    """Yield the records of a CSV file with a header, numbered by record because a quoted field may span lines."""
    import csv

    csv.field_size_limit(min(limit, 2**31 - 1))  # a field may be a long document; the default is 128 KiB
    reader = csv.reader(_short_lines(path, file, limit), strict=True)
    try:
        header = next(reader, [])
        _check_names(path, header)
        for number, values in enumerate(filter(None, reader), start=1):
            if len(values) == len(header):
                yield Row(number, dict(zip(header, values, strict=True)))
            else:
                yield Row(number, None, f"has {plural(len(values), 'field')}, but the header has {len(header)}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    except csv.Error as error:
        if str(error).startswith("field larger than field limit"):
            raise too_long(path, f"a field at line {reader.line_num}", limit) from None
        raise UserError(f"{path}: not a CSV file: {error} at line {reader.line_num}") from None


def _short_lines(path: Path, file: IO[str], limit: int) -> Iterator[str]:
    """Lines of a CSV file; a longer one, which at least one field fills, is not read completely."""
    for number in itertools.count(1):
        line = file.readline(limit + 2)
        if len(line) > limit + 1:
            raise too_long(path, f"line {number}", limit)
        if not line:
            return
        yield line


def _check_names(path: Path, names: Iterable[str]) -> None:
    name = repeated(names)
    if name is not None:
        raise UserError(f"{path}: two columns are called {name!r}; rename or remove one")


def _check_structs(path: Path, kind: Any) -> None:
    """Check the names of fields at every depth of a column's type."""
    import pyarrow

    fields = [kind.field(i) for i in range(kind.num_fields)]
    if pyarrow.types.is_struct(kind):
        _check_names(path, [field.name for field in fields])
    for field in fields:
        _check_structs(path, field.type)


def parquet_rows(path: Path, rows_at_once: int = 4096, limit: int = MAX_DOCUMENT) -> Iterator[Row]:
    """Yield the rows of a Parquet file; at most `rows_at_once` rows are in memory at a time.

    A value that Python cannot represent, such as a date after the year 9999, is `Unreadable`.

    Raises
    ------
    UserError
        When the file is not Parquet, a part of it cannot be read, or a row has more than `limit` bytes.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        texts = [field.name for field in pyarrow.parquet.read_schema(path) if _is_text(field.type)]
        file = pyarrow.parquet.ParquetFile(path, read_dictionary=texts)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file: {_first_line(error)}") from None
    _check_names(path, file.schema_arrow.names)
    for field in file.schema_arrow:
        _check_structs(path, field.type)
    number = 0
    batches = file.iter_batches(rows_at_once)
    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(
                f"{path}: damaged ({_first_line(error)}), after row {number}; copy or download it again"
            ) from None
        if batch is None:
            return
        for part in _parts(path, batch, number, limit):
            for fields in _python_values(part):
                number += 1
                yield Row(number, fields)


def _is_text(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def _parts(path: Path, batch: pyarrow.RecordBatch, before: int, limit: int) -> Iterator[pyarrow.RecordBatch]:
    """Divide a batch so that the texts of a part have at most `limit` bytes.

    Parquet stores repeated texts once; a file of some kilobytes can contain terabytes of text.
    """
    import pyarrow

    sizes = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        sizes += _text_sizes(column)
    ends, start = np.cumsum(sizes), 0
    while start < batch.num_rows:
        if sizes[start] > limit:
            raise too_long(path, f"row {before + start + 1}", limit)
        read = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, read + limit, side="right"))
        columns = [
            column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
            for column in batch.slice(start, stop - start).columns
        ]
        yield pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)
        start = stop


def _text_sizes(column: pyarrow.Array) -> Any:
    """Bytes of the text in each row of a column; 0 for other types."""
    import pyarrow
    import pyarrow.compute

    values = column.dictionary if pyarrow.types.is_dictionary(column.type) else column
    if not _is_text(values.type):
        return 0
    lengths = pyarrow.compute.binary_length(values).cast(pyarrow.int64())
    lengths = lengths.take(column.indices) if values is not column else lengths
    return lengths.fill_null(0).to_numpy(zero_copy_only=False)


def _python_values(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError, ArithmeticError, TypeError):  # pyarrow's errors are ValueErrors
        for i in range(batch.num_rows):
            yield {name: _python_value(column, i) for name, column in zip(batch.schema.names, batch, strict=True)}


def _python_value(column: pyarrow.Array, place: int) -> Any:
    try:
        return column[place].as_py()
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8 at byte {error.start}")
    except (ValueError, OverflowError, ArithmeticError, TypeError) as error:
        return Unreadable(f"a {column.type} that cannot be read ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def hub_rows(source: Source) -> Iterator[Row]:
    """Yield the rows of a data set of the hub, in their order."""
    import datasets

    refusal = _check_hub(str(source.hub), source.revision)
    try:
        if source.hub_files:
            files = f"hf://datasets/{source.hub}@{source.revision}/{source.hub_files}"
            loaded = datasets.load_dataset("json", data_files=files, split="train")
        else:
            loaded = datasets.load_dataset(source.hub, revision=source.revision, split="train")
    except Exception as error:  # from the hub, its client, the network or the files of the data set
        reason = (str(refusal or error).strip().splitlines() or [type(refusal or error).__name__])[0]
        raise UserError(
            f"--data {source.name}: data set {source.hub} could not be downloaded from the hub ({reason}); "
            f"download its file and pass --data {source.spelling or source.name}@FILE"
        ) from None
    for number, value in enumerate(loaded, start=1):
        yield Row(number, dict(value))


def _check_hub(hub: str, revision: str | None) -> Exception | None:
    """Ask the hub whether it has `hub`; on an error, switch its client to offline mode and return the error.

    Otherwise the client would repeat the request for half a minute and print two lines on stderr each time.
    """
    import datasets
    import huggingface_hub

    if Path(hub).is_dir():  # then the client reads this folder instead
        return None
    try:
        huggingface_hub.HfApi().dataset_info(hub, revision=revision, timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # from the hub, its client or the network
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
        return error
    return None
