"""Reading rows from local JSON, JSONL, CSV and Parquet files, and from data sets of the hub."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from wellread.data.sources.source import MAX_DOCUMENT, Row, Source, Unreadable, too_long
from wellread.errors import UserError
from wellread.text_io import Parser, RepeatedKey, repeated, unmarked

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
READ = 1 << 18
"""Bytes read at once."""
_WHITESPACE = re.compile(r"[ \t\r\n]*")
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
"""A string, so that brackets inside strings do not count, or a bracket."""
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
        for row in _file_rows(path):
            last = before + row.number
            yield row if len(source.paths) == 1 else Row(last, row.fields, row.error, path, before)
        before = last


def _file_rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".jsonl":
        with open(path, "rb") as file:
            yield from jsonl_rows(file)
    elif path.suffix == ".json":
        with open(path, "rb") as file:
            yield from json_rows(path, iter(lambda: file.read(READ), b""))
    elif path.suffix == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from csv_rows(path, file)
    else:
        yield from parquet_rows(path)


def jsonl_rows(lines: Iterable[bytes], text: str | None = None) -> Iterator[Row]:
    """Yield the row of each line that is not empty; lines are numbered from 1.

    With `text`, a line may also be a bare string: a row with only this column.
    """
    parser = Parser()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _decoded(number, line, text, parser)


def _decoded(number: int, line: bytes, text: str | None, parser: Parser) -> Row:
    try:
        line = line.strip()
        value = parser.decode(line.decode(json.detect_encoding(line), "surrogatepass"))
        return _as_row(number, value, text)
    except UnicodeDecodeError as error:
        return Row(number, None, f"not UTF-8 at byte {error.start} of the line")
    except json.JSONDecodeError as error:
        return Row(number, None, f"not JSON: {error.msg} at column {error.colno}")
    except RepeatedKey as error:
        return Row(number, None, str(error))
    except (ValueError, RecursionError) as error:
        return Row(number, None, _beyond_limits(error))


def _beyond_limits(error: ValueError | RecursionError) -> str:
    """What is wrong with JSON that is valid, but that Python's parser refuses."""
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply"
    return f"contains an integer of more than {sys.get_int_max_str_digits():,} digits"


def _as_row(number: int, value: object, text: str | None) -> Row:
    if text and isinstance(value, str):
        return Row(number, {text: value})
    return Row(number, value) if isinstance(value, dict) else Row(number, None, "not a JSON object")


def json_rows(path: Path, blocks: Iterable[bytes], text: str | None = None) -> Iterator[Row]:
    """Yield the objects of a JSON list from blocks of its file; only one block and one object are in memory.

    With `text`, the list may also contain bare strings: rows with only this column.
    """
    parser, number, buffer, state = Parser(), 0, "", "before"
    broken: json.JSONDecodeError | None = None
    texts, enough = _texts(path, blocks), 0
    for block in texts:
        buffer += block
        if block and len(buffer) < enough:
            continue  # parsing an object again with each block would take quadratic time
        at = _skip_whitespace(buffer, 0)
        while at < len(buffer):
            sign = buffer[at]
            if state == "before" and sign != "[":
                raise _not_a_list(path, buffer + "".join(texts))
            if state == "after":
                raise _not_json(path, "text after the end of the list")
            if state == "before" or (state == "between" and sign == ","):
                state, at = "first" if state == "before" else "value", at + 1
            elif state in ("first", "between") and sign == "]":
                state, at = "after", at + 1
            elif state == "between":
                raise _not_json(path, f"no comma after object {number}")
            else:
                try:
                    value, stop, twice = parser.raw_decode(buffer, at)
                except json.JSONDecodeError as error:
                    broken = error
                    break  # cut off by the end of the block or of the file
                except (ValueError, RecursionError) as error:
                    end = _end_of_object(buffer, at)
                    if end is None:
                        broken = json.JSONDecodeError(_beyond_limits(error), buffer, at)
                        break
                    state, number, at = "between", number + 1, end
                    yield Row(number, None, _beyond_limits(error))
                    at = _skip_whitespace(buffer, at)
                    continue
                if stop == len(buffer) and not isinstance(value, dict):
                    broken = json.JSONDecodeError("Expecting ',' delimiter", buffer, stop)
                    break  # a number may continue in the next block
                state, number, at = "between", number + 1, stop
                yield Row(number, None, str(twice)) if twice else _as_row(number, value, text)
            at = _skip_whitespace(buffer, at)
        buffer = buffer[at:]
        if len(buffer) > MAX_DOCUMENT:
            raise too_long(path, f"object {number + 1}", MAX_DOCUMENT)
        enough = min(2 * len(buffer), MAX_DOCUMENT)
    if state != "after":
        raise _not_json(
            path, f"object {number + 1}: {broken.msg}" if broken and buffer else "ends before its list does"
        )


def _end_of_object(text: str, start: int) -> int | None:
    """Where the object at `start` ends, found by its brackets; None when it does not end in `text`."""
    depth = 0
    for match in _BRACKET.finditer(text, start):
        sign = match[0][0]
        depth += (sign in "[{") - (sign in "]}")
        if depth <= 0:
            return match.end() if sign in "]}" else None
    return None


def _skip_whitespace(text: str, at: int) -> int:
    match = _WHITESPACE.match(text, at)
    return match.end() if match else at


def _texts(path: Path, blocks: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    before = 0
    for block in itertools.chain(unmarked(blocks), [b""]):
        n_pending = len(decoder.getstate()[0])
        try:
            yield decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {before - n_pending + error.start} of the file") from None
        before += len(block)


def _not_json(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: not a JSON file: {reason}; if it has one object per line, name it .jsonl")


def _not_a_list(path: Path, text: str) -> UserError:
    try:
        kind = type(json.loads(text)).__name__
    except json.JSONDecodeError as error:
        return _not_json(path, str(error))
    except (ValueError, RecursionError) as error:
        return _not_json(path, _beyond_limits(error))
    return UserError(f"{path}: expected a JSON list of objects, but it contains {kind}")


def csv_rows(path: Path, file: IO[str]) -> Iterator[Row]:
    """Yield the records of a CSV file with a header, numbered by record because a quoted field may span lines."""
    import csv

    csv.field_size_limit(2**31 - 1)  # a field may be a long document; the default is 128 KiB
    reader = csv.reader(file, strict=True)
    try:
        header = next(reader, [])
        _check_names(path, header)
        for number, values in enumerate(filter(None, reader), start=1):
            if len(values) == len(header):
                yield Row(number, dict(zip(header, values, strict=True)))
            else:
                yield Row(number, None, f"has {len(values)} fields, but the header has {len(header)}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file: {error} at line {reader.line_num}") from None


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


def parquet_rows(path: Path, rows_at_once: int = 4096) -> Iterator[Row]:
    """Yield the rows of a Parquet file; `rows_at_once` rows are in memory at a time.

    A value that Python cannot represent, such as a date after the year 9999, is `Unreadable`.

    Raises
    ------
    UserError
        When the file is not Parquet, or a part of it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
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
        for fields in _python_values(batch):
            number += 1
            yield Row(number, fields)


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
