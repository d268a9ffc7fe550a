"""The rendezvous of ranks on one node: a file that only this user can open, and no listening socket."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from wellread.processes import STORE

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

NAME = "wellread-one-node"
"""Name of the rendezvous in torch's registry."""
LOOPBACK = "127.0.0.1"
PREFIX = "wellread-ranks-"
"""How the names of the folders with a store begin, in the folder for temporary files."""
LOCK = "lock"
"""Next to the store: locked as long as the launcher lives, so that others can remove what a killed one has left."""


@contextmanager
def environment() -> Iterator[int]:
    """Set the variable with which ranks on this node find each other; afterwards remove the file and the variable.

    ``tempfile.mkdtemp`` makes a folder with mode 0700, so no other user can read or write the store in it.

    Yields
    ------
    int
        MASTER_PORT of the ranks: reserved, so no other run on this node has the same, and nothing listens on it.
        DeepSpeed's ranks exchange gradients through shared memory that is named by it.
    """
    _remove_left()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    os.environ[STORE] = str(folder / "store")
    try:
        with _locked(folder), socket.socket() as holder:
            holder.bind((LOOPBACK, 0))
            yield holder.getsockname()[1]
    finally:
        del os.environ[STORE]
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. It gets its name once it is locked: no other launcher sees it free."""
    unnamed = folder / f"{LOCK}.new"
    with open(unnamed, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        unnamed.rename(folder / LOCK)
        yield


def _remove_left() -> None:
    """Remove the folders of this user's launchers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # of another user, already removed, or its launcher lives
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with open(os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW), encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)


def register() -> None:
    """Make the rendezvous known to torch's elastic agent."""
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    rendezvous_handler_registry.register(NAME, _handler)


def _handler(parameters: RendezvousParameters) -> RendezvousHandler:
    from torch.distributed import HashStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
    from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

    port = int(parameters.endpoint.rpartition(":")[2])

    class OneNode(RendezvousHandler):
        """One agent has nobody to meet: its store is its own memory."""

        def get_backend(self) -> str:
            return NAME

        def next_rendezvous(self) -> RendezvousInfo:
            return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo(LOOPBACK, port))

        def is_closed(self) -> bool:
            return False

        def set_closed(self) -> None:
            pass

        def num_nodes_waiting(self) -> int:
            return 0

        def get_run_id(self) -> str:
            return parameters.run_id

        def shutdown(self) -> bool:
            return True

        @property
        def use_agent_store(self) -> bool:
            return True

    return OneNode()
