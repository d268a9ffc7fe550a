"""Pretraining on raw text."""

from __future__ import annotations

from wellread.cli import run_program

USAGE = """usage: python -m pretrain COMMAND ...

Pretrain small Llama models on stories.

commands:
  prepare           compile the corpus: stories, vocabulary, windows, metrics

examples:
  python -m pretrain prepare                                     stories made up here: needs no hub
  python -m pretrain prepare --data tinystories --vocab 4096 --seq_len 256 --metrics
  python -m pretrain prepare --data mine.txt --vocab llama2 --packing story
"""


def main(argv: list[str]) -> int:
    """Run one command; return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    command, *rest = argv
    commands = {"prepare": _prepare}
    if command not in commands:
        raise ValueError(f"pretrain {command}: unknown command; use {', '.join(commands)}")
    return commands[command](rest)


def _prepare(argv: list[str]) -> int:
    from wellread.cli import add_dataclass, new_parser, parse_dataclass
    from wellread.config import StoriesConfig

    parser = new_parser(
        "python -m pretrain prepare",
        "Compile the corpus of a pretraining.",
        "example:\n  python -m pretrain prepare --data tinystories --vocab 4096 --metrics",
    )
    add_dataclass(parser, StoriesConfig)
    given = ["--metrics=true" if word == "--metrics" else word for word in argv]
    config, _ = parse_dataclass(parser, StoriesConfig, given)

    from pretrain.prepare import prepare

    prepare(config)
    return 0


if __name__ == "__main__":
    run_program(main)
