"""The agent on one node of a hostfile: ``python -m launch node``, started by connections.py through ssh.

The agent reads from stdin: first one line of JSON, a `Request`; later ``stop TERM``, which asks for a save and a clean
end; an empty line is a heartbeat. End of file or a long silence means that the launcher is gone: the ranks are then
ended at once. The agent writes to stdout what rank 0 prints, and two marked lines: its port and the exit code.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from launch import ladder, network
from launch.backends import elastic
from wellread.errors import BAD_INPUT, FAILURE, UserError
from wellread.escapes import Own
from wellread.processes import ATTEMPT_NUMBER
from wellread.run import RunDirectory
from wellread.streams import print_error

MARK = "\x1ewellread-node "
"""Prefix of the agent's own lines; the banner of a login shell does not contain this character."""
SILENCE = 120
"""Seconds without a heartbeat after which the launcher is gone: a broken network does not close connections."""


SECONDS_TO_REACH = 15
"""How long node 0 may take to answer another node; with a firewall that drops packets there is no answer."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a node runs."""

    host: str
    """Name of this node in the hostfile."""
    run: str
    """Absolute path of the run directory."""
    arguments: list[str]
    ranks: int
    variables: dict[str, str]
    nodes: int
    number: int
    address: str
    """Name of node 0."""
    port: int
    """Port of the rendezvous on node 0; 0 on node 0 itself, which chooses a port."""
    peer: str
    """Name of another node, to find the interface between them; empty for a single node."""


def main() -> int:
    """Run this node's ranks, report their exit code, and stay until the launcher has the exit codes of all nodes."""
    lines = _lines(_take_stdin())
    first = next(lines, "")
    if not first.startswith("{"):
        raise UserError("launch node: internal command; use wellread run finetune --cluster hostfile")
    request = Request(**json.loads(first))
    obeying = threading.Thread(target=_obey, args=(lines,), daemon=True)
    with _reserved_port() as free:
        port = request.port or free
        _send({"port": port})
        obeying.start()
        with _meeting_place(request, port):
            code = _run(request, port)
            _send({"exit": code})
            obeying.join()
    return code


@contextmanager
def _meeting_place(request: Request, port: int) -> Iterator[None]:
    """On node 0 of several nodes: host the store of the rendezvous.

    Elastic uses this store. If elastic hosted it, the store would end together with the ranks of node 0, and agents
    that still wait in it would end a finished run with a warning and a C++ stack trace.
    """
    if request.number or request.nodes == 1:
        yield
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    _store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, multi_tenant=True)
    yield


def _run(request: Request, port: int) -> int:
    variables = request.variables
    try:
        if request.number:
            _reach(request.address, port)
        if request.peer:
            variables = network.with_interface(variables, request.peer)
    except OSError as error:
        reason = error.strerror or str(error)
        print_error(
            f"{request.host}: cannot reach {request.peer} ({reason}); check that nodes reach each other by host name"
        )
        return BAD_INPUT
    node = elastic.Node(nodes=request.nodes, number=request.number, address=request.address, port=port)
    try:
        with ladder.watched(RunDirectory(Path(request.run)), int(variables[ATTEMPT_NUMBER]), request.number):
            return elastic.start(request.arguments, request.ranks, variables, Path.cwd(), node)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when the rendezvous fails
        print_error(f"{request.host}: {' '.join(str(error).split())}")
        return FAILURE


def _reach(address: str, port: int) -> None:
    """Check that node 0 answers: torch would silently try for 15 minutes."""
    with suppress(ConnectionRefusedError):  # the machine answers, but its torch is still loading
        socket.create_connection((address, port), timeout=SECONDS_TO_REACH).close()


def _take_stdin() -> int:
    """Return a descriptor of stdin that ranks do not inherit; the stdin of ranks is empty."""
    copy = os.dup(sys.stdin.fileno())
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, sys.stdin.fileno())
    os.close(empty)
    return copy


def _lines(descriptor: int) -> Iterator[str]:
    """Yield lines from `descriptor` until end of file or a long silence."""
    pending = b""
    while select.select([descriptor], [], [], SILENCE)[0] and (data := os.read(descriptor, 1 << 16)):
        *complete, pending = (pending + data).split(b"\n")
        for line in complete:
            yield line.decode()


def _obey(lines: Iterator[str]) -> None:
    """Execute the launcher's commands; end this process when the launcher ends for any reason."""
    import psutil

    for line in lines:
        word, _, name = line.partition(" ")
        if word == "stop":
            os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
    psutil.wait_procs(elastic.end_children(), timeout=5)
    os._exit(FAILURE)


@contextmanager
def _reserved_port() -> Iterator[int]:
    """Yield a free port and keep it bound, so that no other process uses it before torch listens on it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]


def _send(message: dict[str, int]) -> None:
    sys.stdout.write(Own(f"{MARK}{json.dumps(message)}\n"))
    sys.stdout.flush()
