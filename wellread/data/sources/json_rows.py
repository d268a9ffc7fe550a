"""Reading rows from JSON: one object per line, or one list of objects; nothing longer than a limit is in memory."""

from __future__ import annotations

import codecs
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from wellread.data.sources.source import MAX_DOCUMENT, Row, too_long
from wellread.errors import UserError
from wellread.text_io import Parser, RepeatedKey, unmarked

_WHITESPACE = re.compile(r"[ \t\r\n]*")
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
"""A string, so that brackets inside strings do not count, or a bracket."""


def lines_of(path: Path, file: IO[bytes], limit: int) -> Iterator[bytes]:
    """Yield the lines of a file; a line of more than `limit` bytes is an error, and never completely in memory."""
    for number in itertools.count(1):
        line = file.readline(limit + 2)
        if len(line.rstrip(b"\r\n")) > limit:
            raise too_long(path, f"row {number}", limit)
        if not line:
            return
        yield line


def jsonl_rows(lines: Iterable[bytes], text: str | None = None, where: object = "a .jsonl file") -> Iterator[Row]:
    """Yield the row of each line that is not empty; lines are numbered from 1.

    With `text`, a line may also be a bare string: a row with only this column.

    Raises
    ------
    UserError
        When `where`, which the lines are from, is one list of objects.
    """
    parser, is_first = Parser(), True
    for number, line in enumerate(lines, start=1):
        if line.strip():
            if is_first and _begins_list(line):
                raise UserError(f"{where}: is one JSON list, not one object per line; name it .json")
            is_first = False
            yield _decoded(number, line, text, parser)


def _begins_list(line: bytes) -> bool:
    """Whether a line is a list of objects, or only its beginning."""
    line = line.removeprefix(codecs.BOM_UTF8).strip()
    if not line.startswith(b"["):
        return False
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line == b"[" or line[1:].lstrip().startswith(b"{")
    return not value or isinstance(value[0], dict)


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


def json_rows(path: Path, blocks: Iterable[bytes], text: str | None = None, limit: int = MAX_DOCUMENT) -> Iterator[Row]:
    """Yield the objects of a JSON list from blocks of its file; only one block and one object are in memory.

    With `text`, the list may also contain bare strings: rows with only this column. An object of more than `limit`
    characters is an error.
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
                if stop - at > limit:
                    raise too_long(path, f"object {number + 1}", limit)
                state, number, at = "between", number + 1, stop
                yield Row(number, None, str(twice)) if twice else _as_row(number, value, text)
            at = _skip_whitespace(buffer, at)
        buffer = buffer[at:]
        if len(buffer) > limit:
            raise too_long(path, f"object {number + 1}", limit)
        enough = min(2 * len(buffer), limit)
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
