"""Questions about a run's checkpoints and its record."""

from __future__ import annotations

import wellread.starting  # isort: skip  # noqa: F401  # first: Ctrl-C during the other imports

from eval.registry import EVALUATIONS
from wellread import streams
from wellread.cli import new_parser, parse, run_program
from wellread.errors import UserError

USAGE = """usage: wellread COMMAND RUN ...

Ask what the checkpoints of a run know, and what they have read.

commands:
  read RUN          what a checkpoint has read; which batch read a sample, a source row or a text; tables, SQL
  index RUN         index the tokens of its corpus, so that texts are searched and traced without a scan
  trace RUN TEXT    the longest spans of a text that a checkpoint has read, and when it read them
{evaluations}
  verify RUN        recompute the record's hash chain; compare it with corpus, order and all checkpoints
  report RUN …      write RUN/report/index.html from all results; several runs on one page; --serve

examples:
  wellread membership runs/tiny-sample
  wellread read runs/tiny-sample --checkpoint step-100
  wellread verify runs/tiny-sample && echo verified
"""


def main(argv: list[str]) -> int:
    """Run one command; return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0
    command, *arguments = argv
    if command == "parts":  # not for users: launch/evaluation.py asks for the parts of a fan-out
        return _parts(arguments)
    if command in EVALUATIONS:
        return _evaluate(command, arguments)
    commands = {"read": _read, "verify": _verify, "index": _index, "trace": _trace, "report": _report}
    if command not in commands:
        raise UserError(f"eval {command}: unknown command; use {', '.join([*commands, *EVALUATIONS])}")
    return commands[command](arguments)


def _usage() -> str:
    from eval.registry import evaluations

    lines = [f"  {f'{kind.name} RUN':16}  {kind.summary}" for kind in evaluations()]
    return USAGE.replace("{evaluations}", "\n".join(lines))


def _evaluate(name: str, argv: list[str]) -> int:
    from eval.evaluate import main as evaluate
    from eval.membership.arguments import names_a_model
    from eval.registry import find

    streams.outlive_reader()  # its result is the table of the run
    if name == "membership" and names_a_model(argv):
        from eval.membership.any_model import main as of_any_model

        return of_any_model(argv)
    if name == "marks":
        from eval.marks import any_model

        if any_model.names_a_model(argv):
            return any_model.main(argv)
    return evaluate(find(name), argv)


def _parts(argv: list[str]) -> int:
    from eval.evaluate import parts

    return parts(argv)


def _read(argv: list[str]) -> int:
    from wellread.commands.read import main as read

    return read(argv)


def _verify(argv: list[str]) -> int:
    from wellread.commands.verify import main as verify

    return verify(argv)


def _index(argv: list[str]) -> int:
    from eval.trace.index import main as index

    return index(argv)


def _trace(argv: list[str]) -> int:
    from eval.trace.command import main as trace

    return trace(argv)


def _report(argv: list[str]) -> int:
    example = "example:\n  wellread report runs/mine\n  wellread report runs/mine runs/other --serve"
    parser = new_parser("wellread report", "Write the report of a run, or of several on one page.", example)
    parser.add_argument("run", metavar="RUN", nargs="+", help="Run directories.")
    parser.add_argument("--serve", action="store_true", help="Serve the page on the loopback interface until Ctrl-C.")
    parser.add_argument("--port", type=int, default=0, help="Port of --serve; 0: any free one.")
    options = parse(parser, argv)
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port {options.port}: must be between 0 and 65535")
    if options.port and not options.serve:
        raise UserError("--port: only with --serve; add --serve")

    from eval.report.page import write
    from wellread.run import RunDirectory

    page = write(*map(RunDirectory.open, options.run))
    print(f"report: {page}", flush=True)
    if options.serve:
        from eval.report.serve import serve

        serve(page, options.port)
    return 0


if __name__ == "__main__":
    run_program(main)
