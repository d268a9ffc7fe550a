"""Questions asked of a run's checkpoints and of its record."""

from __future__ import annotations

from wellread.cli import new_parser, parse, run_program
from wellread.errors import UserError

USAGE = """usage: python -m eval COMMAND RUN ...

Ask a run what its checkpoints know, and what they have read.

commands:
  read RUN          what a checkpoint has read; which batch read a sample, a source row or a text; tables, SQL
  membership RUN    loss scores of read samples against the sealed holdout, per checkpoint; AUC, ROC, report
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
        print(USAGE, end="")
        return 0
    command, *rest = argv
    commands = {"read": _read, "membership": _membership, "verify": _verify, "report": _report}
    if command not in commands:
        raise UserError(f"eval {command}: unknown command; use {', '.join(commands)}")
    return commands[command](rest)


def _read(argv: list[str]) -> int:
    from wellread.commands.read import main as read

    return read(argv, "python -m eval read")


def _membership(argv: list[str]) -> int:
    parser = new_parser(
        "python -m eval membership",
        "Score read samples against the sealed holdout at every checkpoint.",
        "example:\n  python -m eval membership runs/tiny-sample --steps 0,100,200",
    )
    parser.add_argument("run", help="Run directory.")
    parser.add_argument("--steps", help="Checkpoints by step, e.g. 0,100 (default: all).")
    parser.add_argument("--bootstrap", type=int, default=1000, help="Resamples behind each interval.")
    parser.add_argument("--max_samples", type=int, default=2000, help="Samples scored per group.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of resampling and of the draw of samples.")
    parser.add_argument(
        "--scores_only", action="store_true", help="Keep the scores and compare nothing yet: one part of a fan-out."
    )
    options = parse(parser, argv)

    from eval.membership import evaluate, keep_scores, overview
    from eval.report import write
    from wellread.run import RunDirectory
    from wellread.terminal import say_table

    run = RunDirectory.open(options.run)
    steps = [_step(word) for word in options.steps.split(",")] if options.steps else None
    if options.scores_only:
        keep_scores(run, steps=steps, seed=options.seed, max_samples=options.max_samples)
        return 0
    results = evaluate(
        run, steps=steps, bootstrap=options.bootstrap, seed=options.seed, max_samples=options.max_samples
    )
    say_table(*overview(results))
    print(f"all results: {run.eval / 'membership.parquet'}")
    print(f"report: {write(run)}")
    return 0


def _step(word: str) -> int:
    digits = word.strip().removeprefix("step-")
    if not digits.isdecimal():
        raise UserError(f"--steps {word}: expected step numbers, e.g. 0,100 or step-100")
    return int(digits)


def _verify(argv: list[str]) -> int:
    from wellread.commands.verify import main as verify

    return verify(argv, "python -m eval verify")


def _report(argv: list[str]) -> int:
    parser = new_parser(
        "python -m eval report", "Write the report of a run.", "example:\n  python -m eval report runs/mine"
    )
    parser.add_argument("run", help="Run directory.")
    options = parse(parser, argv)

    from eval.report import write
    from wellread.run import RunDirectory

    print(f"report: {write(RunDirectory.open(options.run))}")
    return 0


if __name__ == "__main__":
    run_program(main)
