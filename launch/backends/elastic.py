"""Start and watch the ranks of one machine with torch's elastic launch API."""

from __future__ import annotations

import logging
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.backends import one_node
from wellread.errors import FAILURE
from wellread.processes import LAUNCHER, importing
from wellread.streams import print_error

if TYPE_CHECKING:
    import psutil
    from torch.distributed.launcher.api import LaunchConfig

SECONDS_TO_SAVE = 600
"""How long a stopping run may take to save before it is killed."""
SECONDS_TO_MEET = 900
"""How long the agents of several nodes wait for each other."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ASKED = "asked to stop: saving; press Ctrl-C again to end at once\n"
ASKED_EARLY = "asked to stop before training began: there is nothing to save\n"


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine's part in a run."""

    nodes: int = 1
    number: int = 0
    address: str = "127.0.0.1"
    """Address of node 0."""
    port: int = 0
    """Port of the rendezvous on node 0; a single node has none."""


def start(arguments: list[str], ranks: int, variables: dict[str, str], code: Path, node: Node | None = None) -> int:
    """Start `ranks` processes of ``python ARGUMENTS`` in folder `code`, wait for them, and return the exit code.

    SIGTERM, SIGINT and SIGHUP ask the ranks to save and end; a second signal ends them at once, and so does the first
    one before all ranks can save.

    Parameters
    ----------
    node : Node, optional
        This machine's part in a run on several nodes, started by a launcher on another machine (default: the run uses
        only this machine).
    """
    with importing():
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    one_node.register()
    is_launcher, node = node is None, node or Node()
    received = 0

    def stop(number: int, frame: types.FrameType | None) -> None:
        nonlocal received
        if received:
            end_children()  # elastic waits for them and then returns
            return
        received = number
        is_early = not can_all_save()
        if is_early:  # a rank that imports would show a traceback, and one that waits for others would not end
            end_children()
        if not _patience(LaunchConfig):
            _wait_for_saving()
        if is_launcher:
            with suppress(OSError):  # the terminal may be closed
                os.write(sys.stderr.fileno(), (ASKED_EARLY if is_early else ASKED).encode())  # print() is not reentrant
        to_send = signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number)
        raise SignalException(f"asked to stop by {to_send.name}", sigval=to_send)  # elastic passes it on to the ranks

    try:
        with _environment(variables), _meeting(node) as port, _inside(code), stop_signals(stop):
            elastic_launch(_settings(node, ranks, port), sys.executable)("-u", *arguments)
    except ChildFailedError as error:
        return _exit_code({rank: failure.exitcode for rank, failure in error.failures.items()})
    except SignalException as error:
        return 128 + (received or error.sigval)
    return 0


def _patience(settings: type) -> dict[str, Any]:
    """Return the setting that gives a stopping run `SECONDS_TO_SAVE`; empty where torch has none (2.11)."""
    names = {field.name for field in fields(settings)}
    return {"shutdown_timeout": SECONDS_TO_SAVE} if "shutdown_timeout" in names else {}


def _wait_for_saving() -> None:
    """From now on wait for `SECONDS_TO_SAVE` before ranks are killed, in a torch without a setting for it.

    There the 30 s are a default value of a method. Before a signal arrives they are right: a rank that waits for a
    failed one can only be killed.
    """
    from torch.distributed.elastic.multiprocessing import PContext

    PContext.close.__defaults__ = (None, SECONDS_TO_SAVE)


def _meeting(node: Node) -> AbstractContextManager[int]:
    """Context in which ranks can find each other; its value is the port of the rendezvous."""
    return one_node.environment() if node.nodes == 1 else nullcontext(node.port)


def _settings(node: Node, ranks: int, port: int) -> LaunchConfig:
    """The settings of torch's launcher."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    is_single = node.nodes == 1
    return LaunchConfig(
        min_nodes=node.nodes,
        max_nodes=node.nodes,
        nproc_per_node=ranks,
        rdzv_backend=one_node.NAME if is_single else "static",
        rdzv_endpoint=f"{node.address}:{port}",
        rdzv_configs={} if is_single else {"rank": node.number, "timeout": SECONDS_TO_MEET},
        local_addr=one_node.LOOPBACK if is_single else None,
        max_restarts=0,
        run_id=f"wellread-{os.getpid()}" if is_single else "wellread",
        logs_specs=DefaultLogsSpecs(os.devnull),  # by default torch makes a temporary folder and leaves it
        **_patience(LaunchConfig),
        signals_to_handle="SIGQUIT",  # other signals are handled here: with elastic, a second signal only waits again
    )


@contextmanager
def stop_signals(handler: Callable[[int, types.FrameType | None], None]) -> Iterator[None]:
    """Install `handler` for the signals that ask a run to stop, except for a SIGHUP that nohup has set to ignore."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handled = [n for n in STOP_SIGNALS if not (n == signal.SIGHUP and before[n] == signal.SIG_IGN)]
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


def can_all_save() -> bool:
    """Return whether all ranks, the children of this process, handle or ignore SIGTERM: they do before they train."""
    import psutil

    ranks = psutil.Process().children()
    return bool(ranks) and all(_handles(process.pid, signal.SIGTERM) for process in ranks)


def _handles(pid: int, number: signal.Signals) -> bool:
    """Return whether a process handles or ignores a signal; True where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # it has just ended, or this is not Linux
        return True
    masks = dict(line.split(":", 1) for line in lines if line.startswith(("SigCgt", "SigIgn")))
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks.values())


def end_children() -> list[psutil.Process]:
    """Kill all child processes of this process, also indirect ones; return them."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for process in children:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return children


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set the environment of the ranks, which elastic copies; what this process starts later gets its own again."""
    before = dict(os.environ)
    os.environ.update(variables | {LAUNCHER: str(os.getpid())})
    logging.disable(logging.ERROR)  # hides elastic's messages: `launch` shows the first error of all ranks
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Change to another folder, so that processes started there import the code in it."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _exit_code(codes: dict[int, int]) -> int:
    """Return the run's exit code from those of the failed ranks (-S: signal S); print when a signal was the cause."""
    rank, code = likely_cause(codes)
    if code > 0:
        return code
    print_error(f"rank {rank} was ended by signal {-code} ({signal.Signals(-code).name})")
    return 128 - code


def likely_cause(codes: dict[int, int]) -> tuple[int, int]:
    """Return the exit code that most likely caused the others, with its key.

    A process that was ended by a signal comes first: it reports no error, and the other ranks fail with code 1 because
    it is gone. SIGTERM comes last: it is sent to the other ranks when one has failed. Of equal codes the first wins.

    Parameters
    ----------
    codes : dict of int to int
        Exit codes, none of them 0; -S or 128 + S means signal S.
    """
    signals = {key: 128 - code if code < 0 else code for key, code in codes.items()}
    stopped = 128 + signal.SIGTERM
    return min(
        codes.items(),
        key=lambda item: (signals[item[0]] == stopped, item[1] == FAILURE, signals[item[0]] < 128),
    )
