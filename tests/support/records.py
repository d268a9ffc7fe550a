"""A small record: five batches of four samples, whose digests and losses follow from the sample ids."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from wellread.order.permutation import Order
from wellread.record.chain import genesis
from wellread.record.writer import RecordedBatch, RecordWriter

ORDER = Order(kind="shuffle", seed=3, n=10, batch_size=4)
START = genesis("corpus", ORDER.identity())


def recorded_batch(batch_id: int, *, digest: bytes = b"d") -> RecordedBatch:
    """A batch of `ORDER`, with losses and digests that follow from the sample ids."""
    ids = ORDER.batch(batch_id)
    return RecordedBatch(
        batch_id=batch_id,
        sample_ids=ids,
        epochs=np.array([(batch_id * 4 + slot) // 10 for slot in range(4)]),
        n_targets=ids + 1,
        losses=(ids / 8).astype(np.float32),
        digests=[hashlib.blake2b(digest + bytes([i]), digest_size=16).digest() for i in ids.tolist()],
    )


def write_record(directory: Path, *, flushes: tuple[int, ...] = (3, 5)) -> RecordWriter:
    """Write batches up to the last of `flushes`, each of which ends a part."""
    writer = RecordWriter(directory, start=START)
    for batch_id in range(flushes[-1]):
        writer.append(recorded_batch(batch_id))
        if batch_id + 1 in flushes:
            writer.flush()
    return writer
