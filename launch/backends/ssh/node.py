"""The agent on one node of a hostfile: ``python -m launch node``, started by connections.py through ssh.

stdin tells it what to do: one line of JSON, a `Request`; later ``stop TERM`` asks for a save and a clean end, and an
empty line is a sign of life. Its end, or long silence, means that the launcher is gone: the ranks are ended at once.
stdout carries what rank 0 prints, and the agent's own two lines, marked: the port it has chosen, and the exit code.
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
from wellread.errors import BAD_INPUT, FAILURE, UserError, print_error
from wellread.run import RunDirectory

MARK = "\x1ewellread-node "
"""Begins the agent's own lines; a login shell's greeting has no such character."""
SILENCE = 120
"""Seconds without a sign of life after which the launcher counts as gone: a cut network ends no connection."""


SECONDS_TO_REACH = 15
"""How long node 0 may take to answer another node; a firewall that drops packets never does."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a node is asked to run."""

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
    """Where node 0 is met; 0: choose, this is node 0."""
    peer: str
    """Name of another node, to find the interface between them; empty for one node alone."""


def main() -> int:
    """Run this node's ranks, tell their exit code, and stay until the launcher has heard from all nodes."""
    lines = _lines(_take_stdin())
    first = next(lines, "")
    if not first.startswith("{"):
        raise UserError("launch node: is started by launch run --cluster hostfile, not by hand")
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
    """On node 0 of several: the store in which the nodes meet.

    Elastic shares it, but would take it away with the end of node 0's ranks; agents of other nodes that still wait in
    it would then end a finished run with a warning and a stack of C++.
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
            f"{request.host}: cannot reach {request.peer} ({reason}); the nodes have to reach each other by name"
        )
        return BAD_INPUT
    node = elastic.Node(nodes=request.nodes, number=request.number, address=request.address, port=port)
    try:
        with ladder.watched(RunDirectory(Path(request.run)), int(variables["WELLREAD_ATTEMPT"]), request.number):
            return elastic.start(request.arguments, request.ranks, variables, Path.cwd(), node)
    except (OSError, RuntimeError) as error:  # torch's errors of a meeting that fails are among the latter
        print_error(f"{request.host}: {' '.join(str(error).split())}")
        return FAILURE


def _reach(address: str, port: int) -> None:
    """Make sure that node 0 answers: torch would try for a quarter of an hour, without a word."""
    with suppress(ConnectionRefusedError):  # the machine does, and its torch is still being loaded
        socket.create_connection((address, port), timeout=SECONDS_TO_REACH).close()


def _take_stdin() -> int:
    """A descriptor of stdin that the ranks do not inherit; theirs is empty."""
    copy = os.dup(sys.stdin.fileno())
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, sys.stdin.fileno())
    os.close(empty)
    return copy


def _lines(descriptor: int) -> Iterator[str]:
    """Lines of `descriptor`, until its end or long silence."""
    pending = b""
    while select.select([descriptor], [], [], SILENCE)[0] and (data := os.read(descriptor, 1 << 16)):
        *complete, pending = (pending + data).split(b"\n")
        for line in complete:
            yield line.decode()


def _obey(lines: Iterator[str]) -> None:
    """Do what the launcher asks for, and end with it, whatever ends it."""
    import psutil

    for line in lines:
        word, _, name = line.partition(" ")
        if word == "stop":
            os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
    psutil.wait_procs(elastic.end_children(), timeout=5)
    os._exit(FAILURE)


@contextmanager
def _reserved_port() -> Iterator[int]:
    """A free port, bound so that nobody else gets it before torch, which may share it, listens there."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]


def _send(message: dict[str, int]) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(message)}\n")
    sys.stdout.flush()
