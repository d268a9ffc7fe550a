"""The hash chain of a record."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray


def genesis(corpus_hash: str, order: dict[str, Any]) -> str:
    """Head of an empty record: sha256 of corpus hash and order, in hex, so that the chain is valid only for these."""
    return hashlib.sha256(json.dumps([corpus_hash, order], sort_keys=True).encode()).hexdigest()


def link(head: str, batch_id: int, sample_ids: NDArray[np.int64], digests: bytes) -> str:
    """Next head of the chain: sha256(head | batch_id | sample ids | digests), integers as little-endian int64."""
    state = hashlib.sha256(bytes.fromhex(head) + int(batch_id).to_bytes(8, "little"))
    state.update(np.ascontiguousarray(sample_ids, dtype="<i8").data)
    state.update(digests)
    return state.hexdigest()
