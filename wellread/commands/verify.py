"""Verify what a run has read: ``wellread verify RUN``."""

from __future__ import annotations

from wellread.cli import parse, plain_parser, run_program
from wellread.errors import FAILURE


def main(argv: list[str], prog: str = "wellread verify") -> int:
    """Print the problems of a run, and a verdict; return the exit code."""
    parser = plain_parser(prog, "Verify what a run claims to have read.", f"example:\n  {prog} runs/mine")
    parser.add_argument("run", help="Run directory.")
    options = parse(parser, argv)

    from wellread.record.reader import Record
    from wellread.record.verify import verify
    from wellread.run import RunDirectory

    run = RunDirectory.open(options.run)
    problems = verify(run)
    for line in problems:
        print(line)
    record = Record.open(run.record)
    verdict = "FAILED: " + f"{len(problems)} problem{'s' * (len(problems) > 1)}" if problems else "verified"
    print(f"{verdict}: {record.batches:,} batches, head {record.head}")
    return FAILURE if problems else 0


if __name__ == "__main__":
    run_program(main)
