"""The error for mistakes of the user, exit codes, and errors as one line."""

from __future__ import annotations

import errno
import os
import re

BAD_INPUT = 2
"""Exit code after a mistake of the user."""
FAILURE = 1
"""Exit code after any other failure."""
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a folder or file system in which this user cannot write."""
NOT_FILES = (errno.ENODEV, errno.ENXIO, errno.EFBIG)
"""Errors of `wellread.whole`: a device, a pipe without a writer, a file larger than memory can have."""
LINE_ENDS = re.compile(r"[ \t]*[\r\n][ \t\r\n]*")
"""Ends of lines, with the indentation of the next one; other characters may belong to a name."""


class UserError(ValueError):
    """A mistake of the user: one line that says what is wrong, where, and what to do; exit code 2.

    Any other exception is a fault of the program or its environment, and shows its traceback.
    """


def user_message(error: BaseException) -> str | None:
    """One line for an error that the user can fix, otherwise None.

    These are `UserError`, and errors of the operating system about a path: full disk, missing permission, no such file.
    """
    if isinstance(error, OSError):
        return _os_message(error)
    if isinstance(error, RuntimeError) and (loop := re.fullmatch(r"Symlink loop from '(.*)'", str(error), re.DOTALL)):
        return f"its symbolic links form a loop: {loop[1]}: name the file itself"  # what Path.resolve raises
    return LINE_ENDS.sub(" ", str(error).strip()).replace("\t", "\\t") if isinstance(error, UserError) else None


def _os_message(error: OSError) -> str | None:
    where = f": {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        if not error.filename:  # e.g. standard output; commands that write checkpoints name the path
            return "disk full: the output cannot be written; free some space, then run the same command again"
        return f"disk full{where}: free some space, then run the same command again; earlier checkpoints are intact"
    if error.errno in (errno.EACCES, errno.EPERM) and error.filename and not _readable(os.fsdecode(error.filename)):
        return f"not allowed to read{where}: ask its owner for permission, or name another path"
    if error.errno in NOT_ALLOWED:
        return f"not allowed to write{where}: choose another directory"
    if error.errno == errno.ENAMETOOLONG:
        return f"a name is too long{where}: file systems allow at most 255 bytes per name; choose a shorter one"
    if error.errno in NOT_FILES and error.filename:
        return f"{error.filename}: {error.strerror}"
    if error.errno == errno.ELOOP:
        return f"its symbolic links form a loop{where}: name the file itself"
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return f"{error.strerror}{where}"
    return None


def _readable(path: str) -> bool:
    """Whether a path that exists can be read; for one that does not exist, whether its folder can be searched."""
    try:
        if os.path.lexists(path):
            return os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0))
        folder = os.path.dirname(os.path.abspath(path))
        return os.access(folder, os.X_OK)
    except ValueError:  # a null byte
        return True
