"""Save checkpoints, in the background where memory allows; one at a time, and errors stop the training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wellread import checkpoint as checkpoints
from wellread.corpus import tokenizer
from wellread.files import full_disk_named
from wellread.train import ranks
from wellread.train.engines.base import Engine, Write


class Saver:
    """Saves the checkpoints of one run; every rank has its saver."""

    def __init__(
        self, directory: Path, engine: Engine, tokenizer_files: Path, keep_states: int, damaged: Iterable[str] = ()
    ) -> None:
        """Prepare saving into a directory, in which `damaged` names the checkpoints that cannot be resumed."""
        self._directory, self._engine, self._keep = directory, engine, keep_states
        self._damaged = set(damaged)
        self._tokenizer = tokenizer_files
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        step: int,
        manifest: dict[str, Any],
        texts: dict[str, str],
        saving: Callable[[], None],
        committed: Callable[[float, float], None],
    ) -> None:
        """Save a checkpoint; the record must already be on disk. Collective.

        Parameters
        ----------
        texts : dict
            Name and content of additional text files.
        saving : callable
            Called when saving starts.
        committed : callable
            Called on rank 0 when the checkpoint is committed, with the seconds that training was paused and the
            seconds that writing took.
        """
        self.wait()
        saving()
        began = time.perf_counter()
        staging = checkpoints.staging(self._directory, step)
        write = self._engine.snapshot()
        if write is None:
            self._write_together(step, manifest, texts, staging)
            if ranks.rank() == 0:
                committed(time.perf_counter() - began, time.perf_counter() - began)
        elif ranks.rank() == 0:
            stall = time.perf_counter() - began
            arguments = (step, manifest, texts, staging, write, lambda seconds: committed(stall, seconds))
            self._thread = threading.Thread(target=self._write_in_background, args=arguments, name=f"save-{step}")
            self._thread.start()

    def check(self) -> None:
        """Raise the error of the background thread, if it has failed."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait until the current checkpoint is committed; raise if saving it has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def finish(self, say: Callable[[str], None]) -> None:
        """Wait until the current checkpoint is committed, while another error ends the run. Collective."""
        try:
            self.wait()
        except Exception as error:
            say(f"the last checkpoint was not saved: {error}")
        ranks.barrier()  # the launcher ends all ranks when one has ended

    def _write_together(self, step: int, manifest: dict[str, Any], texts: dict[str, str], staging: Path) -> None:
        with self._cleared_on_error():
            if ranks.rank() == 0:
                staging.mkdir()
            ranks.barrier()
            self._engine.save(staging)
            ranks.barrier()
            if ranks.rank() == 0:
                self._commit(step, manifest, texts, staging)
        ranks.barrier()

    def _write_in_background(
        self,
        step: int,
        manifest: dict[str, Any],
        texts: dict[str, str],
        staging: Path,
        write: Write,
        committed: Callable[[float], None],
    ) -> None:
        began = time.perf_counter()
        try:
            with self._cleared_on_error():
                staging.mkdir()
                write(staging)
                self._commit(step, manifest, texts, staging)
            committed(time.perf_counter() - began)
        except BaseException as error:
            self._error = error  # the training thread raises it at its next step

    @contextmanager
    def _cleared_on_error(self) -> Iterator[None]:
        """Remove an unfinished checkpoint after an error; report a full disk as an OSError (see `full_disk_named`)."""
        try:
            with full_disk_named(self._directory):  # checks the disk before the files are removed
                yield
        except Exception:
            checkpoints.clear_staging(self._directory)
            raise

    def _commit(self, step: int, manifest: dict[str, Any], texts: dict[str, str], staging: Path) -> None:
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")
        tokenizer.copy_files(self._tokenizer, staging / "model")
        checkpoints.commit(self._directory, step, manifest)
        self._damaged.discard(checkpoints.name_of(step))
        checkpoints.drop_old_states(self._directory, self._keep, self._damaged)
