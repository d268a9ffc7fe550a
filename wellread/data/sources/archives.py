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
from typing import IO, TYPE_CHECKING, Any

from wellread.data.sources.json_rows import json_rows, jsonl_rows
from wellread.data.sources.source import Row, too_long
from wellread.data.sources.tables import UNSUPPORTED, csv_rows
from wellread.errors import UserError
from wellread.text_io import foreign

if TYPE_CHECKING:
    import zipfile

KINDS = (".dat.zst", ".zip", ".tar.gz")
LENGTH = 16
"""Digits before each document of a .dat.zst file: its number of bytes."""
REFUSED = (*UNSUPPORTED, ".parquet", ".arrow", ".gz", ".zst", ".zip", ".npy", ".npz", ".bin", ".idx")
"""Kinds of members that are neither text nor a table that is read."""
ADDED = "__MACOSX"
"""Folder of an archive with what macOS adds to it: attributes of the other members."""
HEADER = 512
"""Bytes of a header in a tar, and of each of the two blocks of zeros at its end."""
LOCAL_HEADER = 30
"""Fewest bytes of a member of a .zip."""
ZIP_END = b"PK\5\6"
"""Begins the last record of a .zip: 22 bytes and a comment of at most 65,535."""
VERSION = 3
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
        _check_whole_zip(path, archive)
        for member in archive.infolist():
            if not member.is_dir() and not _skipped(member.filename):
                kind_of_file = stat.S_IFMT(member.external_attr >> 16)  # 0 in archives of other systems
                _check_kind(path, member.filename, kind_of_file in (0, stat.S_IFREG))
                with archive.open(member) as file:
                    yield _read(path, member.filename, file, limit)


def _check_whole_zip(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse bytes before the first member and after the end: zipfile skips them, also if they are another archive."""
    with open(path, "rb") as file:
        start = file.read(4)
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 22 - 0xFFFF))
        tail = file.read()
    end = tail.rfind(ZIP_END)
    first = min((member.header_offset for member in archive.infolist()), default=size - len(tail) + end)
    if first >= LOCAL_HEADER:
        if start in (b"PK\3\4", ZIP_END):
            raise _several(path, first)
        raise UserError(f"{path}: {first:,} bytes precede the archive, e.g. a program; unpack it")
    after = tail[end + 22 + len(archive.comment) :]
    if after.strip(b"\0"):
        raise _damaged(path, f"its last {len(after):,} bytes are after its end")


def _tar_members(path: Path, limit: int) -> Iterator[tuple[str, bytes]]:
    import gzip
    import tarfile

    class Member(tarfile.TarInfo):
        """A header; `TarFile.next` takes one that is damaged or cut off for the end of the archive."""

        @classmethod
        def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Member:
            at = tarfile_.fileobj.tell()
            try:
                return super().fromtarfile(tarfile_)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros
                raise
            except tarfile.HeaderError as error:
                raise tarfile.ReadError(f"at byte {at:,} of the tar: {error}") from None

    with (
        _damage_named(path),
        gzip.open(path) as content,
        tarfile.open(fileobj=content, mode="r|", tarinfo=Member) as archive,
    ):
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else it keeps the headers of all members
            if member.isdir() or _skipped(member.name):
                continue
            _check_kind(path, member.name, member.isfile())
            if (file := archive.extractfile(member)) is not None:
                yield _read(path, member.name, file, limit)
        _check_end_of_tar(path, archive.fileobj)


def _check_end_of_tar(path: Path, content: Any) -> None:
    """Refuse all but zeros after the first block of zeros, up to the end, where gzip compares length and checksum."""
    import tarfile

    if len(block := content.read(HEADER)) < HEADER:
        raise _damaged(path, "cut off: the tar does not end with two blocks of zeros")
    while block:
        if block.strip(b"\0"):
            at = content.tell() - len(block)
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                raise _damaged(path, f"the tar ends before byte {at:,}, but data follow") from None
            raise _several(path, at)
        block = content.read(HEADER)


def _several(path: Path, at: int) -> UserError:
    return UserError(f"{path}: a second archive begins at byte {at:,} of its content; unpack them into one folder")


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
