"""``python -m scripts.with_args MODULE ARGUMENTS``: start a module with these arguments and those in ``$ARGS``.

make starts commands with it: ARGS may quote spaces as in a shell, but nothing in it is executed.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys

from wellread.starting import PROGRAMS


def main(module: str, *arguments: str) -> None:
    """Replace this process by the module's."""
    try:
        more = shlex.split(os.environ.get("ARGS", ""))
    except ValueError as error:  # an open quote
        print(f"error: ARGS: {str(error).lower()}; close it, or put a backslash before it", file=sys.stderr)
        sys.exit(2)
    sys.stdout.flush()
    if module in PROGRAMS:  # Ctrl-C waits until it can end them without a traceback
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments, *more])


if __name__ == "__main__":
    main(*sys.argv[1:])
