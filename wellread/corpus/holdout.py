"""The sealed holdout: source documents that are never trained on."""

from __future__ import annotations

import hashlib


def document_id(text: str) -> int:
    """Id of a source document, int64: a hash of its exact text, so exact duplicates have the same id.

    The first 8 bytes of blake2b. The probability that two of 10 million different documents share an id is 3e-6.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def is_sealed(document: int, holdout: float, seed: int) -> bool:
    """Whether `document` is sealed: a pseudorandom draw with probability `holdout`, equal for all copies of a document.

    The draw depends only on the document and `seed`, not on the order of the file, so it needs no state and
    a renamed or reshuffled source keeps its holdout.
    """
    return is_drawn(document, holdout, f"{seed}")


def is_drawn(document: int, share: float, key: str) -> bool:
    """Whether `document` is in a pseudorandom `share` of all documents; draws with different keys are independent."""
    draw = hashlib.blake2b(document.to_bytes(8, "little", signed=True), digest_size=8, key=key.encode()).digest()
    return int.from_bytes(draw, "little") < share * 2**64
