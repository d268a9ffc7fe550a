"""Documents of plain text for pretraining, streamed: only a few documents are in memory, whatever the source's size.

Sources are JSONL with one object per line, as lm_dataformat writes The Pile (text, meta.pile_set_name); JSON lists, as
in TinyStories' archive (story, instruction, summary, source); Parquet; and plain text with `SEPARATOR` between
documents. All except Parquet may be compressed as .gz or .zst. lm_dataformat's archives .dat.zst, .zip and .tar.gz are
read too, as are its bare strings and texts that are lists of paragraphs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wellread.data.sources import archives
from wellread.data.sources.json_rows import json_rows, jsonl_rows
from wellread.data.sources.source import MAX_DOCUMENT, Row, Unreadable, has_content, too_long
from wellread.data.sources.tables import READ, parquet_rows
from wellread.errors import UserError
from wellread.text_io import foreign, unmarked

SEPARATOR = "<|endoftext|>"
"""Between the documents of a .txt file. Text after the last one is also a document; it may be cut off."""
COMPRESSED = (".gz", ".zst")
PLAIN = ".txt"
KINDS = (".jsonl", ".json", PLAIN, ".parquet")
STORY = "story"
"""Field of TinyStories' archive, used if a row has no ``text``."""
READ_ZST = 1 << 10
"""Compressed bytes read at once: repetitive text may decompress to thousands of times its size."""
PARAGRAPHS = "\n\n"
"""Between the paragraphs of a text that is a list, as lm_dataformat joins them."""
WINDOW = 1 << 31
"""Largest window that zstd supports: files compressed with ``zstd --long`` can be read too."""
PARQUET_ROWS = 64
"""Rows of a Parquet file that are in memory together."""


@dataclass(frozen=True)
class Document:
    """One document; if it could not be read, `text` is None and `error` says why."""

    number: int
    """Line of a JSONL file, row of a table, or number in a text file; counted from 1."""
    text: str | None
    """May be empty in JSONL and tables; empty documents of a text file are skipped."""
    meta: dict[str, Any] = field(default_factory=dict)
    """All other fields of the row; the fields of an object ``meta`` are merged into them, e.g. pile_set_name."""
    error: str | None = None
    columns: dict[str, bool] = field(default_factory=dict, compare=False)
    """All other fields of the row with content, and whether each contains text; meta.KEY for those of ``meta``."""


def documents(
    path: Path, *, text: str = "text", keep_empty: bool = False, limit: int = MAX_DOCUMENT
) -> Iterator[Document]:
    """Stream the documents of a file in their order; malformed ones are yielded with their error.

    Parameters
    ----------
    path : Path
        A file .jsonl, .json, .txt (also .gz, .zst of them), .parquet, .dat.zst, .zip or .tar.gz.
    text : str
        Field that contains the text; if it is ``text`` and missing, ``story`` is used.
    keep_empty : bool
        Whether to yield empty documents between two separators of a .txt file too.
    limit : int
        Most bytes of a document or a row.

    Raises
    ------
    UserError
        Immediately when the file is missing, empty or of an unknown kind; later when it is damaged. Names the file.
    """
    ending = _kind(path)
    if ending == PLAIN:
        return _of_text(path, SEPARATOR.encode(), keep_empty, limit)
    return of_rows(_rows(path, ending, text, limit), text)


def _rows(path: Path, kind: str, text: str, limit: int) -> Iterator[Row]:
    if kind == ".parquet":
        return parquet_rows(path, PARQUET_ROWS, limit)
    if kind in archives.KINDS:
        return archives.rows(path, _blocks(path), text, limit)
    if kind == ".json" and not _is_list_of_lines(path):
        return json_rows(path, _blocks(path), text, limit)
    return jsonl_rows((line for _, line in _split(path, b"\n", limit)), text, path)


def _is_list_of_lines(path: Path) -> bool:
    """Whether a .json file has one string per line, as lm_dataformat reads .json.gz, instead of one list."""
    first = next((block.lstrip() for block in _blocks(path) if block.strip()), b"")
    return first.startswith(b'"')


def is_separated(path: Path) -> bool:
    """Whether a .txt file, compressed or not, contains `SEPARATOR`."""
    first = next(_split(path, SEPARATOR.encode(), sys.maxsize), None)
    return first is not None and first[1].endswith(SEPARATOR.encode())


def kind(path: Path) -> str:
    """The ending of a file that says how it is read, without that of its compression."""
    return archives.kind(path) or (Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix)


def _kind(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'does not exist'}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty")
    ending = kind(path)
    if ending in archives.KINDS:
        return ending
    if ending not in KINDS or (ending == ".parquet" and path.suffix in COMPRESSED):
        raise UserError(
            f"{path}: not a known kind of file ({' '.join(KINDS)}; all except .parquet also as .gz and .zst; "
            f"{' '.join(archives.KINDS)})"
        )
    return ending


def of_rows(rows: Iterable[Row], name: str) -> Iterator[Document]:
    """Yield the documents in field `name` of rows."""
    requested = name
    for row in rows:
        if row.fields is None:
            yield Document(row.number, None, error=row.error)
            continue
        name = STORY if requested == "text" and "text" not in row.fields and STORY in row.fields else requested
        meta = {key: value for key, value in row.fields.items() if key != name}
        columns = {key: _is_text(value) for key, value in meta.items() if has_content(value)}
        if isinstance(inner := meta.get("meta"), dict):
            columns.pop("meta", None)
            columns |= {f"meta.{key}": _is_text(value) for key, value in inner.items() if has_content(value)}
            meta |= meta.pop("meta")
        text = row.fields.get(name)
        if isinstance(text, list) and text and all(isinstance(paragraph, str) for paragraph in text):
            text = PARAGRAPHS.join(text)
        error = _error(text, name, row.fields)
        yield Document(row.number, None if error else text, meta, error, columns)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _error(text: Any, name: str, fields: dict[str, Any]) -> str | None:
    if text is None:
        return f"no {name!r}; its fields are {', '.join(fields) or 'none'}"
    if isinstance(text, Unreadable):
        return f"{name!r} is {text.reason}"
    if not isinstance(text, str):
        return f"{name!r} is {type(text).__name__}, not text"
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can contain an escaped half of a surrogate pair
        return f"{name!r} has half of a surrogate pair at character {error.start}"
    return None


def _of_text(path: Path, separator: bytes, keep_empty: bool, limit: int) -> Iterator[Document]:
    for number, (start, chunk) in enumerate(_split(path, separator, limit), start=1):
        body = chunk.removesuffix(separator)
        if body.strip() or (keep_empty and number > 1 and len(body) < len(chunk)):
            yield _of_chunk(number, start, body, last=len(body) == len(chunk))


def _of_chunk(number: int, start: int, body: bytes, last: bool) -> Document:
    try:
        return Document(number, body.decode())
    except UnicodeDecodeError as error:
        if last and error.reason == "unexpected end of data":  # the file is cut off inside a character
            return Document(number, body[: error.start].decode())
        return Document(number, None, error=f"not UTF-8 at byte {start + error.start} of the file")


def _split(path: Path, separator: bytes, limit: int) -> Iterator[tuple[int, bytes]]:
    """Yield (first byte, chunk) for each chunk of a file, including the separator at its end; the last may have none.

    Bytes are counted from 0 in the decompressed file. Separators that span two blocks are found, each byte is searched
    once, and at most one chunk and one block are in memory.
    """
    buffer, offset = bytearray(), 0
    for block in _blocks(path):
        searched = max(0, len(buffer) - len(separator) + 1)
        buffer += block
        start = 0
        while (at := buffer.find(separator, max(start, searched))) >= 0:
            stop = at + len(separator)
            if at - start > limit:
                raise too_long(path, f"the document at byte {offset + start}", limit)
            yield offset + start, bytes(buffer[start:stop])
            start = stop
        del buffer[:start]
        offset += start
        if len(buffer) > limit + len(separator):
            raise too_long(path, f"the document at byte {offset}", limit)
    if buffer:
        yield offset, bytes(buffer)


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, decompressed, block by block, without a byte-order mark."""
    blocks = unmarked(_marked_blocks(path))
    first = next(blocks, b"")
    if path.suffix in COMPRESSED and not archives.kind(path) and (problem := foreign(first)):
        raise UserError(f"{path}: {problem}")
    yield first
    yield from blocks


def _marked_blocks(path: Path) -> Iterator[bytes]:
    if path.suffix == ".zst":
        yield from _zst_blocks(path)
    elif path.suffix == ".gz":
        yield from _gz_blocks(path)
    else:
        with open(path, "rb") as file:
            while block := file.read(READ):
                yield block


def _gz_blocks(path: Path) -> Iterator[bytes]:
    import gzip
    import zlib

    with gzip.open(path, "rb") as file:
        while True:
            try:
                block = file.read(READ)
            except EOFError:
                raise _damaged(path, "cut off") from None
            except (gzip.BadGzipFile, zlib.error) as error:
                raise _damaged(path, str(error)) from None
            if not block:
                return
            yield block


def _zst_blocks(path: Path) -> Iterator[bytes]:
    """Decompress frame by frame, to detect a file that is cut off; zstandard's stream reader does not."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    frame = None
    with open(path, "rb") as file:
        while data := file.read(READ_ZST):
            while data:
                frame = frame or decompressor.decompressobj()
                try:
                    block = frame.decompress(data)
                except zstandard.ZstdError as error:
                    raise _damaged(path, str(error)) from None
                data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
                yield block
    if frame is not None:
        raise _damaged(path, "cut off")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: damaged ({reason.splitlines()[0]}); copy or download it again")
