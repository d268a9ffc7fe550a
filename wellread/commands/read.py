"""Show what was read when: ``wellread read RUN …``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wellread.cli import parse, plain_parser, run_program
from wellread.errors import UserError

DESCRIPTION = "Show what was read when: by checkpoint, batch, sample, source row or text."
EXAMPLES = """examples:
  {prog} runs/tiny-sample                                what the newest checkpoint has read
  {prog} runs/tiny-sample --checkpoint step-100
  {prog} runs/tiny-sample --batch 137 | less
  {prog} runs/tiny-sample --batch 100:200 --jsonl out.jsonl
  {prog} runs/tiny-sample --batch 0:10 --call mine:count_words
  {prog} runs/tiny-sample --sample 123
  {prog} runs/tiny-sample --row sample.jsonl:55
  {prog} runs/tiny-sample --text "Virgin Australia" --checkpoint 100
  {prog} runs/tiny-sample --csv batches.csv
  {prog} runs/tiny-sample --diff step-100 step-300
  {prog} runs/tiny-sample --sql "select epoch, avg(loss) from record group by epoch order by epoch"

without a run, from a Megatron data set PILE/document.bin + .idx in the order of the file:
  {prog} --corpus PILE/document --order sequential --batch_size 1024 --batch 3000:3010"""

QUESTIONS = ("batch", "sample", "row", "text", "diff", "sql")
GOES_WITH = {
    "save": ("batch",),
    "call": ("batch",),
    "jsonl": ("batch", "text"),
    "csv": ("batch", "sql"),
    "checkpoint": ("sample", "row", "text"),
    "limit": ("text",),
}
"""Option -> the questions that it refines; csv and checkpoint are also questions themselves."""


def main(argv: list[str], prog: str = "wellread read") -> int:
    """Answer one question about a run; return the exit code."""
    options = _parse(argv, prog)
    question = _question(options, prog)
    from wellread.record.opened import Run, open_corpus

    if options.corpus:
        tokenizer = Path(options.tokenizer) if options.tokenizer else None
        history = open_corpus(options.corpus, options.order, options.batch_size, tokenizer)
    else:
        history = Run.open(options.run).history
    _answer(history, question, options)
    return 0


def _parse(argv: list[str], prog: str) -> Any:
    parser = plain_parser(prog, DESCRIPTION, EXAMPLES.format(prog=prog))
    add = parser.add_argument
    add("run", nargs="?", help="Run directory.")
    add(
        "--checkpoint",
        metavar="STEP",
        help="What a checkpoint has read; with --sample, --row or --text: state at that checkpoint.",
    )
    add("--batch", metavar="K[:L]", help="Each slot of batch K, or of batches K to L-1.")
    add("--save", metavar="FILE.npy", help="With --batch: write the token ids, a row per slot, padded with -1.")
    add("--jsonl", metavar="FILE", help="With --batch or --text: write one object per sample; - is standard output.")
    add(
        "--call",
        metavar="MODULE:FUNCTION",
        help="With --batch: call your function with each batch and write the results as JSONL.",
    )
    add("--sample", metavar="ID", help="When a sample was or will be read.")
    add("--row", metavar="SOURCE:ROW", help="When a source row was or will be read; rows count from 1.")
    add("--text", metavar="TEXT", help="Which samples contain a text, byte for byte, and when each is read.")
    add("--limit", type=int, metavar="N", help="With --text: end the search after N samples (default: 1000).")
    add(
        "--csv",
        nargs="?",
        const="-",
        metavar="FILE",
        help="Table of all batches, of those of --batch, or of --sql; without FILE, to standard output.",
    )
    add(
        "--diff",
        nargs=2,
        metavar=("STEP", "STEP"),
        help="What the second checkpoint has read in addition to the first.",
    )
    add(
        "--sql",
        metavar="QUERY",
        help="SQL query on record, losses, checkpoints, samples, segments (if packed) and metrics (needs DuckDB).",
    )
    add("--corpus", metavar="PREFIX", help="Instead of a run: a Megatron data set or a compiled corpus.")
    add("--order", default="sequential", help="With --corpus: sequential, pythia or megatron:DOC,SAMPLE,SHUFFLE.npy.")
    add("--batch_size", type=int, metavar="N", help="With --corpus: samples per batch.")
    add(
        "--tokenizer",
        metavar="DIR",
        help="With --corpus: directory of the tokenizer; without one, token ids are shown.",
    )
    return parse(parser, argv)


def _question(options: Any, prog: str) -> str:
    """Name of the question in the options.

    Raises
    ------
    UserError
        When the options do not go together.
    """
    if bool(options.run) == bool(options.corpus):
        raise UserError(f"give a run directory, or a corpus with --corpus; see {prog} --help")
    flags = [name for name in QUESTIONS if getattr(options, name) is not None]
    if len(flags) > 1:
        raise UserError(f"--{flags[0]} and --{flags[1]}: ask one question at a time")
    question = flags[0] if flags else "csv" if options.csv is not None else "checkpoint"
    for name, questions in GOES_WITH.items():
        if getattr(options, name) is not None and question not in (name, *questions):
            raise UserError(f"--{name} goes with --{' or --'.join(questions)}, not with --{question}")
    if options.corpus and question in ("checkpoint", "diff"):
        raise UserError("--corpus: a corpus has no checkpoints; use --batch, --sample, --row, --text or --csv")
    return question


def _answer(history: Any, question: str, options: Any) -> None:
    from wellread.commands.read_checkpoint import show_checkpoint, show_difference

    if question == "checkpoint":
        show_checkpoint(history, options.checkpoint or _newest(history))
    elif question == "diff":
        show_difference(history, *options.diff)
    elif question == "sql":
        from wellread.commands.read_sql import show_sql

        show_sql(history, options.sql, options.csv)
    elif question in ("batch", "csv"):
        _answer_batches(history, options)
    else:
        _answer_samples(history, question, options)


def _newest(history: Any) -> str:
    if not history.checkpoints:
        raise UserError(f"{history.name}: no checkpoint yet; use --batch or --csv instead")
    return f"step-{history.checkpoints[-1].step}"


def _answer_batches(history: Any, options: Any) -> None:
    from wellread.commands import read_batches

    limit = history.batches_read if history.record else history.steps
    start, stop = history.batch_range(options.batch) if options.batch is not None else (0, limit)
    if options.csv is not None:
        read_batches.write_csv(history, start, stop, options.csv)
    if options.save is not None:
        read_batches.save(history, start, stop, options.save)
    if options.call is not None:
        read_batches.call(history, start, stop, options.call, options.jsonl or read_batches.STDOUT)
    elif options.jsonl is not None:
        read_batches.write_jsonl(history, start, stop, options.jsonl)
    elif options.save is None and options.csv is None:
        read_batches.show_batches(history, start, stop)


def _answer_samples(history: Any, question: str, options: Any) -> None:
    from wellread.commands.read_samples import LIMIT, show_row, show_sample, show_text

    limit = LIMIT if options.limit is None else options.limit
    if limit < 1:
        raise UserError(f"--limit {limit}: must be at least 1")
    step = history.checkpoint(options.checkpoint).step if options.checkpoint else history.batches_read
    if question == "text":
        show_text(history, options.text, step, options.jsonl, limit)
    elif question == "row":
        show_row(history, options.row, step)
    elif options.sample.isdecimal():
        show_sample(history, int(options.sample), step)
    else:
        raise UserError(f"--sample {options.sample}: expected a sample id, 0 … {history.reader.n - 1}")


if __name__ == "__main__":
    run_program(main)
