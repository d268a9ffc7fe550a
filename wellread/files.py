"""Durable files: atomic writes of files and directories, hashes, and one error for a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, Any

from wellread.errors import UserError
from wellread.shapes import REMEDY, mismatch
from wellread.whole import read_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray


LINK = "a link or a special file in place of a file of wellread; remove it"
KEPT_MAPPED = 1 << 26
"""Bytes of a mapped array that `release` leaves in memory."""
LONGEST_REASON = 120
"""Characters of a library's reason that an error repeats."""


def open_unlinked(path: Path, mode: str, buffering: int = -1) -> IO[Any]:
    """Open a file of a run or a corpus as `open` does, but never through a symbolic link, nor a pipe or device.

    Whoever may write to the folder could otherwise let this process empty or extend any file of its user.

    Raises
    ------
    UserError
        When `path` is a link or not a regular file; the link's target is unchanged.
    """
    refused = f"{path}: {LINK}"

    def opener(name: str, flags: int) -> int:
        return os.open(name, (flags & ~os.O_TRUNC) | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)

    try:
        file = open(path, mode, buffering, encoding=None if "b" in mode else "utf-8", opener=opener)  # noqa: SIM115
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # ENXIO: a pipe that nobody reads, or a socket
            raise UserError(refused) from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(refused)
    if "w" in mode:
        file.truncate(0)
    return file


def refuse_links(folder: Path, allowed: Collection[str] = (), foreign: Collection[str] = ()) -> None:
    """Refuse a folder that this process writes to if it contains links, at any depth: files would be written elsewhere.

    Parameters
    ----------
    allowed : collection of str
        Names in `folder` that may be links.
    foreign : collection of str
        Names of folders in `folder` whose content may contain links, because nothing is written there.

    Raises
    ------
    UserError
        It names the first link.
    """
    with suppress(FileNotFoundError), os.scandir(folder) as entries:  # a temporary folder of another process
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_symlink() and entry.name not in allowed:
                raise UserError(f"{entry.path}: {LINK}")
            if entry.is_dir(follow_symlinks=False) and entry.name not in foreign:
                refuse_links(Path(entry.path))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it contains, if it exists; several processes may do so at once.

    It is renamed first, so that nobody adds files to what is removed.
    """
    removed = path.with_name(f"{path.name}.{secrets.token_hex(4)}.removed")
    try:
        os.rename(path, removed)
    except FileNotFoundError:
        return
    while os.path.lexists(removed):
        with suppress(FileNotFoundError):  # another process removes it at the same time
            if removed.is_dir() and not removed.is_symlink():
                shutil.rmtree(removed)
            else:
                removed.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file that replaces `path` when the block ends; after an error `path` is unchanged."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a process of the same number, or a link to another file
        file = open(temporary, "xb")  # noqa: SIM115
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # the user knows only `path`
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and str(error.filename or temporary) == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    fsync_directory(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory that is renamed to `path` when the block ends and removed after an error.

    Raises
    ------
    UserError
        When `path` exists.
    """
    if path.exists():
        raise UserError(f"{path}: already exists; choose another --out")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = path.absolute().with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.mkdir()
        except OSError as error:  # e.g. below /proc; the user knows only `path`
            raise UserError(f"{path}: cannot be created ({error.strerror}); choose another --out") from None
        with full_disk_named(temporary):
            yield temporary
            for file in (child for child in temporary.rglob("*") if child.is_file()):
                fsync_file(file)
        fsync_directory(temporary)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_directory(path.absolute().parent)


def require_folder(path: Path) -> None:
    """Raise UserError unless the folder of `path`, a file to write, exists."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist; create it first")


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`; after a crash or a full disk the file is the old or the new one, never a part of it."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an .npy file, atomically. On a full disk the OSError has its errno, unlike with `numpy.save`."""
    write_atomic(path, array_header(array) + array.tobytes())


def array_header(array: NDArray[Any]) -> bytes:
    """What an .npy file has before the values of an array."""
    import io

    import numpy as np

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a JSON file, with `checksum`: the sha256 of the rest (docs/formats.md)."""
    return content | {"checksum": checksum(content)}


def checksum(content: dict[str, Any]) -> str:
    """The sha256 of an object without its `checksum`, as JSON with sorted keys."""
    hashed = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, shape: Any = object, remedy: str = REMEDY) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    shape : type, tuple, list or dict
        What the file contains (`wellread.shapes`).
    remedy : str
        What an error says to do.

    Raises
    ------
    UserError
        When it is damaged or has another shape; reading a missing key of an object in it raises one, too.
    """
    try:
        value = json.loads(read_whole(path))
    except (ValueError, RecursionError) as error:  # not JSON, not even text, or nested too deeply
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise UserError(f"{path}: damaged ({reason}); {remedy}") from None
    return _checked(value, shape, path, remedy)


class Content(dict[str, Any]):
    """A JSON object that knows its file; reading a missing key is a UserError."""

    where: str
    """The file, and which object of it."""

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.where}: damaged ({key!r} is missing); {REMEDY}")


def _checked(value: Any, shape: Any, path: object, remedy: str) -> Any:
    """The value of a file with `Content` instead of its dicts.

    Raises
    ------
    UserError
        When the value does not have this shape; names the file and the key.
    """
    problem = mismatch(value, shape, "")
    if problem:
        raise UserError(f"{path}: damaged ({problem}); {remedy}")
    return _content(value, str(path))


def _content(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        content = Content((name, _content(each, where)) for name, each in value.items())
        content.where = where
        return content
    return [_content(each, where) for each in value] if isinstance(value, list) else value


@contextmanager
def damage_named(path: Path, remedy: str) -> Iterator[None]:
    """Turn an error of pyarrow or numpy about the content of `path` into a UserError that names the file.

    Errors of the operating system, which have an errno, are not about the content.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, LookupError, TypeError, NotImplementedError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        raise UserError(f"{path}: damaged ({reason}); {remedy}") from None


def load_array(path: Path, remedy: str) -> Any:
    """Map the array of an .npy file; UserError when the file is damaged."""
    with damage_named(path, remedy):
        return map_array(path)


def map_array(path: Path) -> Any:
    """Map the array of an .npy file.

    Raises
    ------
    ValueError
        When its content is damaged. numpy parses the header as Python, so it raises whatever a parser raises.
    """
    import numpy as np

    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (
        SyntaxError, TokenError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RecursionError,
        TypeError,
    ) as error:  # fmt: skip
        raise ValueError(str(error) or type(error).__name__) from None


def release(array: NDArray[Any]) -> None:
    """Give back the memory of a large array that is mapped from a file; what is used again is read again."""
    if array.nbytes <= KEPT_MAPPED or array.flags.writeable:
        return
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is not None:
        base.madvise(mmap.MADV_DONTNEED)


def fsync_directory(path: Path) -> None:
    """Make renames and new files inside the directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the content of a file durable; for files that other libraries write."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes; reads the file in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def full_disk_named(directory: Path) -> Iterator[None]:
    """Turn a full disk, which libraries report in many ways, into an OSError with ENOSPC that names `directory`."""
    try:
        yield
    except UserError:  # a mistake of the user, even if the disk is full
        raise
    except Exception as error:
        texts = f"{error} {error.__cause__} {error.__context__}"
        reported = "No space left on device" in texts or "os error 28" in texts
        if getattr(error, "errno", None) == errno.ENOSPC or reported or _free_bytes(directory) < 1 << 16:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error
        raise


def _free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
