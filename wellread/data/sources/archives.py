"""Archives of documents as lm_dataformat's Reader 0.0.20 reads them: .dat.zst, .zip and .tar.gz.

Each member of a .zip or .tar.gz is one document, except members that are tables themselves (.jsonl, .json, .csv): their
rows are documents. Members of other known kinds, and links, are refused by name. Hidden members, and those that macOS
adds, are skipped. Nothing is extracted to disk.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from wellread.data.sources.json_rows import json_rows, jsonl_rows
from wellread.data.sources.source import Row, too_long
from wellread.data.sources.tables import UNSUPPORTED, csv_rows
from wellread.errors import UserError
from wellread.text_io import foreign

KINDS = (".dat.zst", ".zip", ".tar.gz")
LENGTH = 16
"""Digits before each document of a .dat.zst file: its number of bytes."""
BLOCK = 1 << 20
"""Bytes that are read at once."""
REFUSED = (*UNSUPPORTED, ".parquet", ".arrow", ".gz", ".zst", ".zip", ".npy", ".npz", ".bin", ".idx")
"""Kinds of members that are neither text nor a table that is read."""
ADDED = "__MACOSX"
"""Folder of an archive with what macOS adds to it: attributes of the other members."""
VERSION = 2
"""Raise it when the same .zip or .tar.gz has other documents."""


def kind(path: Path) -> str | None:
    """The ending of `KINDS` that a file has; None for other files."""
    return next((ending for ending in KINDS if path.name.endswith(ending)), None)


def rows(path: Path, blocks: Iterator[bytes], column: str, limit: int) -> Iterator[Row]:
    """Yield the documents of an archive as rows with the text in field `column`, numbered over all members.

    Parameters
    ----------
    blocks : iterator of bytes
        The decompressed bytes of a .dat.zst file; not read for the other kinds.
    limit : int
        Largest number of bytes of one member.

    Raises
    ------
    UserError
        When the archive is damaged, a member is longer than `limit`, or of a kind that cannot be read.
    """
    if kind(path) == ".dat.zst":
        yield from _dat_rows(path, blocks, column, limit)
        return
    last = 0
    for name, data in _zip_members(path, limit) if kind(path) == ".zip" else _tar_members(path, limit):
        before = last
        for row in _member_rows(path, name, data, column, limit):
            last = before + row.number
            yield Row(last, row.fields, f"member {name!r} row {row.number}: {row.error}" if row.error else None)


def _dat_rows(path: Path, blocks: Iterator[bytes], column: str, limit: int) -> Iterator[Row]:
    buffer, number = bytearray(), 0
    blocks = iter(blocks)

    def fill(count: int) -> bool:
        while len(buffer) < count:
            if (block := next(blocks, None)) is None:
                return False
            buffer.extend(block)
        return True

    while fill(1):
        number += 1
        digits = bytes(buffer[:LENGTH]) if fill(LENGTH) else b""
        if not digits.isdigit():
            raise _damaged(path, f"document {number} does not begin with its length in {LENGTH} digits")
        end = LENGTH + int(digits)
        if end - LENGTH > limit:
            raise too_long(path, f"document {number}", limit)
        if not fill(end):
            raise _damaged(path, f"cut off inside document {number}")
        yield _text_row(number, bytes(buffer[LENGTH:end]), column)
        del buffer[:end]


def _text_row(number: int, data: bytes, column: str) -> Row:
    try:
        return Row(number, {column: data.decode("utf-8-sig")})
    except UnicodeDecodeError as error:
        return Row(number, None, f"not UTF-8 at byte {error.start}")


def _member_rows(path: Path, name: str, data: bytes, column: str, limit: int) -> Iterator[Row]:
    where = path / name
    ending = PurePosixPath(name).suffix.lower()
    if ending in REFUSED:
        raise UserError(f"{path}: member {name!r} is a {ending} file; take it out of the archive")
    if problem := foreign(data):
        raise UserError(f"{where}: {problem}")
    if ending == ".jsonl":
        return jsonl_rows(io.BytesIO(data), column, where)
    if ending == ".json":
        return json_rows(where, iter([data]), column, limit)
    if ending == ".csv":
        return csv_rows(where, io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=""), limit)
    return iter([_text_row(1, data, column)])


def _skipped(name: str) -> bool:
    """Whether a member is hidden, as in a folder, or added by macOS."""
    parts = PurePosixPath(name).parts
    return ".." not in parts and any(part.startswith(".") or part == ADDED for part in parts)


def _check_kind(path: Path, name: str, is_file: bool) -> None:
    if ".." in PurePosixPath(name).parts:
        raise UserError(f"{path}: member {name!r} has .. in its name; write the archive again without it")
    if not is_file:
        raise UserError(f"{path}: member {name!r} is a link or a device; write the archive again without it")


def _read(path: Path, name: str, file: IO[bytes], limit: int) -> tuple[str, bytes]:
    data = file.read(limit + 1)
    if len(data) > limit:
        raise too_long(path, f"member {name!r}", limit)
    return name, data


def _zip_members(path: Path, limit: int) -> Iterator[tuple[str, bytes]]:
    import zipfile

    with _damage_named(path), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir() and not _skipped(member.filename):
                kind_of_file = stat.S_IFMT(member.external_attr >> 16)  # 0 in archives of other systems
                _check_kind(path, member.filename, kind_of_file in (0, stat.S_IFREG))
                with archive.open(member) as file:
                    yield _read(path, member.filename, file, limit)


def _tar_members(path: Path, limit: int) -> Iterator[tuple[str, bytes]]:
    import gzip
    import tarfile

    with _damage_named(path), gzip.open(path) as content, tarfile.open(fileobj=content, mode="r|") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else it keeps the headers of all members
            if member.isdir() or _skipped(member.name):
                continue
            _check_kind(path, member.name, member.isfile())
            if (file := archive.extractfile(member)) is not None:
                yield _read(path, member.name, file, limit)
        while content.read(BLOCK):  # to its end, where gzip compares length and checksum
            pass


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn errors about the content of an archive into one line."""
    import lzma
    import tarfile
    import zipfile
    import zlib

    damage = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError)
    try:
        yield
    except damage as error:
        if isinstance(error, OSError) and error.errno:  # not about the content
            raise
        raise _damaged(path, str(error) or type(error).__name__) from None
    except RuntimeError as error:  # a member with a password
        raise UserError(f"{path}: cannot be read ({error})") from None


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: damaged ({reason.splitlines()[0]}); copy or download it again")
