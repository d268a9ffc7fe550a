"""Build a corpus in a temporary directory and rename it when it is complete; one process builds, others wait."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wellread.files import fsync_directory, full_disk_named, open_unlinked, refuse_links


@contextmanager
def building(target: Path) -> Iterator[Path | None]:
    """Yield a build directory that is renamed to `target` when the block succeeds; None when `target` already exists.

    After an error the build directory is removed. After a crash it remains, and the next build reuses its shards.
    """
    with only_builder(target):  # if another process builds the same corpus: wait, then use its result
        if (target / "corpus.json").is_file():
            yield None
            return
        build = target.with_name(f".{target.name}.building")
        if build.is_symlink():
            build.unlink()
        build.mkdir(exist_ok=True)
        refuse_links(build)
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
def only_builder(target: Path) -> Iterator[None]:
    """Wait until no other process builds or changes `target`. Its lock, and a folder made for it, are removed later."""
    import fcntl

    path = target.with_name(f".{target.name}.lock")
    while True:
        created = not target.parent.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open_unlinked(path, "w")
        except FileNotFoundError:
            continue  # the process that created the folder has removed it
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), path):
                continue  # the previous holder has removed this file: another process may have locked a new one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                if created:
                    with suppress(OSError):  # not empty: it contains a corpus
                        target.parent.rmdir()
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
