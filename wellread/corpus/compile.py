"""Compiling a corpus: shard by shard, restartable, then merged with the trainable samples first."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus import arrow
from wellread.corpus.columns import DIGEST, Columns, digest_of_spans, joined, n_targets, take
from wellread.corpus.digest import DIGEST_BYTES, corpus_hash
from wellread.corpus.pack import Packed, packed
from wellread.corpus.read import METRICS
from wellread.corpus.segments import FILE
from wellread.errors import UserError
from wellread.files import fsync_directory, full_disk_named, write_array, write_atomic, write_json

if TYPE_CHECKING:
    import pyarrow

KEPT = ("lengths", "spans", "n_spans", "digest", "document", "sealed", "metrics")
"""What is in memory of every sample while shards are merged."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sequence before it has an id."""

    tokens: Sequence[int] | NDArray[Any]
    spans: Sequence[tuple[int, int]]
    """Half-open ranges of tokens that carry loss."""
    document: int
    sealed: bool
    set_id: int
    """Which of the corpus's sets it comes from."""
    row: int
    """The first source row that it is made of."""
    category: str
    author: str = ""
    further_rows: Sequence[int] = ()
    """Source rows after the first, of a window over several documents."""


@dataclass
class Shard:
    """Samples of one stretch of rows, and how many rows were left out or cut, by reason."""

    samples: list[Sample]
    counts: Counter[str] = field(default_factory=Counter)
    metrics: NDArray[np.float32] | None = None
    """(samples, metrics) where text metrics are asked for."""


def corpus_key(settings: dict[str, Any]) -> str:
    """Short name of what a corpus is compiled from: equal settings, equal corpus."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def building(target: Path) -> Iterator[Path | None]:
    """Give a build directory that becomes `target` when the block succeeds; None when `target` is already there.

    After an error the build directory is removed. After a crash it stays, and the next build reuses its shards.
    """
    with _only_builder(target):  # another build of the same corpus: wait for it, then find it done
        if (target / "corpus.json").is_file():
            yield None
            return
        build = target.with_name(f".{target.name}.building")
        build.mkdir(exist_ok=True)
        try:
            with full_disk_named(target.parent):
                yield build
                shutil.rmtree(build / "shards", ignore_errors=True)
                os.rename(build, target)
                fsync_directory(target.parent)
        except Exception:
            shutil.rmtree(build, ignore_errors=True)
            raise


@contextmanager
def _only_builder(target: Path) -> Iterator[None]:
    """Wait until nobody else builds `target`; afterwards nothing is left of the lock, nor of a folder made for it."""
    import fcntl

    path = target.with_name(f".{target.name}.lock")
    while True:
        made = not target.parent.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "w")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            continue  # who had made the folder has removed it
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), path):
                continue  # who held it has removed it: others may hold a new one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                if made:
                    with suppress(OSError):  # it holds a corpus
                        target.parent.rmdir()
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def write_shards(build: Path, count: int, make: Callable[[int], Shard], progress: Callable[[int], None]) -> None:
    """Write shards 0 … count-1 that are not there yet; calls ``progress(done)`` after each."""
    for index in range(count):
        path = shard_path(build, index)
        if not path.exists():
            write_shard(path, make(index))
        progress(index + 1)


def shard_path(build: Path, index: int) -> Path:
    """Where shard `index` of a build lies; its folder is there afterwards."""
    (build / "shards").mkdir(exist_ok=True)
    return build / "shards" / f"{index:05d}.npz"


def write_shard(path: Path, shard: Shard) -> None:
    """Write one shard, whole or not at all."""
    write_atomic(path, _pack(shard))


def _pack(shard: Shard) -> bytes:
    samples = shard.samples
    buffer = io.BytesIO()
    tokens = [np.asarray(s.tokens, dtype=np.uint32) for s in samples]
    metrics = np.empty((len(samples), 0)) if shard.metrics is None else shard.metrics
    np.savez(
        buffer,
        tokens=np.concatenate([np.empty(0, dtype=np.uint32), *tokens]),
        digest=np.array(
            [digest_of_spans(t, s.spans) for s, t in zip(samples, tokens, strict=True)], dtype=DIGEST
        ).reshape(-1),
        lengths=np.array([len(s.tokens) for s in samples], dtype=np.int64),
        spans=np.array([span for s in samples for span in s.spans], dtype=np.int32).reshape(-1, 2),
        n_spans=np.array([len(s.spans) for s in samples], dtype=np.int64),
        document=np.array([s.document for s in samples], dtype=np.int64),
        sealed=np.array([s.sealed for s in samples], dtype=np.bool_),
        set_id=np.array([s.set_id for s in samples], dtype=np.int32),
        rows=np.array([row for s in samples for row in (s.row, *s.further_rows)], dtype=np.int64),
        n_rows=np.array([1 + len(s.further_rows) for s in samples], dtype=np.int64),
        metrics=np.asarray(metrics, dtype=np.float32),
        category=np.array([s.category for s in samples], dtype=np.str_),
        author=np.array([s.author for s in samples], dtype=np.str_),
        counts=np.array(json.dumps(shard.counts)),
    )
    return buffer.getvalue()


def merge(
    build: Path,
    *,
    sets: Sequence[str],
    vocab_size: int,
    settings: dict[str, Any],
    extra: dict[str, Any],
    metrics: Sequence[str] = (),
    pack: int | None = None,
) -> None:
    """Merge all shards into the files of a corpus, trainable samples first, then sealed ones.

    One shard is in memory at a time (with `pack`: one side of the seal), and some tens of bytes for each sample.

    Parameters
    ----------
    sets : sequence of str
        Names of the sets that the samples come from.
    metrics : sequence of str
        Names of the shards' text metrics, which become metrics.parquet.
    pack : int, optional
        Pack the samples of each side into sequences of so many tokens (`wellread.corpus.pack`).

    Raises
    ------
    UserError
        When no trainable sample is left.
    """
    dtype = "<u2" if vocab_size <= 65536 else "<u4"
    counts = _check_trainable(build, sets)
    found: list[Columns] = []
    packs: list[Packed] = []
    n_samples = 0
    with open(build / "tokens.bin", "wb") as file, _table_of_samples(build / "samples.parquet") as write:
        for sealed in (False, True):
            parts: Iterable[Columns] = _sides(build, sealed)
            if pack:
                packs.append(packed(joined(list(parts)), pack))
                parts = [packs[-1].samples]
            for part in parts:
                n = len(part["lengths"])
                file.write(np.ascontiguousarray(part["tokens"], dtype=dtype).data)
                if n:
                    write(_samples_table(part, sets, np.arange(n_samples, n_samples + n)))
                n_samples += n
                found.append({name: part[name] for name in KEPT})
        file.flush()
        os.fsync(file.fileno())
    columns = joined(found)
    write_array(build / "offsets.npy", np.concatenate([[0], np.cumsum(columns["lengths"])]).astype(np.int64))
    write_array(build / "targets.npy", columns["spans"].astype(np.int32))
    write_array(build / "target_offsets.npy", np.concatenate([[0], np.cumsum(columns["n_spans"])]).astype(np.int64))
    names = ["tokens.bin", "offsets.npy", "targets.npy", "target_offsets.npy", "samples.parquet"]
    if metrics:
        write_metrics(build, dict(zip(metrics, columns["metrics"].T, strict=True)))
        names.append(METRICS)
    documents = columns["document"]
    if pack:
        segments = joined([packed.segments for packed in packs])
        n_segments = np.concatenate([packed.n_segments for packed in packs])
        documents = segments["document"]
        counts["segments"] = len(documents)
        counts["sealed_segments"] = int(segments["sealed"].sum())
        names += _write_segments(build, segments, n_segments, sets)
    meta = {
        "version": 1,
        "hash": corpus_hash(
            (value.tobytes() for value in columns["digest"]),
            columns["document"].tolist(),
            ("sealed" if sealed else "trainable" for sealed in columns["sealed"]),
        ),
        "dtype": dtype,
        "counts": _counts(columns, documents, counts),
        "settings": settings,
        **extra,
        "sizes": {name: (build / name).stat().st_size for name in names},
    }
    write_json(build / "corpus.json", meta)


def _write_segments(
    build: Path, segments: Columns, n_segments: NDArray[np.int64], sets: Sequence[str]
) -> tuple[str, ...]:
    """Write what packed samples are made of; return the names of the files."""
    import pyarrow
    import pyarrow.parquet

    write_array(build / "segments.npy", np.concatenate([[0], np.cumsum(segments["lengths"])]).astype(np.int64))
    write_array(build / "segment_offsets.npy", np.concatenate([[0], np.cumsum(n_segments)]).astype(np.int64))
    numbers = arrow.numbers(np.arange(len(segments["lengths"])), np.int64)
    table = _samples_table(segments, sets, np.repeat(np.arange(len(n_segments)), n_segments))
    pyarrow.parquet.write_table(table.add_column(0, "segment", numbers), build / FILE, compression="zstd")
    return "segments.npy", "segment_offsets.npy", FILE


def write_metrics(build: Path, columns: dict[str, NDArray[Any]]) -> None:
    """Write metrics.parquet: one row for each sample, in order of sample id, one float32 column for each metric."""
    import pyarrow
    import pyarrow.parquet

    n = len(next(iter(columns.values())))
    table = {"sample_id": arrow.numbers(np.arange(n), np.int64)}
    table |= {name: arrow.numbers(values, np.float32) for name, values in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(table), build / METRICS, compression="zstd")


def _check_trainable(build: Path, sets: Sequence[str]) -> Counter[str]:
    """What was left out or cut, by reason, in all shards."""
    counts: Counter[str] = Counter()
    n_trainable = n_sealed = 0
    for path in _shard_paths(build):
        with np.load(path) as file:
            counts.update(json.loads(str(file["counts"])))
            sealed = int(file["sealed"].sum())
            n_sealed, n_trainable = n_sealed + sealed, n_trainable + len(file["sealed"]) - sealed
    if n_trainable == 0:
        counts["sealed"] = n_sealed
        remedy = "lower --holdout or give more rows" if n_sealed else "give rows with something to learn from"
        remedy = "raise --seq_len" if counts["dropped_prompt_fills_window"] else remedy
        raise UserError(f"{'+'.join(sets)}: no trainable sample is left ({_reasons(counts)}); {remedy}")
    return counts


def _shard_paths(build: Path) -> list[Path]:
    return sorted((build / "shards").glob("*.npz"))


def _shards(build: Path) -> Iterator[Columns]:
    for path in _shard_paths(build):
        with np.load(path) as file:
            yield dict(file)


def _sides(build: Path, sealed: bool) -> Iterator[Columns]:
    """The samples of each shard that are sealed, or those that are not."""
    for shard in _shards(build):
        samples = {name: values for name, values in shard.items() if name != "counts"}
        yield take(samples, np.flatnonzero(samples["sealed"] == sealed))


def _counts(columns: Columns, documents: NDArray[np.int64], counts: Counter[str]) -> dict[str, Any]:
    n, sealed = len(columns["lengths"]), columns["sealed"]
    return {
        "samples": n,
        "trainable": int((~sealed).sum()),
        "sealed": int(sealed.sum()),
        "tokens": int(columns["lengths"].sum()),
        "targets": int((columns["spans"][:, 1] - columns["spans"][:, 0]).sum()),
        "sealed_tokens": int(columns["lengths"][sealed].sum()),
        "longest": int(columns["lengths"].max()),
        "duplicates": len(documents) - len(np.unique(documents)),
        **dict(sorted(counts.items())),
    }


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{reason.replace('_', ' ')}: {n}" for reason, n in sorted(counts.items()))


@contextmanager
def _table_of_samples(path: Path) -> Iterator[Callable[[pyarrow.Table], None]]:
    import pyarrow.parquet

    writer: Any = None

    def write(table: pyarrow.Table) -> None:
        nonlocal writer
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer:
            writer.close()


def _samples_table(part: Columns, sets: Sequence[str], sample_ids: NDArray[np.int64]) -> pyarrow.Table:
    import pyarrow

    return pyarrow.table(
        {
            "sample_id": arrow.numbers(sample_ids, np.int64),
            "digest": arrow.digests(part["digest"].tobytes(), DIGEST_BYTES),
            "split": arrow.named(part["sealed"], ["trainable", "sealed"]),
            "n_tokens": arrow.numbers(part["lengths"], np.int32),
            "n_targets": arrow.numbers(n_targets(part), np.int32),
            "document": arrow.numbers(part["document"], np.int64),
            "source": arrow.named(part["set_id"], sets),
            "rows": arrow.lists(part["rows"], part["n_rows"], np.int64),
            "category": arrow.words(part["category"]),
            "author": arrow.words(part["author"]),
        }
    )
