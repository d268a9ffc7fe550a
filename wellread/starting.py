"""Let Ctrl-C end a program that is still starting, without a traceback.

Importing this module does that, if the process is one of the programs; they import it first. Before, Ctrl-C would
interrupt whatever is being imported. `wellread.cli.run_program` then handles it as usual.
"""

from __future__ import annotations

import signal
import sys

PROGRAMS = ("wellread", "launch", "finetune", "pretrain", "eval")


def is_program() -> bool:
    """Whether this process was started as ``python -m PROGRAM``, or as the console script."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name in [f"{name}.__main__" for name in PROGRAMS]
    return str(getattr(main, "__file__", "")).endswith("/wellread")


def end_at_once() -> None:
    """From now on, Ctrl-C ends this process as it ends programs that do not handle it, unless it is ignored.

    A signal that has arrived since the process was started with it blocked (`wellread.processes.starting`) counts.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def is_ending_at_once() -> bool:
    """Whether Ctrl-C ends this process at once; Python itself never leaves it so."""
    return signal.getsignal(signal.SIGINT) is signal.SIG_DFL


if is_program():
    end_at_once()
