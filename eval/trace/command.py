"""Trace a text to what a checkpoint has read: ``wellread trace RUN TEXT``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellread.cli import parse, plain_parser
from wellread.errors import UserError
from wellread.text_io import PLAIN
from wellread.units import plural

if TYPE_CHECKING:
    from wellread.checkpoint import Checkpoint
    from wellread.record.opened import Run
    from wellread.record.trace import Span, Tracer

DESCRIPTION = "Show the longest spans of a text that a checkpoint has read, and when it read them."
EXAMPLES = """examples:
  {prog} runs/tiny-sample "What is the capital of Australia?"
  {prog} runs/tiny-sample answer.txt --checkpoint step-200
  wellread sample runs/tiny-sample "Name three rivers." | {prog} runs/tiny-sample - --min 4 --jsonl -"""
SHOWN = 5
"""Most readings of a span that are listed on a terminal; all are listed when piped."""
LIMIT = 1000
"""Most readings of a span in the printed list, unless --limit is given; a file has all."""
FILES = (*PLAIN, ".md")
"""Endings of files that contain text."""
UNDERLINED = 4
"""Code of a terminal."""


def main(argv: list[str], prog: str = "wellread trace") -> int:
    """Trace one text; return the exit code."""
    options = _parse(argv, prog)
    if options.min < 1:
        raise UserError(f"--min {options.min}: must be at least 1")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: must be at least 1")
    limit = LIMIT if options.limit is None and not options.jsonl else options.limit
    text, name = _text(options.text)

    from wellread.record.index import usable_index
    from wellread.record.opened import Run
    from wellread.record.trace import Tracer
    from wellread.terminal import say_aside

    run = Run.open(options.run)
    checkpoint = _checkpoint(run, options.checkpoint)
    _check_length(run, text, name, options.min)
    index, lines = usable_index(run.corpus, str(run.path))
    say_aside(lines)
    tracer = Tracer.of(run, checkpoint.step, index)
    spans, n_tokens = tracer.trace(text, options.min)
    objects = tracer.objects(spans, limit)
    say_aside(_cut_off(tracer, spans, limit))
    if options.loss_now:
        _add_losses(run, checkpoint, objects)
    if options.jsonl:
        _write(objects, options.jsonl)
    else:
        _show(text, objects)
    if options.jsonl != "-":
        _summarize(tracer, checkpoint, spans, n_tokens, options.min)
    return 0


def _parse(argv: list[str], prog: str) -> Any:
    parser = plain_parser(prog, DESCRIPTION, EXAMPLES.format(prog=prog))
    add = parser.add_argument
    add("run", help="Run directory.")
    add("text", help="Text to trace, or a file that contains it; - is standard input.")
    add("--checkpoint", metavar="STEP", help="Trace to what this checkpoint has read, e.g. step-200 (default: newest).")
    add("--min", type=int, default=6, metavar="TOKENS", help="Fewest tokens of a span.")
    add(
        "--limit",
        type=int,
        metavar="N",
        help=f"Most readings of a span; the first ones are listed (default: {LIMIT}; with --jsonl: all).",
    )
    add("--jsonl", metavar="FILE", help="Write one object per span, with its readings; - is standard output.")
    add("--loss_now", action="store_true", help="Run the model: the loss that each sample has at the checkpoint.")
    return parse(parser, argv)


def _text(word: str) -> tuple[str, str]:
    """The text that a user gives, and what to call it in an error."""
    from wellread.text_io import read_text

    if word == "-":
        text, name = sys.stdin.read(), "standard input"
    elif _is_file(word):
        text, name = read_text(Path(word)), word
    elif _looks_like_a_path(word):
        raise UserError(f"{word}: no such file; to trace these words as a text, pass - and write them to its input")
    else:
        text, name = word, "TEXT"
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{name}: not UTF-8; give a text in UTF-8")
    return text, name


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # a text that is too long for a name
        return False


def _looks_like_a_path(word: str) -> bool:
    """Whether a word would be the name of a file: no white space, and a slash or the ending of a text file."""
    return not any(map(str.isspace, word)) and ("/" in word or Path(word).suffix in FILES)


def _checkpoint(run: Run, name: str | None) -> Checkpoint:
    """The named checkpoint, or the newest."""
    if name is None and not run.checkpoints:
        raise UserError(f"{run.path}: no checkpoint yet; wait until the run has saved one")
    return run.history.checkpoint(name or str(run.checkpoints[-1].step))


def _check_length(run: Run, text: str, name: str, least: int) -> None:
    n_tokens = len(run.tokenizer.encode(text)[0])
    if n_tokens < least:
        raise UserError(
            f"{name}: {plural(n_tokens, 'token')}, fewer than --min {least}; give a longer text or a lower --min"
        )


def _cut_off(tracer: Tracer, spans: Sequence[Span], limit: int | None) -> list[str]:
    """A line for each span that has more readings than are listed."""
    if limit is None:
        return []
    numbers = enumerate(map(tracer.n_readings, spans), 1)
    return [
        f"span {number}: cut off at --limit {limit:,} of {n:,} readings; raise --limit to list more"
        for number, n in numbers
        if n > limit
    ]


def _add_losses(run: Run, checkpoint: Checkpoint, objects: Sequence[dict[str, Any]]) -> None:
    import numpy as np

    from eval.trace.control import losses_now

    readings = [reading for each in objects for reading in each["readings"]]
    ids = np.unique(np.array([reading["sample_id"] for reading in readings], dtype=np.int64))
    losses = losses_now(run.directory, checkpoint, run.corpus, ids)
    for reading in readings:
        reading["loss_now"] = losses[reading["sample_id"]]


def _write(objects: Sequence[dict[str, Any]], path: str) -> None:
    from wellread.commands.read_batches import writing
    from wellread.streams import json_line
    from wellread.terminal import say

    with writing(path) as file:
        for each in objects:
            file.write(json_line(each))
    if path != "-":
        say(f"wrote {path}: {plural(len(objects), 'span')}")


# --- on screen -------------------------------------------------------------------------------------------------------


def _show(text: str, objects: Sequence[dict[str, Any]]) -> None:
    """Print the text with its spans underlined, then each span with its readings."""
    from wellread.escapes import joined, prose
    from wellread.terminal import say, say_table

    on_terminal = sys.stdout.isatty()
    if on_terminal:
        print(underlined(text, [(each["start"], each["end"]) for each in objects]))
    for number, each in enumerate(objects, 1):
        readings = each["readings"][: SHOWN if on_terminal else None]
        times = f"{plural(each['count'], 'occurrence')}, {plural(len(each['readings']), 'reading')}"
        say(f"span {number}  characters {each['start']}-{each['end']}  {times}", "cyan")
        say(joined(["    ", prose(each["text"].replace("\n", "⏎").replace("\t", " "))]))
        heads = ["sample", "row", "batch", "step", "slot", "loss", "loss now"]
        say_table(heads, [_row(reading) for reading in readings])
        if len(readings) < len(each["readings"]):
            say(f"… and {len(each['readings']) - len(readings)} more; pipe the output or pass --jsonl FILE to get all")


def _row(reading: dict[str, Any]) -> list[object]:
    rows = reading["row"] if isinstance(reading["row"], list) else [reading["row"]]
    place = f"{reading['source']}:{','.join(map(str, rows))}"
    return [reading["sample_id"], place, *(reading[key] for key in ("batch", "step", "slot", "loss", "loss_now"))]


def underlined(text: str, ranges: Sequence[tuple[int, int]]) -> str:
    """The text for a terminal, with these ranges of characters underlined; they may overlap."""
    from wellread.escapes import joined, prose, styled

    pieces: list[str] = []
    end = 0
    for start, stop in sorted(ranges):
        if stop > end:
            pieces += [prose(text[end : max(start, end)]), styled(prose(text[max(start, end) : stop]), UNDERLINED)]
            end = stop
    return joined([*pieces, prose(text[end:])])


def _summarize(tracer: Tracer, checkpoint: Checkpoint, spans: Sequence[Span], n_tokens: int, least: int) -> None:
    from eval.trace.control import sealed_coverage
    from wellread.record.trace import covered
    from wellread.terminal import say

    name, share = f"step-{checkpoint.step}", covered([span.match for span in spans], n_tokens) / n_tokens
    say(
        f"{name} has read {plural(len(spans), 'span')} of at least {plural(least, 'token')}: "
        f"{share:.1%} of the {n_tokens:,} tokens of the text",
        "bold",
    )
    control = sealed_coverage(tracer, n_tokens, least)
    if control is None:
        say(f"control: none, because no sealed sample has a continuation of {plural(least, 'token')}")
    else:
        say(f"control: {control[0]:.1%} of the tokens of {control[1]} true continuations, which it has not read")
