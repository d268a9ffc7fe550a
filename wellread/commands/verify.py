"""Verify what a run has read: ``wellread verify RUN``."""

from __future__ import annotations

from wellread.cli import parse, plain_parser, run_program
from wellread.errors import FAILURE


def main(argv: list[str], prog: str = "wellread verify") -> int:
    """Print the problems of a run, and what was checked; return the exit code."""
    parser = plain_parser(prog, "Verify what a run claims to have read.", f"example:\n  {prog} runs/mine")
    parser.add_argument("run", help="Run directory.")
    options = parse(parser, argv)

    from wellread.record.verify import examine
    from wellread.run import RunDirectory
    from wellread.terminal import one_line

    result = examine(RunDirectory.open(options.run))
    for line in result.problems:
        print(one_line(line))
    n = len(result.problems)
    checked = f"{result.batches:,} batches, {result.readings:,} readings, {result.checkpoints:,} checkpoints"
    if n:
        print(f"FAILED: {n:,} problem{'s' * (n > 1)}: {checked}, head {one_line(result.head)}")
        return FAILURE
    print(f"verified: {checked} agree, head {result.head}")
    return 0


if __name__ == "__main__":
    run_program(main)
