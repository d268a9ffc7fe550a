"""What a checkpoint has read, and what a later checkpoint has read in addition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.errors import UserError
from wellread.record.history import History
from wellread.terminal import cell, plural, say, say_pairs, say_table

if TYPE_CHECKING:
    import pyarrow

SAMPLES_AT_ONCE = 1 << 16
RECENT = "since the previous checkpoint"


@dataclass(frozen=True, kw_only=True)
class Total:
    """Sums over readings."""

    readings: int
    samples: int
    """Distinct."""
    tokens: int
    targets: int
    loss: float | None
    """Mean over target tokens, as trained, without skipped batches."""


def parts(history: History, start: int, stop: int, columns: list[str]) -> Iterator[tuple[int, int, pyarrow.Table]]:
    """Yield the record of batches start … stop-1 part by part: first batch, end (exclusive), rows."""
    assert history.record is not None
    for part in history.record.parts:
        low, high = max(start, part["from"]), min(stop, part["to"])
        if low < high:
            yield low, high, history.record.table(columns, (low, high))


def times_read(history: History, start: int, stop: int) -> NDArray[np.int32]:
    """How often batches start … stop-1 read each sample, int32[n]; counted from the record, not from the order."""
    counts = np.zeros(history.reader.n, dtype=np.int32)
    if history.record is not None:
        for _, _, table in parts(history, start, stop, ["sample_id"]):
            np.add.at(counts, table["sample_id"].to_numpy(), 1)
    return counts


def total(history: History, start: int, stop: int, counts: NDArray[np.int32]) -> Total:
    """Sums over batches start … stop-1, which read each sample `counts` times."""
    tokens = targets = 0
    for low in range(0, len(counts), SAMPLES_AT_ONCE):
        ids = low + np.flatnonzero(counts[low : low + SAMPLES_AT_ONCE])
        tokens += int((history.reader.lengths(ids) * counts[ids]).sum())
    weighted, learned = 0.0, 0
    for _, _, table in parts(history, start, stop, ["n_targets", "loss", "skipped"]) if history.record else ():
        n_targets, learned_from = table["n_targets"].to_numpy(), ~table["skipped"].to_numpy()
        targets += int(n_targets.sum())
        learned += int(n_targets[learned_from].sum())
        weighted += float((table["loss"].to_numpy().astype(np.float64) * n_targets)[learned_from].sum())
    return Total(
        readings=int(counts.sum()),
        samples=int(np.count_nonzero(counts)),
        tokens=tokens,
        targets=targets,
        loss=weighted / learned if learned else None,
    )


def by_group(history: History, counts: NDArray[np.int32]) -> dict[tuple[str, ...], dict[str, int]]:
    """Samples (segments if packed), readings and tokens of each source and category, most readings first."""
    import pyarrow

    sums: dict[tuple[str, ...], dict[str, int]] = {}
    if not history.samples.groups:
        return sums
    names = ("samples", "readings", "tokens")
    for table in history.samples.unit_chunks([*history.samples.groups, "sample_id", "n_tokens"]):
        times = counts[table["sample_id"].to_numpy()]
        columns = [
            (times > 0).astype(np.int64),
            times.astype(np.int64),
            times * table["n_tokens"].to_numpy().astype(np.int64),
        ]
        grouped = pyarrow.table(
            {name: table[name].cast(pyarrow.string()) for name in history.samples.groups}
            | {name: pyarrow.array(column) for name, column in zip(names, columns, strict=True)}
        ).group_by(history.samples.groups)
        for row in grouped.aggregate([(name, "sum") for name in names]).to_pylist():
            key = tuple(str(row[name] or "-") for name in history.samples.groups)
            into = sums.setdefault(key, dict.fromkeys(names, 0))
            for name in names:
                into[name] += row[f"{name}_sum"]
    return dict(sorted(sums.items(), key=lambda item: (-item[1]["readings"], item[0])))


def metric_means(history: History, counts: NDArray[np.int32]) -> dict[str, float | None]:
    """Mean of each sample metric over all readings, without missing values; None when all are missing."""
    sums = {name: np.zeros(2) for name in history.samples.metrics}
    for start, table in history.samples.chunks(history.samples.metrics) if history.samples.metrics else ():
        times = counts[start : start + table.num_rows].astype(np.float64)
        for name in history.samples.metrics:
            values = table[name].to_numpy().astype(np.float64)
            finite = np.isfinite(values)
            sums[name] += (values[finite] * times[finite]).sum(), times[finite].sum()
    return {name: float(weighted / n) if n else None for name, (weighted, n) in sums.items()}


def show_checkpoint(history: History, name: str) -> None:
    """Print what a checkpoint has read, in total and since the previous checkpoint."""
    checkpoint = history.checkpoint(name)
    start, stop = checkpoint.batches
    counts, recent = times_read(history, 0, checkpoint.step), times_read(history, start, stop)
    everything, since = total(history, 0, checkpoint.step, counts), total(history, start, stop, recent)
    say(f"step-{checkpoint.step} of {history.name}", "bold")
    trainable = history.reader.n_trainable
    sealed = history.reader.n - trainable
    pairs = [
        ("step", f"{checkpoint.step:,} of {history.steps:,}"),
        ("samples", f"{everything.samples:,} distinct of {trainable:,} trainable ({sealed:,} more are sealed)"),
        ("readings", f"{everything.readings:,}"),
        ("tokens", f"{everything.tokens:,}"),
        ("targets", f"{everything.targets:,}"),
        ("epochs", f"{everything.readings / history.order.n:.4f}"),
        ("loss", f"{cell(everything.loss)} (mean over all targets, as trained)"),
        (RECENT, f"batches {start}:{stop}, {_sentence(since)}"),
        ("record head", checkpoint.head),
    ]
    say_pairs(pairs)
    if everything.tokens != checkpoint.tokens:
        say(f"tokens differ: checkpoint.json says {checkpoint.tokens:,}; run wellread verify", "red")
    _show_groups(history, counts, recent, f"readings {RECENT}")
    _show_metrics(history, {"mean": counts, RECENT: recent})


def _sentence(of: Total) -> str:
    return (
        f"{plural(of.readings, 'reading')} of {plural(of.samples, 'sample')}, {plural(of.tokens, 'token')}, "
        f"{plural(of.targets, 'target')}, loss {cell(of.loss)}"
    )


def _show_groups(history: History, counts: NDArray[np.int32], second: NDArray[np.int32], second_head: str) -> None:
    groups, second_groups = by_group(history, counts), by_group(history, second)
    if groups:
        say()
        unit = "segments" if history.samples.segments else "samples"
        heads = [*history.samples.groups, unit, "readings", "tokens", "share", second_head]
        readings = max(1, sum(row["readings"] for row in groups.values()))
        say_table(
            heads,
            [
                [*key, *row.values(), f"{row['readings'] / readings:.1%}", second_groups[key]["readings"]]
                for key, row in groups.items()
            ],
        )


def _show_metrics(history: History, counts: dict[str, NDArray[np.int32]]) -> None:
    means = {name: metric_means(history, times) for name, times in counts.items()}
    if history.samples.metrics:
        say()
        say_table(["metric", *means], [[m, *(column[m] for column in means.values())] for m in history.samples.metrics])


def show_difference(history: History, first: str, second: str) -> None:
    """Print what the second checkpoint has read in addition to the first.

    Raises
    ------
    UserError
        When one does not exist, or the first is not the earlier one.
    """
    before, after = history.checkpoint(first), history.checkpoint(second)
    if before.step >= after.step:
        raise UserError(f"--diff {first} {second}: the first must be the earlier; swap them")
    old = times_read(history, 0, before.step)
    between = times_read(history, before.step, after.step)
    fresh = np.where(old == 0, between, 0).astype(np.int32)
    span = total(history, before.step, after.step, between)
    say(f"step-{after.step} against step-{before.step} of {history.name}", "bold")
    say_pairs(
        [
            ("between", f"batches {before.step}:{after.step}, {_sentence(span)}"),
            ("new samples", f"{np.count_nonzero(fresh):,} that step-{before.step} had not read"),
            ("new tokens", f"{_distinct_tokens(history, fresh):,} in them"),
            ("read again", f"{np.count_nonzero(between[old > 0]):,} that it had read"),
        ]
    )
    _show_groups(history, between, fresh, "new readings")
    n = history.reader.n_trainable  # sealed samples come after them
    _show_times(before.step, after.step, old[:n], (old + between)[:n])
    _show_metrics(history, {"between": between, "new": fresh})


def _distinct_tokens(history: History, counts: NDArray[np.int32]) -> int:
    blocks = (np.flatnonzero(counts[a : a + SAMPLES_AT_ONCE]) + a for a in range(0, len(counts), SAMPLES_AT_ONCE))
    return sum(int(history.reader.lengths(ids).sum()) for ids in blocks)


def _show_times(before: int, after: int, old: NDArray[np.int32], new: NDArray[np.int32]) -> None:
    """Print how many trainable samples each checkpoint had read how often."""
    say()
    times: list[Any] = sorted(set(np.unique(old).tolist()) | set(np.unique(new).tolist()))
    rows = [[t, int((old == t).sum()), int((new == t).sum())] for t in times]
    say_table(["times read", f"samples at step-{before}", f"samples at step-{after}"], rows)
