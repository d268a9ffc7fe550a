"""When samples were or will be read: by id, by source row, by text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from wellread.commands.read_batches import STDOUT, segment_line, where_from, writing
from wellread.corpus.read import Corpus
from wellread.corpus.segments import Segments
from wellread.corpus.suffixes import Index
from wellread.errors import UserError
from wellread.escapes import prose
from wellread.record.copies import Copies, copies
from wellread.record.history import History, Reading
from wellread.record.index import usable_index
from wellread.record.search import Hit, search
from wellread.streams import json_line
from wellread.terminal import cell, console, plural, say, say_aside, say_table

SHOWN = 20
"""Most matches listed on a terminal; all are listed when piped."""
LIMIT = 1000
"""Most matches of a search, unless --limit is given."""
AT_ONCE = 256
"""Matches whose readings are in memory together."""
AROUND = 30
"""Characters shown before and after a match."""


def show_sample(history: History, sample_id: int, step: int) -> None:
    """Print all readings of a sample; those before `step` are marked as read."""
    readings = history.sample(sample_id)
    rows = history.samples.rows(_one(sample_id))
    say(f"sample {sample_id}  {where_from(rows[0]) if rows else ''}".rstrip(), "bold")
    say(state(history, sample_id, readings, step))
    segments = rows[0].get("segments", []) if rows else []
    for number, segment in enumerate(segments, 1):
        say(segment_line(number, len(segments), segment))
    if readings:
        say_table(["batch", "slot", "epoch", "step", "loss", "state"], [_row(r, step) for r in readings])


def _one(sample_id: int) -> Any:
    import numpy as np

    return np.array([sample_id], dtype=np.int64)


def _row(reading: Reading, step: int) -> list[object]:
    read = reading.batch_id < step
    return [
        reading.batch_id,
        reading.slot,
        reading.epoch,
        reading.batch_id + 1,
        reading.loss if read else None,
        "read" if read else "will be read",
    ]


def state(history: History, sample_id: int, readings: list[Reading], step: int) -> str:
    """One line: sealed, or how often the sample was read by `step` and will still be read."""
    if sample_id >= history.reader.n_trainable:
        return "sealed: never read, reserved for evaluation"
    read = sum(reading.batch_id < step for reading in readings)
    coming = f", {len(readings) - read} more to come by step {history.steps}" if step < history.steps else ""
    return f"read {plural(read, 'time')} by step {step}{coming}"


def show_row(history: History, name: str, step: int) -> None:
    """Print all readings of the samples that contain a source row."""
    for sample_id in history.samples.find_row(name):
        show_sample(history, sample_id, step)


def show_text(history: History, text: str, step: int, jsonl: str | None, limit: int) -> None:
    """Print the samples that contain a text, and when each is read; with `jsonl`, write them to a file instead.

    Parameters
    ----------
    limit : int
        The search ends after this many samples, or segments of a packed corpus; then the last line says so.

    Raises
    ------
    UserError
        When there is no tokenizer.
    """
    if history.tokenizer is None:
        raise UserError(f"--text: {history.name} has no tokenizer to decode its samples; give one with --tokenizer")
    index, lines = usable_index(history.reader, history.name)
    say_aside(lines)
    with _progress(history.units.n) as progress:
        hits = search(history.units, history.tokenizer, text, index=index, most=limit + 1, progress=progress)
    more = len(hits) > limit
    del hits[limit:]
    of_tokens = _copies(history, text, index) if hits else None
    if jsonl:
        _write(history, hits, step, jsonl, of_tokens)
    else:
        _list(history, hits, text, step)
    if jsonl != STDOUT:
        if hits:
            say(_in_words(of_tokens))
        say(_summary(history, hits, step, more), "bold")


def _copies(history: History, text: str, index: Index | None) -> Copies | None:
    """Copies of the tokens of a text, as the tokenizer splits it by itself."""
    import numpy as np

    from wellread.corpus.token_bytes import normalized

    assert history.tokenizer is not None
    ids, _ = history.tokenizer.encode(normalized(text, history.tokenizer))
    return copies(history.units, np.array(ids, dtype=np.int64), index) if ids else None


def _in_words(of: Copies | None) -> str:
    if of is None:
        return "copies of its tokens are not counted: too many tokens for a scan"
    places = f"{of.trainable:,} in trainable samples, {of.sealed:,} in sealed ones"
    return f"its sequence of {plural(of.tokens, 'token')} occurs {plural(of.total, 'time')}: {places}"


def _list(history: History, hits: list[Hit], text: str, step: int) -> None:
    listed = hits[:SHOWN] if sys.stdout.isatty() else hits
    for hit, sample_id, place, row, readings in _located(history, listed):
        say(f"sample {sample_id}{place}  {where_from(row)}  {plural(hit.count, 'occurrence')}", "cyan")
        say(f"    {_snippet(history, hit, text)}")
        say(f"    {state(history, sample_id, readings, step)}")
        for reading in readings:
            verb = f"loss {cell(reading.loss)}" if reading.batch_id < step else "will be read"
            say(f"    batch {reading.batch_id} slot {reading.slot}  epoch {reading.epoch}  {verb}")
    if len(listed) < len(hits):
        more = plural(len(hits) - len(listed), _noun(history))
        say(f"… and {more} more; pipe the output or pass --jsonl FILE to get all")


def _located(history: History, hits: list[Hit]) -> Iterator[tuple[Hit, int, str, dict[str, Any], list[Reading]]]:
    """Yield each match, its sample, its segment in words, its row of the samples or segments table, its readings."""
    import numpy as np

    units = history.units
    for start in range(0, len(hits), AT_ONCE):
        part = hits[start : start + AT_ONCE]
        ids = [_sample_id(history, hit) for hit in part]
        rows = history.samples.rows(np.array(ids, dtype=np.int64)) or [{} for _ in ids]
        for hit, sample_id, row, readings in zip(part, ids, rows, history.readings(ids), strict=True):
            if isinstance(units, Segments):
                place, segments = hit.sample_id - int(units.corpus.segment_offsets[sample_id]), row["segments"]
                yield hit, sample_id, f" segment {place + 1} of {len(segments)}", segments[place], readings
            else:
                yield hit, sample_id, "", row, readings


def _sample_id(history: History, hit: Hit) -> int:
    units = history.units
    return int(units.sample_of(_one(hit.sample_id))[0]) if isinstance(units, Segments) else hit.sample_id


def _noun(history: History) -> str:
    return "segment" if isinstance(history.units, Segments) else "sample"


def _snippet(history: History, hit: Hit, text: str) -> str:
    """The first occurrence with the text around it."""
    from wellread.corpus.token_bytes import normalized

    assert history.tokenizer is not None
    decoded = history.tokenizer.decode(history.units.tokens(hit.sample_id).tolist())
    needle = normalized(text, history.tokenizer)
    place = max(0, decoded.find(needle))
    low, high = max(0, place - AROUND), place + len(needle) + AROUND
    snippet = f"{'…' * (low > 0)}{decoded[low:high]}{'…' * (high < len(decoded))}"
    return prose(snippet.replace("\n", "⏎").replace("\t", " "))


def _write(history: History, hits: list[Hit], step: int, path: str, of_tokens: Copies | None) -> None:
    counts = None if of_tokens is None else vars(of_tokens)
    with writing(path) as file:
        for hit, sample_id, place, row, of in _located(history, hits):
            readings = [_object(reading, step) for reading in of]
            segment = {"segment": hit.sample_id} if place else {}
            value = {"sample_id": sample_id, **segment, "occurrences": hit.count, **row}
            value |= {"sealed": sample_id >= history.reader.n_trainable, "readings": readings, "copies": counts}
            file.write(json_line(value))
    if path != STDOUT:
        say(f"wrote {path}: {plural(len(hits), _noun(history))}")


def _object(reading: Reading, step: int) -> dict[str, object]:
    read = reading.batch_id < step
    place = {"batch_id": reading.batch_id, "slot": reading.slot, "epoch": reading.epoch}
    return {**place, "read": read, "loss": reading.loss if read else None}


def _summary(history: History, hits: list[Hit], step: int, more: bool) -> str:
    if not hits:
        message = f"none of {history.units.n:,} {_noun(history)}s contains it"
        is_windowed = isinstance(history.units, Corpus) and history.units.meta.get("packing") == "stream"
        return message + "; windows split stories: search for a shorter part" * is_windowed
    ids = [_sample_id(history, hit) for hit in hits]
    trainable = history.reader.n_trainable
    sealed = sum(i >= trainable for i in ids)
    times, batches = 0, set[int]()
    for i in ids:
        places = history.order.locate(i, batches=step) if i < trainable else []
        times += len(places)
        batches.update(batch_id for batch_id, _ in places)
    span = f", in {plural(len(batches), 'batch')} from {min(batches)} to {max(batches)}" if batches else ""
    contain = "contains" if len(hits) == 1 else "contain"
    if more:
        noun, n = _noun(history), history.units.n
        first = f"cut off at --limit {len(hits)}: the first {plural(len(hits), noun)} of {n:,} that {contain} it"
        end = "; more follow: raise --limit, or give a longer text"
    else:
        first, end = f"{plural(len(hits), _noun(history))} of {history.units.n:,} {contain} it", ""
    return f"{first} ({sealed} sealed); read {plural(times, 'time')} by step {step}{span}{end}"


@contextmanager
def _progress(n: int) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on stderr; only on a terminal and when rich is installed."""
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield None
        return
    from rich.progress import Progress

    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("searching", total=n)
        yield lambda n_searched: bar.update(task, completed=n_searched)
