"""Compiling a corpus: shard by shard, restartable, then merged with the trainable samples first."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.data.corpus import DIGEST_BYTES, corpus_hash, digest
from wellread.data.pack import packed_samples
from wellread.data.segments import FILE
from wellread.runs import fsync_directory, full_disk_named, write_array, write_atomic, write_json


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sequence before it has an id."""

    tokens: Sequence[int]
    spans: Sequence[tuple[int, int]]
    """Half-open ranges of tokens that carry loss."""
    document: int
    sealed: bool
    set_id: int
    """Which of the corpus's sets it comes from."""
    row: int
    category: str
    author: str = ""


@dataclass
class Shard:
    """Samples of one stretch of rows, and how many rows were left out or cut, by reason."""

    samples: list[Sample]
    counts: Counter[str] = field(default_factory=Counter)


def corpus_key(settings: dict[str, Any]) -> str:
    """Short name of what a corpus is compiled from: equal settings, equal corpus."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def building(target: Path) -> Iterator[Path | None]:
    """Give a build directory that becomes `target` when the block succeeds; None when `target` is already there.

    After an error the build directory is removed. After a crash it stays, and the next build reuses its shards.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f".{target.name}.lock")
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another build of the same corpus: wait for it, then find it done
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


def write_shards(build: Path, count: int, make: Callable[[int], Shard], progress: Callable[[int], None]) -> None:
    """Write shards 0 … count-1 that are not there yet; calls ``progress(done)`` after each."""
    (build / "shards").mkdir(exist_ok=True)
    for index in range(count):
        path = build / "shards" / f"{index:05d}.npz"
        if not path.exists():
            write_atomic(path, _pack(make(index)))
        progress(index + 1)


def _pack(shard: Shard) -> bytes:
    samples = shard.samples
    buffer = io.BytesIO()
    np.savez(
        buffer,
        tokens=np.fromiter((t for s in samples for t in s.tokens), dtype=np.uint32),
        lengths=np.array([len(s.tokens) for s in samples], dtype=np.int64),
        spans=np.array([span for s in samples for span in s.spans], dtype=np.int32).reshape(-1, 2),
        n_spans=np.array([len(s.spans) for s in samples], dtype=np.int64),
        document=np.array([s.document for s in samples], dtype=np.int64),
        sealed=np.array([s.sealed for s in samples], dtype=np.bool_),
        set_id=np.array([s.set_id for s in samples], dtype=np.int32),
        row=np.array([s.row for s in samples], dtype=np.int64),
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
    pack: int | None = None,
) -> None:
    """Merge all shards into the files of a corpus, trainable samples first, then sealed ones.

    Parameters
    ----------
    sets : sequence of str
        Names of the sets that the samples come from.
    pack : int, optional
        Pack the samples of each side into sequences of so many tokens (`wellread.data.pack`).

    Raises
    ------
    ValueError
        When no trainable sample is left.
    """
    dtype = "<u2" if vocab_size <= 65536 else "<u4"
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("digest", "split", "n_tokens", "n_targets", "document", "set_id", "rows", "category", "author")
    }
    segments = {name: list[Any]() for name in columns}
    n_segments: list[int] = []
    spans: list[NDArray[np.int32]] = []
    n_spans: list[int] = []
    counts: Counter[str] = Counter()
    with open(build / "tokens.bin", "wb") as file:
        for sealed in (False, True):
            found: Iterable[dict[str, Any]] = (s for shard in _shards(build) for s in _unpack(shard, sealed))
            for sample in packed_samples(list(found), pack) if pack else found:
                file.write(np.ascontiguousarray(sample["tokens"], dtype=dtype).data)
                spans.append(sample["spans"])
                n_spans.append(len(sample["spans"]))
                _append(columns, sample)
                for segment in sample.get("segments", ()):
                    _append(segments, segment)
                n_segments.append(len(sample.get("segments", ())))
        file.flush()
        os.fsync(file.fileno())
    for shard in _shards(build):
        counts.update(json.loads(str(shard["counts"])))
    n_trainable = columns["split"].count("trainable")
    if n_trainable == 0:
        counts["sealed"] = len(columns["split"])
        remedy = "raise --seq_len" if counts["dropped_prompt_fills_window"] else "lower --holdout or give more rows"
        raise ValueError(f"{'+'.join(sets)}: no trainable sample is left ({_reasons(counts)}); {remedy}")
    write_array(build / "offsets.npy", np.concatenate([[0], np.cumsum(columns["n_tokens"])]).astype(np.int64))
    write_array(build / "targets.npy", np.concatenate(spans).astype(np.int32))
    write_array(build / "target_offsets.npy", np.concatenate([[0], np.cumsum(n_spans)]).astype(np.int64))
    _write_samples(build / "samples.parquet", columns, sets)
    names = ["tokens.bin", "offsets.npy", "targets.npy", "target_offsets.npy", "samples.parquet"]
    if pack:
        counts["segments"] = len(segments["digest"])
        counts["sealed_segments"] = segments["split"].count("sealed")
        write_array(build / "segments.npy", np.concatenate([[0], np.cumsum(segments["n_tokens"])]).astype(np.int64))
        write_array(build / "segment_offsets.npy", np.concatenate([[0], np.cumsum(n_segments)]).astype(np.int64))
        _write_samples(build / FILE, segments, sets, of=np.repeat(np.arange(len(n_segments)), n_segments))
        names += ["segments.npy", "segment_offsets.npy", FILE]
    meta = {
        "version": 1,
        "hash": corpus_hash(columns["digest"], columns["document"], columns["split"]),
        "dtype": dtype,
        "counts": _counts(columns, n_trainable, (segments if pack else columns)["document"], counts),
        "settings": settings,
        **extra,
        "sizes": {name: (build / name).stat().st_size for name in names},
    }
    write_json(build / "corpus.json", meta)


def _shards(build: Path) -> Iterator[dict[str, NDArray[Any]]]:
    for path in sorted((build / "shards").glob("*.npz")):
        with np.load(path) as file:
            yield dict(file)


def _unpack(shard: dict[str, NDArray[Any]], sealed: bool) -> Iterator[dict[str, Any]]:
    ends, span_ends = np.cumsum(shard["lengths"]), np.cumsum(shard["n_spans"])
    for i in np.flatnonzero(shard["sealed"] == sealed):
        tokens = shard["tokens"][ends[i] - shard["lengths"][i] : ends[i]]
        spans = shard["spans"][span_ends[i] - shard["n_spans"][i] : span_ends[i]]
        targets = np.zeros(len(tokens), dtype=np.bool_)
        for start, stop in spans:
            targets[start:stop] = True
        yield {
            "tokens": tokens,
            "spans": spans,
            "digest": digest(tokens, targets),
            "split": "sealed" if sealed else "trainable",
            "n_tokens": len(tokens),
            "n_targets": int(targets.sum()),
            "document": int(shard["document"][i]),
            "set_id": int(shard["set_id"][i]),
            "rows": [int(shard["row"][i])],
            "category": str(shard["category"][i]),
            "author": str(shard["author"][i]),
        }


def _append(columns: dict[str, list[Any]], sample: dict[str, Any]) -> None:
    for name, column in columns.items():
        column.append(sample[name])


def _counts(
    columns: dict[str, list[Any]], n_trainable: int, documents: list[int], counts: Counter[str]
) -> dict[str, Any]:
    sealed = slice(n_trainable, None)
    return {
        "samples": len(columns["digest"]),
        "trainable": n_trainable,
        "sealed": len(columns["digest"]) - n_trainable,
        "tokens": sum(columns["n_tokens"]),
        "targets": sum(columns["n_targets"]),
        "sealed_tokens": sum(columns["n_tokens"][sealed]),
        "longest": max(columns["n_tokens"]),
        "duplicates": len(documents) - len(set(documents)),
        **dict(sorted(counts.items())),
    }


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{reason.replace('_', ' ')}: {n}" for reason, n in sorted(counts.items()))


def _write_samples(
    path: Path, columns: dict[str, list[Any]], sets: Sequence[str], of: NDArray[np.int64] | None = None
) -> None:
    """Write the table of samples; with `of`, that of segments, which are part of these samples."""
    import pyarrow
    import pyarrow.parquet

    n = len(columns["digest"])
    table = pyarrow.table(
        {
            **({} if of is None else {"segment": pyarrow.array(range(n), pyarrow.int64())}),
            "sample_id": pyarrow.array(range(n) if of is None else of, pyarrow.int64()),
            "digest": pyarrow.array(columns["digest"], pyarrow.binary(DIGEST_BYTES)),
            "split": pyarrow.array(columns["split"]).dictionary_encode(),
            "n_tokens": pyarrow.array(columns["n_tokens"], pyarrow.int32()),
            "n_targets": pyarrow.array(columns["n_targets"], pyarrow.int32()),
            "document": pyarrow.array(columns["document"], pyarrow.int64()),
            "source": pyarrow.DictionaryArray.from_arrays(pyarrow.array(columns["set_id"], pyarrow.int32()), [*sets]),
            "rows": pyarrow.array(columns["rows"], pyarrow.list_(pyarrow.int64())),
            "category": pyarrow.array(columns["category"]).dictionary_encode(),
            "author": pyarrow.array(columns["author"]).dictionary_encode(),
        }
    )
    pyarrow.parquet.write_table(table, path, compression="zstd")
