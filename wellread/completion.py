"""Shell completion with argcomplete: what may follow on a command line that is still being typed.

The shell starts the command with the line in the environment (``_ARGCOMPLETE``, ``COMP_LINE``, ``COMP_POINT``).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wellread.config.folder import CONFIGS

SHELLS = ("bash", "zsh", "fish")
RUNS = Path("runs")
FIRST_WORD = "_ARGCOMPLETE"
"""Environment variable: number of words before the arguments, the program's name included."""


def script(shell: str) -> str:
    """Code that makes `shell` complete the arguments of `wellread`."""
    from argcomplete.shell_integration import shellcode

    return str(shellcode(["wellread"], shell=shell))


def words_before() -> list[str]:
    """Complete words after the program's name, without the one that is being typed."""
    from argcomplete.lexers import split_line

    _, _, _, words, _ = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    return [str(word) for word in words[int(os.environ[FIRST_WORD]) :]]


def skip(count: int) -> None:
    """Let the arguments begin `count` words later: those words have chosen the command."""
    os.environ[FIRST_WORD] = str(int(os.environ[FIRST_WORD]) + count)


def choose(names: Iterable[str], *flags: str) -> None:
    """Complete one of these names, or a flag, and exit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=list(names))
    for flag in flags:
        parser.add_argument(flag, choices=SHELLS if flag == "--completion" else None)
    complete(parser)


def complete(parser: argparse.ArgumentParser) -> None:
    """Complete an argument of `parser`, and exit; a parser of jsonargparse exits when it parses."""
    import argcomplete

    for action in parser._actions:
        if completer := completer_of(action):
            action.completer = completer  # type: ignore[attr-defined]
    if type(parser).__module__.startswith("jsonargparse"):
        return
    argcomplete.autocomplete(parser, always_complete_options=False)  # flags only after a dash


def completer_of(action: argparse.Action) -> Callable[..., list[str]] | None:
    """What completes the values of an argument; None where argcomplete's own completion is right."""
    if action.dest == "model" and action.option_strings:
        return lambda prefix, **_: [*registered("models.yaml"), *folders(prefix)]
    if action.dest == "data":
        return lambda prefix, **_: [*registered("data.yaml"), *files(prefix)]
    if action.dest in ("run", "model"):
        return lambda prefix, **_: [*runs(), *(path for path in folders(prefix) if path.rstrip("/") not in runs())]
    if action.choices or getattr(action, "_typehint", None) in (None, str, str | None):
        return None
    words = values_of(getattr(action, "_typehint", None))
    return lambda **_: words


def values_of(hint: Any) -> list[str]:
    """Words that a setting of this type accepts; empty for numbers."""
    if hint is bool:
        return ["true", "false"]
    inside = getattr(hint, "__args__", ())
    return [word for part in inside for word in ([part] if isinstance(part, str) else values_of(part))]


def registered(file: str) -> list[str]:
    """Names in a file of ``configs/``."""
    import yaml

    return list(yaml.safe_load((CONFIGS / file).read_text()))


def runs() -> list[str]:
    """Run directories below ``runs/``."""
    return sorted(str(path.parent) for path in RUNS.glob("*/config.yaml"))


def folders(prefix: str) -> list[str]:
    """Directories that begin with `prefix`."""
    from argcomplete.completers import DirectoriesCompleter

    return [str(path) for path in DirectoriesCompleter()(prefix)]


def files(prefix: str) -> list[str]:
    """Files and directories that begin with `prefix`."""
    from argcomplete.completers import FilesCompleter

    return [str(path) for path in FilesCompleter()(prefix)]
