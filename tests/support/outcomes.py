"""The answer of a command, in this process."""

from __future__ import annotations

from wellread.__main__ import main
from wellread.errors import BAD_INPUT, user_message


def outcome(argv: list[str]) -> tuple[int, str]:
    """Exit code of a command and its line of error, as `wellread.cli.run_program` has them."""
    try:
        return main(argv), ""
    except (ValueError, OSError, RuntimeError) as error:
        message = user_message(error)
        if message is None:
            raise
        return BAD_INPUT, message
