"""Verify a run: recompute the chain of its record, and compare it with corpus, order and every checkpoint."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wellread.checkpoint import list_checkpoints, unreadable
from wellread.corpus.digest import DIGEST_BYTES, corpus_hash
from wellread.corpus.pack import joined_document
from wellread.corpus.read import Corpus
from wellread.corpus.segments import Segments
from wellread.errors import UserError
from wellread.order.permutation import Order
from wellread.order.store import open_order
from wellread.record.chain import genesis, link
from wellread.record.reader import Record
from wellread.run import RunDirectory

if TYPE_CHECKING:
    import pyarrow

BATCHES_AT_ONCE = 4096


def verify(run: RunDirectory) -> list[str]:
    """Check everything that a run claims to have read.

    It compares each part of the record with its hash; each sample of the corpus with its digest, and packed samples
    with their segments; each recorded batch with the order and the corpus; the chain with the head of the record and
    the head in each checkpoint; and each file of each checkpoint with its hash.

    Returns
    -------
    list of str
        One line for each problem, with its place; empty when there is none.
    """
    corpus, record, identity = Corpus.open(run.corpus), Record.open(run.record), run.manifest()["identity"]
    checkpoints = list_checkpoints(run.checkpoints)
    problems = unreadable(run.checkpoints)
    problems += [line for checkpoint in checkpoints if (line := checkpoint.damage())]
    try:
        samples = corpus.samples()
        actual_hash = corpus_hash(*(samples[name].to_pylist() for name in ("digest", "document", "split")))
        digests = digest_array(samples["digest"])
        altered = _altered_samples(corpus, digests)
        if corpus.packed:
            altered += _altered_segments(Segments(corpus), samples["document"].to_pylist())
    except UserError as damaged_corpus:
        return [*problems, *record.damaged_parts(), str(damaged_corpus)]
    if actual_hash != identity["corpus"]:
        problems.append(
            f"{corpus.path}: the hash of its samples is {actual_hash}, the run was trained on {identity['corpus']}"
        )
    problems += altered
    if damaged := record.damaged_parts():
        return problems + damaged  # the content of an altered part proves nothing
    heads = {checkpoint.step: checkpoint.head for checkpoint in checkpoints}
    skipped = record.skipped()
    for checkpoint in checkpoints:
        expected, claimed = int(np.searchsorted(skipped, checkpoint.step)), checkpoint.manifest.get("skipped", 0)
        if expected != claimed:
            problems.append(
                f"{checkpoint.path}: says {claimed} skipped batches, the record has {expected} at this step"
            )
    try:
        order = open_order(run)
    except UserError as damaged_order:
        return [*problems, str(damaged_order)]
    return problems + _walk(record, order, digests, genesis(identity["corpus"], identity["order"]), heads)


def digest_array(column: pyarrow.ChunkedArray) -> NDArray[np.uint8]:
    """Digests of a table's column as a uint8 array (rows, 16), without a Python object per row."""
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * DIGEST_BYTES :][: len(chunk) * DIGEST_BYTES]
        for chunk in column.chunks
    ]
    return np.concatenate([np.empty(0, np.uint8), *parts]).reshape(-1, DIGEST_BYTES)


def _altered_samples(corpus: Corpus, digests: NDArray[np.uint8]) -> list[str]:
    altered = [i for i in range(corpus.n) if corpus.digest(i) != digests[i].tobytes()]
    return [f"{corpus.path}: sample {i}: its tokens or loss mask do not match its digest" for i in altered]


def _altered_segments(segments: Segments, documents: list[int]) -> list[str]:
    """Compare the segments table with the tokens, and with the documents that the corpus hash covers."""
    table, corpus = segments.table, segments.corpus
    if table.num_rows != segments.n:
        return [f"{corpus.path}: its segments table has {table.num_rows} rows, segments.npy has {segments.n}"]
    digests = table["digest"].to_pylist()
    altered = np.flatnonzero([segments.digest(i) != digests[i] for i in range(segments.n)])
    problems = [f"{corpus.path}: segment {i}: its tokens or loss mask do not match its digest" for i in altered]
    moved = np.flatnonzero(table["sample_id"].to_numpy() != segments.sample_of(np.arange(segments.n)))
    problems += [f"{corpus.path}: segment {i}: is not part of the sample that the segments table names" for i in moved]
    segment_documents, offsets = table["document"].to_pylist(), corpus.segment_offsets.tolist()
    ranges = enumerate(pairwise(offsets))
    wrong = [i for i, (a, b) in ranges if joined_document(segment_documents[a:b]) != documents[i]]
    return problems + [f"{corpus.path}: sample {i}: its document does not match its segments" for i in wrong]


def _walk(record: Record, order: Order, digests: NDArray[np.uint8], head: str, heads: dict[int, str]) -> list[str]:
    """Recompute the chain over all recorded batches, and compare them with order, corpus and checkpoints."""
    problems: list[str] = []
    for start in range(0, record.batches, BATCHES_AT_ONCE):
        stop = min(start + BATCHES_AT_ONCE, record.batches)
        table = record.table(["batch_id", "slot", "sample_id", "digest"], (start, stop))
        problems += _compare(table, start, stop, order, digests)
        ids, read = table["sample_id"].to_numpy(), digest_array(table["digest"])
        for batch_id in range(start, stop):
            problems += _wrong_head(batch_id, head, heads)
            rows = slice((batch_id - start) * order.batch_size, (batch_id - start + 1) * order.batch_size)
            head = link(head, batch_id, ids[rows], read[rows].tobytes())
    problems += _wrong_head(record.batches, head, heads)
    if head != record.head:
        problems.append(f"{record.directory}: its chain ends at {head}, head.json says {record.head}")
    beyond = [step for step in sorted(heads) if step > record.batches]
    return problems + [f"checkpoint step-{s:08d}: the record ends earlier, at step {record.batches}" for s in beyond]


def _compare(table: pyarrow.Table, start: int, stop: int, order: Order, digests: NDArray[np.uint8]) -> list[str]:
    """Compare recorded batches ``start … stop-1`` with the order and the corpus."""
    size = order.batch_size
    if table.num_rows != (stop - start) * size:
        return [f"batches {start}:{stop}: {table.num_rows} rows, expected {(stop - start) * size}"]
    ids, expected = table["sample_id"].to_numpy(), order.batches(start, stop).ravel()
    places = np.arange(start * size, stop * size)
    inside = (ids >= 0) & (ids < len(digests))
    same = inside & (digests[np.where(inside, ids, 0)] == digest_array(table["digest"])).all(axis=1)
    numbered = (table["batch_id"].to_numpy() == places // size) & (table["slot"].to_numpy() == places % size)
    problems = [f"{_place(p, size)}: missing, duplicate or in the wrong place" for p in places[~numbered]]
    wrong = np.flatnonzero(ids != expected)
    problems += [f"{_place(places[i], size)}: read sample {ids[i]}, the order says {expected[i]}" for i in wrong]
    altered = np.flatnonzero(~same)
    problems += [
        f"{_place(places[i], size)}: the tokens read as sample {ids[i]} are not those of the corpus" for i in altered
    ]
    return problems


def _place(position: int, batch_size: int) -> str:
    return f"batch {position // batch_size} slot {position % batch_size}"


def _wrong_head(step: int, head: str, heads: dict[int, str]) -> list[str]:
    if heads.get(step, head) == head:
        return []
    return [f"checkpoint step-{step:08d}: has head {heads[step]}, the record has {head} at this step"]
