"""Batches as they were or will be read: on screen, as token ids, JSONL or CSV, or passed to a user's function."""

from __future__ import annotations

import csv
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from wellread.errors import UserError
from wellread.files import fsync_directory
from wellread.record.history import BatchRead, History
from wellread.streams import Data, json_line
from wellread.terminal import cell, plural, say, say_text, visible

STDOUT = "-"
PADDING = -1


# --- on screen -------------------------------------------------------------------------------------------------------


def show_batches(history: History, start: int, stop: int) -> None:
    """Print the text of each slot, or its token ids when there is no tokenizer."""
    for batch in history.batches(start, stop):
        n_tokens = sum(map(len, batch.tokens))
        skipped = "  skipped: not learned from" * batch.skipped
        state = f"loss {cell(batch.loss)}{skipped}" if batch.read else _state(history)
        size = f"{plural(len(batch.sample_ids), 'sample')}, {plural(n_tokens, 'token')}"
        say(f"batch {batch.batch_id}  step {batch.step}  {size}  {state}".rstrip(), "bold")
        for slot in range(len(batch.sample_ids)):
            say(_slot_line(batch, slot), "cyan")
            segments = batch.samples[slot].get("segments", []) if batch.samples else []
            for number, segment in enumerate(segments, 1):
                say(segment_line(number, len(segments), segment), "cyan")
                say_text(segment["text"] if "text" in segment else " ".join(map(str, segment["tokens"])))
            if not segments:
                say_text(batch.texts[slot] if batch.texts else " ".join(map(str, batch.tokens[slot].tolist())))
        say()


def _state(history: History) -> str:
    return "not read yet" if history.record or history.checkpoints else ""


def _slot_line(batch: BatchRead, slot: int) -> str:
    words = [
        f"batch {batch.batch_id} slot {slot}  sample {batch.sample_ids[slot]}",
        where_from(batch.samples[slot]) if batch.samples else "",
        f"epoch {batch.epochs[slot]}",
        f"loss {cell(batch.losses[slot])}" if batch.losses else "",
        f"{plural(len(batch.tokens[slot]), 'token')}, {plural(batch.n_targets[slot], 'target')}",
    ]
    return "  ".join(filter(None, words))


def segment_line(number: int, of: int, segment: dict[str, Any]) -> str:
    """One line about a segment of a packed sample: its number, source and size."""
    size = f"{plural(segment['n_tokens'], 'token')}, {plural(segment['n_targets'], 'target')}"
    return f"  segment {number} of {of}  {where_from(segment)}  {size}"


def where_from(row: dict[str, Any]) -> str:
    """Source, rows, category and author of a sample as text, as far as the corpus has them."""
    rows = ",".join(map(str, row.get("rows") or []))
    source = f"{row['source']}:{rows}" if row.get("source") else ""
    attributes = [f"{name} {row[name]}" for name in ("category", "author") if row.get(name)]
    return visible("  ".join(filter(None, [source, *attributes])))


# --- into files ------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: str) -> Iterator[IO[str]]:
    """Open a text file that is written completely or not at all; ``-`` is standard output."""
    if path == STDOUT:
        yield Data()  # type: ignore[misc]
        return
    with replacing(Path(path)) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        yield file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory; it replaces `path` when the block succeeds."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: the directory {path.parent} does not exist; create it first")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.unlink(missing_ok=True)  # left by a process of the same number, or a link to another file
            temporary.touch(exist_ok=False)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None  # the user knows only `path`
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_directory(path.parent)
    except OSError as error:
        if error.errno and not error.filename:  # a write does not know its file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _new_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Create an .npy file with space for all its values, and map it.

    Without the space, a write to the map on a full disk would end this process with SIGBUS.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with open(path, "rb+") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array


def save(history: History, start: int, stop: int, path: str) -> None:
    """Write the token ids of all slots as one int32 array, (slots, longest sample), padded with -1."""
    width = max(int(history.reader.lengths(history.numbers(k)[0]).max()) for k in range(start, stop))
    size = history.order.batch_size
    with replacing(Path(path)) as temporary:
        shape = ((stop - start) * size, width)
        array = _new_array(temporary, np.int32, shape)
        for batch_id in range(start, stop):
            for slot, sample_id in enumerate(history.numbers(batch_id)[0].tolist()):
                tokens = history.reader.tokens(sample_id)
                row = array[(batch_id - start) * size + slot]
                row[: len(tokens)], row[len(tokens) :] = tokens, PADDING
        array.flush()
    say(f"wrote {path}: token ids, int32 [{shape[0]}, {shape[1]}], one row per slot")


def as_objects(batch: BatchRead) -> Iterator[dict[str, Any]]:
    """One JSON object per slot: ids, loss, the sample's row of the samples table, and its text or tokens."""
    for slot, sample_id in enumerate(batch.sample_ids):
        content: dict[str, Any] = (
            {"text": batch.texts[slot]} if batch.texts else {"tokens": batch.tokens[slot].tolist()}
        )
        yield {
            "batch_id": batch.batch_id,
            "step": batch.step,
            "slot": slot,
            "sample_id": sample_id,
            "epoch": batch.epochs[slot],
            "read": batch.read,
            "skipped": batch.skipped,
            "loss": batch.losses[slot] if batch.losses else None,
            **(batch.samples[slot] if batch.samples else {}),
            "n_tokens": len(batch.tokens[slot]),
            "n_targets": batch.n_targets[slot],
            **content,
        }


def write_jsonl(history: History, start: int, stop: int, path: str) -> None:
    """Write one object per sample, in order of reading."""
    count = 0
    with writing(path) as file:
        for batch in history.batches(start, stop):
            for value in as_objects(batch):
                file.write(json_line(value))
                count += 1
    if path != STDOUT:
        say(f"wrote {path}: {plural(count, 'sample')} of {plural(stop - start, 'batch')}")


# --- a user's function -----------------------------------------------------------------------------------------------


def call(history: History, start: int, stop: int, name: str, path: str) -> None:
    """Call a user's function with each `BatchRead`, and write what it returns as JSONL, one line per batch.

    Raises
    ------
    UserError
        When there is no such function, or it returns a value that JSON does not support.
    """
    function = find_function(name)
    with writing(path) as file:
        for batch in history.batches(start, stop):
            value = function(batch)
            try:
                line = json_line(value)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"--call {name}: batch {batch.batch_id}: did not return a JSON value ({error})"
                ) from None
            file.write(line)
    if path != STDOUT:
        say(f"wrote {path}: {plural(stop - start, 'line')}, one per batch")


def find_function(name: str) -> Callable[[BatchRead], Any]:
    """Import ``module:function``; modules in the working directory take precedence."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise UserError(f"--call {name}: expected MODULE:FUNCTION, e.g. mine:count_words")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name not in (module_name, module_name.partition(".")[0]):
            raise  # the user's module exists, but one of its imports does not
        raise UserError(f"--call {name}: no module {module_name} in {Path.cwd()} or among installed packages") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"--call {name}: {module_name} has no function {attribute}")
    result: Callable[[BatchRead], Any] = function
    return result


# --- the table of batches --------------------------------------------------------------------------------------------


def write_csv(history: History, start: int, stop: int, path: str) -> None:
    """Write one line per batch: ids, tokens, targets, loss over all targets, and the mean of each sample metric."""
    metrics = _metric_columns(history)
    with writing(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["batch_id", "step", "tokens", "targets", "loss", *(f"mean_{name}" for name in metrics)])
        for batch_id in range(start, stop):
            table.writerow(_csv_row(history, batch_id, metrics))
    if path != STDOUT:
        say(f"wrote {path}: {plural(stop - start, 'batch')}")


def _csv_row(history: History, batch_id: int, metrics: dict[str, NDArray[Any]]) -> list[Any]:
    ids, n_targets, losses = history.numbers(batch_id)
    loss = "" if losses is None else f"{np.average(losses.astype(np.float64), weights=n_targets):.6f}"
    means = []
    for column in metrics.values():
        values = column[ids][np.isfinite(column[ids])]
        means.append(f"{values.mean(dtype=np.float64):.6f}" if len(values) else "")
    return [batch_id, batch_id + 1, int(history.reader.lengths(ids).sum()), int(n_targets.sum()), loss, *means]


def _metric_columns(history: History) -> dict[str, NDArray[Any]]:
    """Metric -> values of all samples, in memory for random access; 4 or 8 bytes per value."""
    columns: dict[str, NDArray[Any]] = {}
    for name in history.samples.metrics:
        chunks = [table[name].to_numpy() for _, table in history.samples.chunks([name])]
        columns[name] = np.concatenate(chunks)
    return columns
