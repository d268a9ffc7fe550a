"""Shards written by several processes. The result does not depend on their number."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from wellread.corpus.shards import shard_path
from wellread.processes import die_with, starting

Write = Callable[[Path, Any], None]
"""Writes the shard of a chunk. Other processes receive a copy of it, once."""
MOST = 1 << 26
"""Most characters that wait for a process, unless one chunk has more."""
_write: list[Write] = []
"""Of this process, if it writes shards for another."""


def cores() -> int:
    """Number of cores on which this process may run."""
    return len(os.sched_getaffinity(0))


def write_chunks(
    build: Path, chunks: Iterable[Any], write: Write, workers: int, length: Callable[[Any], int] = len
) -> Iterator[int]:
    """Write the missing shards of the chunks, one each; yield the number of chunks that were read so far.

    At most two chunks per process wait, and at most `MOST` characters.

    Parameters
    ----------
    workers : int
        Number of processes; 1: this process writes all shards.
    length : callable
        Number of characters of a chunk.

    Raises
    ------
    Exception
        What writing the first shard raises that cannot be written.
    """
    waiting: deque[tuple[Future[None], int]] = deque()
    with _pool(workers, write) as submit:
        for index, chunk in enumerate(chunks):
            path = shard_path(build, index)
            if not path.exists():
                size = length(chunk)
                while waiting and (len(waiting) >= 2 * workers or sum(n for _, n in waiting) + size > MOST):
                    waiting.popleft()[0].result()
                waiting.append((submit(path, chunk), size))
            yield index + 1
        for future, _ in waiting:
            future.result()


@contextmanager
def _pool(workers: int, write: Write) -> Iterator[Callable[[Path, Any], Future[None]]]:
    """Yield a function that writes a shard: in this process for one worker, otherwise in other processes."""
    if workers <= 1:
        yield lambda path, chunk: _written(write, path, chunk)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (os.getpid(), write))

    def submit(path: Path, chunk: Any) -> Future[None]:
        with starting():  # the first call starts the processes
            return pool.submit(_write_here, path, chunk)

    try:
        yield submit
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, or Ctrl-C, no further shard begins


def _begin(parent: int, write: Write) -> None:
    """Ignore Ctrl-C, which the parent process handles, and end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has one core
    _write.append(write)


def _write_here(path: Path, chunk: Any) -> None:
    _write[0](path, chunk)


def _written(write: Write, path: Path, chunk: Any) -> Future[None]:
    write(path, chunk)
    future: Future[None] = Future()
    future.set_result(None)
    return future
