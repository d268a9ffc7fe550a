"""Durable files: atomic writes, directories that exist whole or not at all, hashes, and full disks with a name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from wellread.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which becomes `path` when the block ends; after an error there is the old one, or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which becomes `path` when the block ends; after an error there is none.

    Raises
    ------
    UserError
        When `path` exists.
    """
    if path.exists():
        raise UserError(f"{path}: is there already; choose another --out")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = path.absolute().with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        with full_disk_named(temporary):
            yield temporary
            for file in (found for found in temporary.rglob("*") if found.is_file()):
                fsync_file(file)
        fsync_directory(temporary)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_directory(path.absolute().parent)


def require_folder(path: Path) -> None:
    """Refuse a path to write to whose folder does not exist."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first")


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a crash or a full disk leaves the old file or the new one, never half of it."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an .npy file, atomically; unlike with `numpy.save`, a full disk is an OSError that carries its errno."""
    import io

    import numpy as np

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    write_atomic(path, header.getvalue() + array.tobytes())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What a file of JSON holds.

    Raises
    ------
    UserError
        When it is damaged.
    """
    text = path.read_bytes()
    try:
        return json.loads(text)
    except ValueError as error:  # no JSON, or not even text
        raise UserError(f"{path}: damaged ({error}); restore it from a copy") from None


def fsync_directory(path: Path) -> None:
    """Make renames and new names inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the content of a file durable that another library wrote."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def full_disk_named(directory: Path) -> Iterator[None]:
    """Turn the many ways in which libraries report a full disk into the one OSError that names `directory`."""
    try:
        yield
    except UserError:  # the user's mistake, whatever the disk
        raise
    except Exception as error:
        texts = f"{error} {error.__cause__} {error.__context__}"
        told = "No space left on device" in texts or "os error 28" in texts
        if getattr(error, "errno", None) == errno.ENOSPC or told or _free_bytes(directory) < 1 << 16:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error
        raise


def _free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
