"""Commands of programs that are imported by name: the library imports no program.

`prepare` takes the kind of training as its first argument; `sample` and `export` see it from the run.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path

from wellread.errors import UserError

PREPARE = {
    "finetune [FLAGS]": "rows of data sets become samples with masks; --show N prints some",
    "pretrain [FLAGS]": "text becomes windows; trains a vocabulary, measures samples",
}
PREPARE_EXAMPLES = """examples:
  wellread prepare finetune --model tiny --data sample --show 3
  wellread prepare pretrain --data tinystories --vocab 4096 --metrics
"""
WITHOUT_VALUE = {"--merged", "-h", "--help"}
"""Flags of `sample` and `export` that take no value."""
BERGSON = "wellread.commands.export_bergson:main"
"""The one format of `export` that is the same for all runs."""
EXPORT_FLAGS = {
    "finetune": ("--format", "pretraining runs and model directories"),
    "pretrain": ("--merged", "fine-tuning runs"),
}
"""Program -> the flag of `export` that it does not have, and what that flag is for."""


def load(target: str, command: str) -> Callable[[list[str]], int]:
    """Import the function ``module:function`` of a command.

    Raises
    ------
    UserError
        When its program is not installed: a wheel contains only the library.
    """
    module, _, name = target.partition(":")
    try:
        function: Callable[[list[str]], int] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise UserError(
            f"wellread {command}: needs a checkout of wellread, which is not installed here; clone the repository and "
            "run make setup there"
        ) from None
    return function


def page(command: str, summary: str, kinds: dict[str, str], examples: str) -> str:
    """The help of a command with kinds that have flags of their own: usage, kinds, examples.

    Parameters
    ----------
    kinds : dict
        A kind with its arguments, as ``finetune [FLAGS]`` -> what the command does with it.
    """
    names = [words.split()[0] for words in kinds]
    lines = [f"usage: wellread {command} {'|'.join(names)} ...", "", summary, "", "kinds:"]
    lines += [f"  {words:24} {text}" for words, text in kinds.items()]
    return "\n".join([*lines, "", examples, f"wellread {command} {names[0]} --help lists all flags.", ""])


def check_kind(command: str, kind: str, kinds: Sequence[str]) -> None:
    """Refuse a word that is not one of `kinds`.

    Raises
    ------
    UserError
        It names the nearest kind, or all of them.
    """
    if kind in kinds:
        return
    near = difflib.get_close_matches(kind, kinds, n=1)
    hint = f"did you mean {near[0]}?" if near else f"use {', '.join(kinds[:-1])} or {kinds[-1]}"
    raise UserError(f"wellread {command} {kind}: unknown kind of training; {hint}")


def prepare(argv: list[str]) -> int:
    """Run ``wellread prepare finetune|pretrain``."""
    from wellread.config.run import KINDS

    if not argv or argv[0] in ("-h", "--help"):
        summary = "Compile the corpus of a run, without training."
        sys.stdout.write(page("prepare", summary, PREPARE, PREPARE_EXAMPLES))
        return 0
    kind, *flags = argv
    check_kind("prepare", kind, [settings.program for settings in KINDS])
    return load(f"{kind}.__main__:main", "prepare")(["prepare", *flags])


def sample(argv: list[str]) -> int:
    """Run ``wellread sample MODEL [TEXT]``: a fine-tuned run is asked, any other model continues the text."""
    words = positionals(argv)
    if len(words) > 2 and "_ARGCOMPLETE" not in os.environ:
        raise UserError(f'sample: unexpected {words[2]!r}; put the text in quotes: "{" ".join(words[1:])}"')
    return _by_kind("sample", argv)


def export(argv: list[str]) -> int:
    """Run ``wellread export MODEL --out PATH``; the format of bergson is the same for all kinds of runs."""
    words = [part for argument in argv for part in argument.split("=", 1)]
    if ("--format", "bergson") in pairwise(words):
        return load(BERGSON, "export")(argv)
    return _by_kind("export", argv)


def _by_kind(command: str, argv: list[str]) -> int:
    models = [os.path.expanduser(word) for word in positionals(argv)]
    if not models and {"-h", "--help"} & {*argv}:
        return _help(command)
    program = program_of(models[0]) if models else "pretrain"
    if command == "export" and models:
        _check_export(program, models[0], argv)
    return load(f"{program}.__main__:main", command)([command, *argv])


def _check_export(program: str, model: str, argv: list[str]) -> None:
    """Refuse a missing model, which is worse than a missing flag, and the flags of the other kind of training."""
    from wellread.named import model_directory, named_checkpoint

    if {"-h", "--help"} & {*argv} or "_ARGCOMPLETE" in os.environ:
        return
    if program == "pretrain":
        model_directory(model)
    else:
        named_checkpoint(model)
    wrong, owners = EXPORT_FLAGS[program]
    if any(argument.partition("=")[0] == wrong for argument in argv):
        raise UserError(f"{wrong}: only for {owners}; leave it out for {model}")


def _help(command: str) -> int:
    """Print the help of both programs."""
    for title, program in (("of a fine-tuning run", "finetune"), ("of a pretraining run or a directory", "pretrain")):
        print(f"=== {command} the model {title} ===")
        try:
            load(f"{program}.__main__:main", command)([command, "--help"])
        except SystemExit:  # argparse exits after its help
            print()
    if command == "export":
        print("=== export a run for bergson ===")
        load(BERGSON, command)(["--help"])
    return 0


def positionals(argv: list[str]) -> list[str]:
    """Arguments of `sample` or `export` that are neither flags nor values of flags."""
    words: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith("-"):
            words.append(argument)
        elif "=" not in argument and argument not in WITHOUT_VALUE:
            next(arguments, None)
    return words


def program_of(model: str) -> str:
    """The program of a model: that of its run, from config.yaml; pretraining's for a model directory, which has no run.

    Raises
    ------
    UserError
        When the settings of the run are damaged.
    """
    from wellread.run import RunDirectory

    path = Path(model)
    run = RunDirectory(path if path.is_dir() else Path(model.rpartition("@")[0] or model))
    return run.config().program if run.config_file.is_file() else "pretrain"
