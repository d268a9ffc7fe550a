"""Verify a run: recompute its record's chain, and compare it with corpus, order and every checkpoint."""

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

    Compared are: each part of the record with its hash; each sample of the corpus with its digest, and what
    packed ones are made of; each recorded
    batch with the order and the corpus; the chain with the record's head and the head that each checkpoint names;
    each file of each checkpoint with its hash.

    Returns
    -------
    list of str
        One line for each thing that does not hold, with its place; empty when all holds.
    """
    corpus, record, identity = Corpus.open(run.corpus), Record.open(run.record), run.manifest()["identity"]
    checkpoints = list_checkpoints(run.checkpoints)
    problems = unreadable(run.checkpoints)
    problems += [line for checkpoint in checkpoints if (line := checkpoint.damage())]
    samples = corpus.samples()
    found = corpus_hash(*(samples[name].to_pylist() for name in ("digest", "document", "split")))
    if found != identity["corpus"]:
        problems.append(f"{corpus.path}: its samples hash to {found}, the run was trained on {identity['corpus']}")
    digests = digest_array(samples["digest"])
    problems += _altered_samples(corpus, digests)
    if corpus.packed:
        problems += _altered_segments(Segments(corpus), samples["document"].to_pylist())
    if damaged := record.damaged_parts():
        return problems + damaged  # what an altered part says is no evidence of anything
    heads = {checkpoint.step: checkpoint.head for checkpoint in checkpoints}
    skipped = record.skipped()
    for checkpoint in checkpoints:
        known, found = int(np.searchsorted(skipped, checkpoint.step)), checkpoint.manifest.get("skipped", 0)
        if known != found:
            problems.append(f"{checkpoint.path}: says {found} skipped batches, the record has {known} at this step")
    try:
        order = open_order(run)
    except UserError as damaged_order:
        return [*problems, str(damaged_order)]
    return problems + _walk(record, order, digests, genesis(identity["corpus"], identity["order"]), heads)


def digest_array(column: pyarrow.ChunkedArray) -> NDArray[np.uint8]:
    """Digests of a table's column as (rows, 16) bytes, without a Python object per row."""
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * DIGEST_BYTES :][: len(chunk) * DIGEST_BYTES]
        for chunk in column.chunks
    ]
    return np.concatenate([np.empty(0, np.uint8), *parts]).reshape(-1, DIGEST_BYTES)


def _altered_samples(corpus: Corpus, digests: NDArray[np.uint8]) -> list[str]:
    altered = [i for i in range(corpus.n) if corpus.digest(i) != digests[i].tobytes()]
    return [f"{corpus.path}: sample {i}: its tokens or loss mask are not those of its digest" for i in altered]


def _altered_segments(segments: Segments, documents: list[int]) -> list[str]:
    """Compare the table of segments with tokens and with the documents that the corpus hash covers."""
    table, corpus = segments.table, segments.corpus
    if table.num_rows != segments.n:
        return [f"{corpus.path}: its table of segments has {table.num_rows} rows, segments.npy {segments.n}"]
    digests = table["digest"].to_pylist()
    altered = np.flatnonzero([segments.digest(i) != digests[i] for i in range(segments.n)])
    problems = [f"{corpus.path}: segment {i}: its tokens or loss mask are not those of its digest" for i in altered]
    moved = np.flatnonzero(table["sample_id"].to_numpy() != segments.sample_of(np.arange(segments.n)))
    problems += [f"{corpus.path}: segment {i}: is not part of the sample that its table names" for i in moved]
    own, offsets = table["document"].to_pylist(), corpus.segment_offsets.tolist()
    wrong = [i for i, (a, b) in enumerate(pairwise(offsets)) if joined_document(own[a:b]) != documents[i]]
    return problems + [f"{corpus.path}: sample {i}: its document is not that of its segments" for i in wrong]


def _walk(record: Record, order: Order, digests: NDArray[np.uint8], head: str, heads: dict[int, str]) -> list[str]:
    """Follow the chain over all recorded batches."""
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
    return problems + [f"checkpoint step-{s:08d}: the record ends before it, at step {record.batches}" for s in beyond]


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
    problems = [f"{_place(p, size)}: missing, doubled or out of turn" for p in places[~numbered]]
    wrong = np.flatnonzero(ids != expected)
    problems += [f"{_place(places[i], size)}: read sample {ids[i]}, the order says {expected[i]}" for i in wrong]
    altered = np.flatnonzero(~same)
    problems += [
        f"{_place(places[i], size)}: what entered forward as sample {ids[i]} is not that sample of the corpus"
        for i in altered
    ]
    return problems


def _place(position: int, batch_size: int) -> str:
    return f"batch {position // batch_size} slot {position % batch_size}"


def _wrong_head(step: int, head: str, heads: dict[int, str]) -> list[str]:
    if heads.get(step, head) == head:
        return []
    return [f"checkpoint step-{step:08d}: names head {heads[step]}, the record has {head} at this step"]
