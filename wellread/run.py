"""The run directory: its paths, its manifest, its lock."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from wellread.errors import UserError
from wellread.files import open_unlinked, read_json, refuse_links, write_atomic
from wellread.text_io import load_yaml
from wellread.whole import read_whole

if TYPE_CHECKING:
    from wellread.config import RunConfig


ORDER = {
    "kind": str, "seed": int, "n": int, "batch_size": int, "version": int, "pass": str, "ids": str, "by": str,
    "source": (str, None), "canaries": str, "inserted": str,
}  # fmt: skip
IDENTITY = {"order": ORDER, "steps": int, "batch_size": int, "seq_len": int, "corpus": str, "model": str}
TIME = re.compile(r"\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d[+-]\d{4}")
ATTEMPT = {
    "attempt": int, "started": TIME, "ended": TIME, "exit_code": int, "cluster": str, "strategy": str, "ranks": int,
    "nodes": int, "ranks_per_node": int, "device": str, "hosts": [str], "host": str, "job": str, "restart": int,
    "grad_accum_dtype": (str, None),
}  # fmt: skip
MANIFEST = {"version": int, "identity": IDENTITY, "attempts": [ATTEMPT], "checksum": str}
"""Shape of manifest.json."""
CHECKSUM = "# sha256 of the lines above: "
"""Beginning of the last line of config.yaml."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths and small files of one run. Programs exchange data only through a run directory."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Open an existing run.

        Raises
        ------
        UserError
            When `path` is not a run directory.
        """
        run = cls(Path(path))
        if not run.config_file.is_file():
            raise UserError(f"{path}: not a run directory (it has no config.yaml){_instead(run.path)}")
        return run

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.resolve().name

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def plan_file(self) -> Path:
        """The plan of the newest attempt."""
        return self.path / "plan.json"

    @property
    def manifest_file(self) -> Path:
        """Identity, versions, attempts."""
        return self.path / "manifest.json"

    @property
    def corpus(self) -> Path:
        """Link to the compiled corpus."""
        return self.path / "corpus"

    @property
    def order_file(self) -> Path:
        """Sample ids of a listed order."""
        return self.path / "order.npy"

    @property
    def order_notes(self) -> Path:
        """Phases of a curriculum, and the slots of its insertions and of canaries."""
        return self.path / "order.json"

    @property
    def record(self) -> Path:
        """The reading record."""
        return self.path / "record"

    @property
    def checkpoints(self) -> Path:
        """One directory per checkpoint."""
        return self.path / "checkpoints"

    @property
    def code(self) -> Path:
        """Snapshot of the code of the newest attempt."""
        return self.path / "code"

    @property
    def submit(self) -> Path:
        """Files submitted to SLURM, and job ids."""
        return self.path / "submit"

    @property
    def log(self) -> Path:
        """Logs, one file per rank and attempt."""
        return self.path / "log"

    @property
    def tb(self) -> Path:
        """TensorBoard events."""
        return self.path / "tb"

    @property
    def eval(self) -> Path:
        """Result tables of evaluations."""
        return self.path / "eval"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report"

    def config(self) -> RunConfig:
        """Read config.yaml."""
        import yaml

        from wellread.config import from_file, kind_of

        text = read_whole(self.config_file)
        try:
            values = load_yaml(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.config_file}: damaged ({reason}); restore it from a copy") from None
        kind = kind_of(values if isinstance(values, dict) else {})
        config: RunConfig = from_file(kind, values, self.config_file)
        return config

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml."""
        import yaml

        from wellread.config import to_dict

        text = yaml.safe_dump(to_dict(config), sort_keys=False)
        write_atomic(self.config_file, f"{text}{CHECKSUM}{hashlib.sha256(text.encode()).hexdigest()}\n")

    def manifest(self) -> dict[str, Any]:
        """Read manifest.json."""
        manifest: dict[str, Any] = read_json(self.manifest_file, MANIFEST)
        return manifest

    def refuse_links(self) -> None:
        """Refuse a run with links in it, before anything is written to it. Only its corpus is one.

        The code may contain links; those in ``submit`` and ``wandb`` are from submitit and Weights & Biases.
        """
        refuse_links(self.path, allowed={self.corpus.name}, foreign={self.code.name, self.submit.name, "wandb"})

    @contextmanager
    def lock(self, patience: float = 0) -> Iterator[None]:
        """Lock the run for one launch. The kernel releases the lock when this process ends for any reason.

        Parameters
        ----------
        patience : float
            Seconds to wait for another process to release the lock.

        Raises
        ------
        UserError
            When another launch has the lock; names its process.
        """
        created = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self.refuse_links()
        path = self.path / "lock"
        with open_unlinked(path, "a+") as file:
            _acquire(file, self.path, patience)
            try:
                yield
            finally:
                file.truncate(0)
                if created and not self.config_file.exists():  # the launch failed early: remove the new directory
                    path.unlink()
                    with suppress(OSError):
                        for path in (self.corpus, self.order_file, self.order_notes):
                            path.unlink(missing_ok=True)
                        self.path.rmdir()

    def holder(self) -> Holder | None:
        """The process that has the run's lock, or None."""
        import fcntl

        try:
            file = open_unlinked(self.path / "lock", "r")
        except FileNotFoundError:
            return None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                match = re.match(r"process (\d+) on (\S+) since", file.read())
                return Holder(int(match.group(1)), match.group(2)) if match else Holder(0, "")
        return None


SECONDS_OF_A_LOOK = 0.5
"""A launch waits at least this long for the lock, because `RunDirectory.holder` takes it for an instant."""


@dataclass(frozen=True)
class Holder:
    """Process that has the lock of a run."""

    pid: int
    """0 while the process has the lock but has not yet written its id."""
    host: str


def _acquire(file: IO[str], run: Path, patience: float) -> None:
    import fcntl  # here, because records can be read on systems without fcntl

    deadline = time.monotonic() + max(patience, SECONDS_OF_A_LOOK)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            file.seek(0)
            holder = file.read().strip() or "another launch"
            raise UserError(f"{run}: in use by {holder}; wait for it, or choose another --out") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}")
    file.flush()


def _instead(path: Path) -> str:
    """Where the run is that somebody may have meant, as the end of a message."""
    outer = next((folder for folder in path.absolute().parents if (folder / "config.yaml").is_file()), None)
    if outer:
        return f"; it is inside the run {outer}"
    inner = sorted(file.parent for file in path.glob("*/config.yaml"))
    if inner:
        return f"; it is a folder of runs, such as {inner[0]}"
    return "; see the folder runs/ for yours"
