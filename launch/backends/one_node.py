"""The rendezvous of ranks on one node: a file that only this user can open, and no listening socket."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from wellread.processes import STORE

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

NAME = "wellread-one-node"
"""Name of the rendezvous in torch's registry."""
LOOPBACK = "127.0.0.1"


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
    folder = tempfile.mkdtemp(prefix="wellread-")
    os.environ[STORE] = str(Path(folder) / "store")
    try:
        with socket.socket() as holder:
            holder.bind((LOOPBACK, 0))
            yield holder.getsockname()[1]
    finally:
        del os.environ[STORE]
        shutil.rmtree(folder, ignore_errors=True)


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
