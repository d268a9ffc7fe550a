"""Digests of samples, the hash of a corpus, and the key of a corpus's settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16
HASH_BEGINS = b"wellread corpus 1\n"


def digest(tokens: NDArray[Any], targets: NDArray[Any], starts: Sequence[int] | NDArray[np.int64] = (0,)) -> bytes:
    """Digest of one sample: blake2b-128 of its tokens (little-endian uint32) followed by its loss mask (one byte each).

    For a sample with several segments it also covers the first token of each segment, with ``person=b"segments"``.

    Parameters
    ----------
    tokens : (length,) integers
    targets : (length,) bool, True where the token carries loss
    starts : (segments,) integers
        First token of each segment; the first is 0.
    """
    content = np.ascontiguousarray(tokens, dtype="<u4").data
    person = b"segments" if len(starts) > 1 else b""
    state = hashlib.blake2b(content, digest_size=DIGEST_BYTES, person=person)
    state.update(np.ascontiguousarray(targets, dtype=np.uint8).data)
    if len(starts) > 1:
        state.update(np.ascontiguousarray(starts, dtype="<u4").data)
    return state.digest()


def corpus_hash(digests: Iterable[bytes], documents: Iterable[int], splits: Iterable[str]) -> str:
    """Hash of a corpus: sha256 over each sample's digest, document (little-endian int64) and split (``t`` or ``s``)."""
    state = hashlib.sha256(HASH_BEGINS)
    for value, document, split in zip(digests, documents, splits, strict=True):
        state.update(value + document.to_bytes(8, "little", signed=True) + split[:1].encode())
    return state.hexdigest()


def corpus_key(settings: dict[str, Any]) -> str:
    """Short hash of the settings that a corpus is compiled from; equal settings give equal corpora."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
