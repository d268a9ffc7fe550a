"""Shards: files of samples that have no id yet. Each is written atomically, so an interrupted build can continue."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.columns import DIGEST, Columns, digest_of_spans, take
from wellread.corpus.marks import Mark
from wellread.files import write_atomic

BYTES, SIZES = "_bytes", "_sizes"
"""Endings of the two columns of a shard that store one column of texts."""
OF_ALL = ("counts", "examples", "marks")
"""Parts of a shard that describe all its samples."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sequence before it has an id."""

    tokens: Sequence[int] | NDArray[Any]
    spans: Sequence[tuple[int, int]]
    """Half-open ranges of tokens that carry loss."""
    document: int
    sealed: bool
    set_id: int
    """Index of the data set that it comes from."""
    row: int
    """Number of its first source row."""
    category: str
    author: str = ""
    further_rows: Sequence[int] = ()
    """Its other source rows, for a window over several documents."""


@dataclass
class Shard:
    """Samples of a range of rows, and how many rows were skipped or truncated, by reason."""

    samples: list[Sample]
    counts: Counter[str] = field(default_factory=Counter)
    metrics: NDArray[np.float32] | None = None
    """(samples, metrics), if text metrics are requested."""
    marks: list[tuple[int, Mark]] = field(default_factory=list)
    """Marks, each with the index in `samples` of the sample in which it begins."""
    examples: dict[str, str] = field(default_factory=dict)
    """Reason -> the first example of it."""

    def count(self, reason: str, example: str, n: int = 1) -> None:
        """Count `n` more of `reason`, with the place of the first and what it is."""
        self.counts[reason] += n
        self.examples.setdefault(reason, example)


def shard_path(build: Path, index: int) -> Path:
    """Path of shard `index` of a build; creates its folder."""
    (build / "shards").mkdir(exist_ok=True)
    return build / "shards" / f"{index:05d}.npz"


def write_shard(path: Path, shard: Shard) -> None:
    """Write one shard, atomically."""
    write_atomic(path, _serialize(shard))


def _serialize(shard: Shard) -> bytes:
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
        **_encoded("category", [s.category for s in samples]),
        **_encoded("author", [s.author for s in samples]),
        counts=np.array(json.dumps(shard.counts)),
        examples=np.array(json.dumps(shard.examples)),
        marks=np.frombuffer(json.dumps([asdict(mark) | {"sample": i} for i, mark in shard.marks]).encode(), np.uint8),
    )
    return buffer.getvalue()


def _encoded(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """A column of texts as bytes and sizes: a NumPy column of strings is as wide as its longest text in every row."""
    encoded = [text.encode() for text in texts]
    sizes = np.array([len(each) for each in encoded], dtype=np.int64)
    return {f"{name}{BYTES}": np.frombuffer(b"".join(encoded), dtype=np.uint8), f"{name}{SIZES}": sizes}


def _decoded(data: NDArray[np.uint8], sizes: NDArray[np.int64]) -> NDArray[np.object_]:
    """The texts of `_encoded`, as one array of objects; equal texts are one object."""
    content, ends = data.tobytes(), np.cumsum(sizes).tolist()
    distinct: dict[bytes, str] = {}
    texts = np.empty(len(sizes), dtype=np.object_)
    for i, (size, end) in enumerate(zip(sizes.tolist(), ends, strict=True)):
        part = content[end - size : end]
        texts[i] = distinct.get(part) or distinct.setdefault(part, part.decode())
    return texts


def shard_paths(build: Path) -> list[Path]:
    """Paths of the shards of a build, in order."""
    return sorted((build / "shards").glob("*.npz"))


def totals(build: Path) -> tuple[Counter[str], dict[str, str]]:
    """What was skipped, truncated or changed in all shards: how often by reason, and the first example of each."""
    counts, examples = Counter[str](), dict[str, str]()
    for path in shard_paths(build):
        with np.load(path) as file:
            counts.update(json.loads(str(file["counts"])))
            examples = json.loads(str(file["examples"])) | examples
    return counts, examples


def _shards(build: Path) -> Iterator[Columns]:
    for path in shard_paths(build):
        with np.load(path) as file:
            columns = dict(file)
        for name in [key.removesuffix(BYTES) for key in columns if key.endswith(BYTES)]:
            columns[name] = _decoded(columns.pop(f"{name}{BYTES}"), columns.pop(f"{name}{SIZES}"))
        yield columns


def sides(build: Path, sealed: bool) -> Iterator[Columns]:
    """The sealed samples of each shard, or the trainable ones."""
    for shard in _shards(build):
        samples = {name: values for name, values in shard.items() if name not in OF_ALL}
        yield take(samples, np.flatnonzero(samples["sealed"] == sealed))


def shard_marks(build: Path) -> Iterator[dict[str, Any]]:
    """The marks of all shards: the fields of `Mark`, and the id that the sample will have in the corpus."""
    n_trainable = 0
    for path in shard_paths(build):
        with np.load(path) as file:
            n_trainable += int((~file["sealed"]).sum())
    firsts = [0, n_trainable]  # next id of a trainable, and of a sealed sample
    for path in shard_paths(build):
        with np.load(path) as file:
            sealed, marks = file["sealed"].astype(np.int64), json.loads(file["marks"].tobytes())
        ids = np.where(sealed, firsts[1] + np.cumsum(sealed), firsts[0] + np.cumsum(1 - sealed)) - 1
        yield from (mark | {"sample_id": int(ids[mark["sample"]])} for mark in marks)
        firsts = [firsts[0] + int((1 - sealed).sum()), firsts[1] + int(sealed.sum())]
