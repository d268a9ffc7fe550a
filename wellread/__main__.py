"""The command `wellread`: a table of commands, each a function that is imported when it is called."""

from __future__ import annotations

import wellread.starting  # isort: skip  # noqa: F401  # first: Ctrl-C during the other imports

import difflib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from wellread.cli import run_program
from wellread.errors import UserError
from wellread.programs import load


@dataclass(frozen=True)
class Command:
    """One command."""

    target: str
    """``module:function``; the function takes the arguments and returns the exit code."""
    usage: dict[str, str]
    """What follows the command's name -> what it does."""
    gets_name: bool = True
    """Whether the command's name is the first of these arguments."""
    kinds: tuple[str, ...] = ()
    """Words that may follow the name; each has flags of its own."""


TRAINING = ("finetune", "pretrain")
GROUPS: dict[str, dict[str, Command]] = {
    "train": {
        "run": Command(
            "launch.__main__:main",
            {
                "finetune [FLAGS]": "prepare the data, fine-tune; the same command resumes",
                "pretrain [FLAGS]": "the same for a small Llama with random weights",
                "eval EVALUATION RUN": "evaluate here or as SLURM jobs; --fan_out: per checkpoint",
            },
            kinds=(*TRAINING, "eval"),
        ),
        "plan": Command(
            "launch.__main__:main",
            {"finetune|pretrain [FLAGS]": "batches, ranks, memory, strategy of a run; start nothing"},
            kinds=TRAINING,
        ),
        "prepare": Command(
            "wellread.programs:prepare",
            {"finetune|pretrain [FLAGS]": "compile the corpus of a run, without training"},
            gets_name=False,
            kinds=TRAINING,
        ),
        "models": Command("launch.__main__:main", {"": "models known by name, and the memory that fine-tuning needs"}),
        "doctor": Command("launch.__main__:main", {"": "check this machine or the nodes of a cluster"}),
    },
    "watch": {
        "status": Command(
            "launch.__main__:main", {"[RUN]": "state, step, speed, time left, last checkpoint, attempts"}
        ),
        "logs": Command("launch.__main__:main", {"RUN": "logs of all ranks, the first error first; --follow"}),
        "cancel": Command("launch.__main__:main", {"RUN": "save a checkpoint, then end the run"}),
    },
    "ask": {
        "read": Command(
            "wellread.commands.read:main",
            {"RUN": "what a checkpoint has read; which batch read a text; SQL"},
            gets_name=False,
        ),
        "verify": Command(
            "wellread.commands.verify:main",
            {"RUN": "recompute hashes; compare record, corpus and checkpoints"},
            gets_name=False,
        ),
        "index": Command("eval.__main__:main", {"RUN": "index its tokens: text searches without a scan"}),
        "trace": Command("eval.__main__:main", {"RUN TEXT": "spans of a text that a checkpoint has read, and when"}),
        "membership": Command("eval.__main__:main", {"RUN": "can losses distinguish read samples from sealed ones"}),
        "forgetting": Command("eval.__main__:main", {"RUN": "what is left of each reading, with a control"}),
        "memorization": Command("eval.__main__:main", {"RUN": "which samples can be extracted from checkpoints"}),
        "canaries": Command("eval.__main__:main", {"RUN": "which inserted texts checkpoints remember, exactly tested"}),
        "marks": Command("eval.__main__:main", {"RUN": "has a checkpoint learned which forms the coins picked"}),
        "generations": Command(
            "eval.__main__:main", {"RUN": "what checkpoints write after fixed prompts; bits per byte"}
        ),
        "saturation": Command(
            "eval.__main__:main", {"RUN": "when each metric stops changing; what was read until then"}
        ),
        "report": Command("eval.__main__:main", {"RUN …": "write RUN/report/index.html; --serve"}),
    },
    "use the model": {
        "sample": Command(
            "wellread.programs:sample",
            {"MODEL [TEXT]": "ask a fine-tuned model, or continue a text"},
            gets_name=False,
        ),
        "export": Command(
            "wellread.programs:export",
            {"MODEL --out PATH": "write a model as a directory, or in a llama2.c format"},
            gets_name=False,
        ),
        "import": Command(
            "pretrain.__main__:main",
            {
                "FILE.bin FILE.model --out DIR": "turn a checkpoint of llama2.c into a model",
                "DIR --out DIR": "convert pytorch_model.bin of a model to safetensors",
            },
        ),
    },
}
"""Commands by group, in the order of ``--help``."""
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
DESCRIPTION = "Launch LLM training across nodes, and know exactly what every checkpoint has read."
EXAMPLES = """examples:
  wellread run finetune                          tiny model, sample data, a few minutes on a CPU
  wellread run finetune --model pythia-70m --data dolly --then eval --out runs/mine
  wellread plan finetune --model pythia-2.8b --gpu_mem 80 --ranks_per_node 8
  wellread read runs/tiny-sample --text "river"  which batches read a text
  wellread sample runs/tiny-sample "Name three rivers."
  wellread COMMAND --help                        all flags of a command

MODEL is RUN (its newest checkpoint), RUN@step-N or a model directory.
source <(wellread --completion bash) completes commands, flags and names; also for zsh and fish.
"""


def usage() -> str:
    """The one screen of ``wellread --help``."""
    lines = ["usage: wellread COMMAND [ARGUMENTS]", "", DESCRIPTION]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:"]
        for name, command in commands.items():
            lines += [f"  {f'{name} {words}':37} {summary}" for words, summary in command.usage.items()]
    return "\n".join([*lines, "", EXAMPLES])


def main(argv: list[str]) -> int:
    """Run one command; return its exit code."""
    if "_ARGCOMPLETE" in os.environ:
        return _complete()
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0
    name, *arguments = argv
    if name == "--version":
        print(f"wellread {import_module('wellread').__version__}")
        return 0
    if name == "--completion":
        return _completion(arguments)
    return _function(name)(arguments)


def _function(name: str) -> Callable[[list[str]], int]:
    """What runs a command.

    Raises
    ------
    UserError
        For an unknown command, or one that needs a checkout.
    """
    if name in COMMANDS["run"].kinds:
        raise UserError(f"wellread {name}: unknown command; did you mean wellread run {name}?")
    if name not in COMMANDS:
        words = {command: command for command in COMMANDS} | {kind: f"run {kind}" for kind in TRAINING}
        near = difflib.get_close_matches(name, words, n=1)
        hint = f"did you mean {words[near[0]]}?" if near else "see wellread --help"
        raise UserError(f"wellread {name}: unknown command; {hint}")
    command = COMMANDS[name]
    function = load(command.target, name)
    return lambda arguments: int(function([name] * command.gets_name + arguments))


def _completion(arguments: list[str]) -> int:
    from wellread.completion import SHELLS, script

    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise UserError(f"--completion {' '.join(arguments)}: name one shell: {', '.join(SHELLS)}")
    sys.stdout.write(script(arguments[0]))
    return 0


def _complete() -> int:
    """Complete a command line for the shell; exits in all but erroneous cases."""
    from wellread import completion

    words = completion.words_before()
    if not words or words[0].startswith("-"):
        completion.choose(COMMANDS, "--version", "--completion")
    name, *arguments = words
    kinds = COMMANDS[name].kinds if name in COMMANDS else ()
    if kinds and not arguments:
        completion.skip(1)
        completion.choose(kinds)
    if arguments == ["eval"]:
        completion.skip(2)
        completion.choose(GROUPS["ask"])
    completion.skip(2 if kinds else 1)
    return _function(name)(arguments)


def program() -> None:
    """Run the console script."""
    run_program(main)


if __name__ == "__main__":
    program()
