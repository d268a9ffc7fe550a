"""Programs that launch starts as child processes: they end with it, and a signal that ends them is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from wellread.processes import PARENT, starting
from wellread.streams import print_error


def start(
    arguments: Sequence[str], variables: Mapping[str, str] | None = None, stdin: int | None = None
) -> subprocess.Popen[str]:
    """Start ``python ARGUMENTS``, one of the programs, with additional environment variables.

    It ends when this process ends, or the thread that called this.
    """
    environment = os.environ | dict(variables or {}) | {PARENT: str(os.getpid())}
    with starting():
        return subprocess.Popen(
            [sys.executable, *arguments], stdin=stdin, env=environment, encoding="utf-8", errors="replace"
        )


def run(arguments: Sequence[str], text: str | None = None) -> int:
    """Run ``python ARGUMENTS``, one of the programs, and wait for it; return its exit code as a shell reports it.

    Parameters
    ----------
    text : str, optional
        Its standard input (default: that of this process).
    """
    with start(arguments, stdin=None if text is None else subprocess.PIPE) as process:
        try:
            process.communicate(text)
        except BaseException:  # as in subprocess.run
            process.kill()
            raise
    return exit_code(arguments, process.returncode)


def exit_code(arguments: Sequence[str], code: int) -> int:
    """Return the exit code of ``python ARGUMENTS`` as a shell reports it; print the signal that ended it, if any."""
    if code >= 0:
        return code
    program = " ".join(word for word in arguments[:3] if word != "-m")
    cause = ": probably out of host memory" if -code == signal.SIGKILL else ""
    print_error(f"{program} was ended by signal {-code} ({signal.Signals(-code).name}){cause}")
    return 128 - code
