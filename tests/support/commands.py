"""The commands of `wellread`, and their parsers, in this process."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import jsonargparse
import pytest

COMMANDS: dict[str, tuple[str, ...]] = {
    "run finetune": ("launch.__main__", "run", "finetune"),
    "run pretrain": ("launch.__main__", "run", "pretrain"),
    "run eval": ("launch.__main__", "run", "eval"),
    "plan finetune": ("launch.__main__", "plan", "finetune"),
    "plan pretrain": ("launch.__main__", "plan", "pretrain"),
    "status": ("launch.__main__", "status"),
    "logs": ("launch.__main__", "logs"),
    "cancel": ("launch.__main__", "cancel"),
    "doctor": ("launch.__main__", "doctor"),
    "models": ("launch.__main__", "models"),
    "prepare finetune": ("finetune.__main__", "prepare"),
    "prepare pretrain": ("pretrain.__main__", "prepare"),
    "read": ("eval.__main__", "read"),
    "verify": ("eval.__main__", "verify"),
    "index": ("eval.__main__", "index"),
    "trace": ("eval.__main__", "trace"),
    "memorization": ("eval.__main__", "memorization"),
    "canaries": ("eval.__main__", "canaries"),
    "marks": ("eval.__main__", "marks"),
    "membership": ("eval.__main__", "membership"),
    "forgetting": ("eval.__main__", "forgetting"),
    "generations": ("eval.__main__", "generations"),
    "saturation": ("eval.__main__", "saturation"),
    "report": ("eval.__main__", "report"),
    "sample pretrain": ("pretrain.__main__", "sample"),
    "export finetune": ("finetune.__main__", "export"),
    "export pretrain": ("pretrain.__main__", "export"),
    "import": ("pretrain.__main__", "import"),
}
"""Name of a command -> module and its first arguments, as ``python -m`` starts it."""


OLD_RUN = Path("tests/fixtures/run-c5af5a2")
ARGUMENTS = {
    "sample finetune": ["sample", str(OLD_RUN / "finetune/run"), "text"],
    "sample pretrain": ["sample", str(OLD_RUN / "pretrain/run")],
    "export finetune": ["export", str(OLD_RUN / "finetune/run")],
    "export pretrain": ["export", str(OLD_RUN / "pretrain/run")],
}
"""Arguments of commands for which the run determines the program."""


def arguments(name: str) -> list[str]:
    """Arguments with which `wellread` reaches the parser of a command; they are relative to the repository."""
    return ARGUMENTS.get(name, name.split())


class Parsed(Exception):
    """Carries a parser out of the program that built it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(main: Callable[[list[str]], object], argv: list[str]) -> argparse.ArgumentParser:
    """The parser with which `main` parses `argv`."""

    def carry_out(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise Parsed(parser)

    with pytest.MonkeyPatch.context() as patch:
        for kind in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
            patch.setattr(kind, "parse_args", carry_out)
            patch.setattr(kind, "parse_known_args", carry_out)
        with pytest.raises(Parsed) as carried:
            main(argv)
    return carried.value.parser


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """A line for each argument: its names, how many values it takes, what it may be."""
    lines = []
    for action in parser._actions:
        names = " ".join(action.option_strings) or action.dest.upper()
        choices = "" if action.choices is None else " {" + ",".join(map(str, action.choices)) + "}"
        lines.append(f"{names} nargs={action.nargs}{' required' * bool(action.required)}{choices}")
    return sorted(lines)
