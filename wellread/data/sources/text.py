"""Documents of plain text for pretraining, streamed: however large the source, a few documents are in memory.

Sources are JSONL with one object a line, as lm_dataformat writes The Pile (text, meta.pile_set_name); JSON lists, as
TinyStories' archive (story, instruction, summary, source); Parquet; running text with a separator between documents;
and one split of a hub set. All but Parquet may be packed as .gz or .zst.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wellread.data.sources.source import Row
from wellread.data.sources.tables import READ, json_rows, jsonl_rows, parquet_rows
from wellread.errors import UserError

SEPARATOR = "<|endoftext|>"
HUB = "hub:"
PACKED = (".gz", ".zst")
KINDS = (".jsonl", ".json", ".txt", ".parquet")
STORY = "story"
"""Field of TinyStories' archive, taken where a row has no ``text``."""
READ_ZST = 1 << 10
"""Packed bytes read at once: repetitive text may unpack to thousands of times its size."""
WINDOW = 1 << 31
"""Largest window that zstd knows: files packed with ``zstd --long`` are read, too."""
PARQUET_ROWS = 64
"""Rows of a Parquet file that are in memory together."""


@dataclass(frozen=True)
class Document:
    """One document as it was read; `text` is None where it could not be, and `error` says why."""

    number: int
    """Line of a JSONL file, row of a table, or place in a text file; from 1."""
    text: str | None
    """May be empty in JSONL and tables; blank documents of a text file are passed over."""
    meta: dict[str, Any] = field(default_factory=dict)
    """All other fields of the row; those of an object ``meta`` stand beside them, e.g. pile_set_name."""
    error: str | None = None


def documents(
    source: str | Path, *, text: str = "text", separator: str = SEPARATOR, strip: bool = False, blank: bool = False
) -> Iterator[Document]:
    """Stream the documents of a source in its own order; broken ones are yielded with their error.

    Parameters
    ----------
    source : str or Path
        A file .jsonl, .json, .txt (also .gz, .zst of them) or .parquet; or ``hub:NAME``, ``hub:NAME:SPLIT``
        or ``hub:NAME:CONFIG:SPLIT`` (default split: train), which is streamed, never downloaded as a whole.
    text : str
        Field that holds the text; where ``text`` is not there, ``story`` is taken.
    separator : str
        Stands between the documents of a .txt file. What follows the last one is a document, too, which may be cut.
    strip : bool
        Take white space off both ends of each text.
    blank : bool
        Yield blank documents between two separators of a .txt file, too.

    Raises
    ------
    UserError
        At once when the source is missing, empty or of an unknown kind; later when it turns out to be damaged, or when
        the hub cannot be reached. Names the source.
    """
    if not separator:
        raise UserError("separator of documents: empty; give the characters that stand between them")
    if str(source).startswith(HUB):
        found = of_rows(_hub_rows(str(source), *_hub_split(str(source))), text)
    else:
        path = Path(source)
        kind = _kind(path)
        found = _of_text(path, separator.encode(), blank) if kind == ".txt" else of_rows(_rows(path, kind), text)
    return (_stripped(document) for document in found) if strip else found


def _rows(path: Path, kind: str) -> Iterator[Row]:
    if kind == ".parquet":
        return _parquet_rows(path)
    return json_rows(path, _blocks(path)) if kind == ".json" else jsonl_rows(line for _, line in _split(path, b"\n"))


def is_separated(path: Path, separator: str = SEPARATOR) -> bool:
    """Whether a .txt file, packed or not, has a separator anywhere."""
    found = next(_split(path, separator.encode()), None)
    return found is not None and found[1].endswith(separator.encode())


def _kind(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'does not exist'}")
    kind = Path(path.stem).suffix if path.suffix in PACKED else path.suffix
    if kind not in KINDS or (kind == ".parquet" and path.suffix in PACKED):
        raise UserError(f"{path}: not a known kind of file ({' '.join(KINDS)}; all but .parquet also as .gz and .zst)")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty")
    return kind


def _stripped(document: Document) -> Document:
    text = None if document.text is None else document.text.strip()
    return Document(document.number, text, document.meta, document.error)


def of_rows(rows: Iterable[Row], name: str) -> Iterator[Document]:
    """The documents that are in field `name` of rows."""
    wanted = name
    for row in rows:
        if row.fields is None:
            yield Document(row.number, None, error=row.error)
            continue
        name = STORY if wanted == "text" and "text" not in row.fields and STORY in row.fields else wanted
        meta = {key: value for key, value in row.fields.items() if key != name}
        if isinstance(meta.get("meta"), dict):
            meta |= meta.pop("meta")
        text = row.fields.get(name)
        error = _error(text, name, row.fields)
        yield Document(row.number, None if error else text, meta, error)


def _error(text: Any, name: str, fields: dict[str, Any]) -> str | None:
    if text is None:
        return f"no {name!r}; its fields are {', '.join(fields) or 'none'}"
    if not isinstance(text, str):
        return f"{name!r} is {type(text).__name__}, not text"
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may escape half of a surrogate pair
        return f"{name!r} has half of a surrogate pair at character {error.start}"
    return None


def _of_text(path: Path, separator: bytes, blank: bool) -> Iterator[Document]:
    for number, (start, piece) in enumerate(_split(path, separator), start=1):
        body = piece.removesuffix(separator)
        if body.strip() or (blank and number > 1 and len(body) < len(piece)):
            yield _of_piece(number, start, body, last=len(body) == len(piece))


def _of_piece(number: int, start: int, body: bytes, last: bool) -> Document:
    try:
        return Document(number, body.decode())
    except UnicodeDecodeError as error:
        if last and error.reason == "unexpected end of data":  # the file is cut inside a character
            return Document(number, body[: error.start].decode())
        return Document(number, None, error=f"not UTF-8 at byte {start + error.start} of the file")


def _split(path: Path, separator: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (first byte, piece) of each stretch up to a separator, which it keeps; the last may have none.

    Bytes count from 0 in the unpacked file. A separator is found across the borders of blocks, each byte is searched
    once, and no more than one piece and one block are held.
    """
    held, origin = bytearray(), 0
    for block in _blocks(path):
        searched = max(0, len(held) - len(separator) + 1)
        held += block
        start = 0
        while (found := held.find(separator, max(start, searched))) >= 0:
            stop = found + len(separator)
            yield origin + start, bytes(held[start:stop])
            start = stop
        del held[:start]
        origin += start
    if held:
        yield origin, bytes(held)


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, unpacked, block by block."""
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
    """Unpack frame after frame: unlike zstandard's own reader, which takes a file that is cut off for a whole one."""
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    frame = None
    with open(path, "rb") as file:
        while packed := file.read(READ_ZST):
            while packed:
                frame = frame or unpacker.decompressobj()
                try:
                    block = frame.decompress(packed)
                except zstandard.ZstdError as error:
                    raise _damaged(path, str(error)) from None
                packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
                yield block
    if frame is not None:
        raise _damaged(path, "cut off")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: damaged ({reason.splitlines()[0]}); copy or download it again")


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow

    try:
        yield from parquet_rows(path, PARQUET_ROWS)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, str(error)) from None


def _hub_split(spec: str) -> tuple[list[str], str]:
    """Name with or without configuration, and split."""
    names = spec.removeprefix(HUB).split(":")
    if not all(names) or len(names) > 3:
        raise UserError(f"{spec}: expected {HUB}NAME, {HUB}NAME:SPLIT or {HUB}NAME:CONFIG:SPLIT")
    return (names[:-1], names[-1]) if len(names) > 1 else (names, "train")


def _hub_rows(spec: str, names: list[str], split: str) -> Iterator[Row]:
    import datasets

    try:
        for number, value in enumerate(datasets.load_dataset(*names, split=split, streaming=True), start=1):
            yield Row(number, dict(value))
    except Exception as error:  # of the hub, its client, the network or the set's own files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{spec}: cannot be had from the hub ({reason}); download its file and pass that") from None
