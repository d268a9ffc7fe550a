"""A corpus is built beside its place and moved there when it is whole; one process builds it, others wait."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wellread.files import fsync_directory, full_disk_named


@contextmanager
def building(target: Path) -> Iterator[Path | None]:
    """Give a build directory that becomes `target` when the block succeeds; None when `target` is already there.

    After an error the build directory is removed. After a crash it stays, and the next build reuses its shards.
    """
    with _only_builder(target):  # another build of the same corpus: wait for it, then find it done
        if (target / "corpus.json").is_file():
            yield None
            return
        build = target.with_name(f".{target.name}.building")
        build.mkdir(exist_ok=True)
        try:
            with full_disk_named(target.parent):
                yield build
                shutil.rmtree(build / "shards", ignore_errors=True)
                os.rename(build, target)
                fsync_directory(target.parent)
        except Exception:
            shutil.rmtree(build, ignore_errors=True)
            raise


@contextmanager
def _only_builder(target: Path) -> Iterator[None]:
    """Wait until nobody else builds `target`; afterwards nothing is left of the lock, nor of a folder made for it."""
    import fcntl

    path = target.with_name(f".{target.name}.lock")
    while True:
        made = not target.parent.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "w")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            continue  # who had made the folder has removed it
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), path):
                continue  # who held it has removed it: others may hold a new one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                if made:
                    with suppress(OSError):  # it holds a corpus
                        target.parent.rmdir()
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
