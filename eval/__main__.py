"""Questions asked of a run's checkpoints and of its record."""

from __future__ import annotations

from eval.registry import EVALUATIONS
from wellread.cli import new_parser, parse, run_program
from wellread.errors import UserError

USAGE = """usage: python -m eval COMMAND RUN ...

Ask a run what its checkpoints know, and what they have read.

commands:
  read RUN          what a checkpoint has read; which batch read a sample, a source row or a text; tables, SQL
{evaluations}
  verify RUN        recompute the record's hash chain; compare it with corpus, order and every checkpoint
  report RUN        write RUN/report/index.html from what has been evaluated

examples:
  python -m eval membership runs/tiny-sample
  python -m eval read runs/tiny-sample --checkpoint step-100
  python -m eval verify runs/tiny-sample && echo all of it holds
"""


def main(argv: list[str]) -> int:
    """Run one command; return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0
    command, *rest = argv
    if command == "parts":  # not for people: launch/evaluation.py asks what it can fan out
        return _parts(rest)
    if command in EVALUATIONS:
        return _evaluate(command, rest)
    commands = {"read": _read, "verify": _verify, "report": _report}
    if command not in commands:
        raise UserError(f"eval {command}: unknown command; use {', '.join([*commands, *EVALUATIONS])}")
    return commands[command](rest)


def _usage() -> str:
    from eval.registry import evaluations

    lines = [f"  {f'{kind.name} RUN':16}  {kind.summary}" for kind in evaluations()]
    return USAGE.replace("{evaluations}", "\n".join(lines))


def _evaluate(name: str, argv: list[str]) -> int:
    from eval.evaluate import main as evaluate
    from eval.registry import find

    return evaluate(find(name), argv)


def _parts(argv: list[str]) -> int:
    from eval.evaluate import parts

    return parts(argv)


def _read(argv: list[str]) -> int:
    from wellread.commands.read import main as read

    return read(argv, "python -m eval read")


def _verify(argv: list[str]) -> int:
    from wellread.commands.verify import main as verify

    return verify(argv, "python -m eval verify")


def _report(argv: list[str]) -> int:
    parser = new_parser(
        "python -m eval report", "Write the report of a run.", "example:\n  python -m eval report runs/mine"
    )
    parser.add_argument("run", help="Run directory.")
    options = parse(parser, argv)

    from eval.report.page import write
    from wellread.run import RunDirectory

    print(f"report: {write(RunDirectory.open(options.run))}")
    return 0


if __name__ == "__main__":
    run_program(main)
