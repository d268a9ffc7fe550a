"""The sealed holdout: one draw per document, equal for all copies and independent of the order of the file."""

import numpy as np
import pytest
from scipy import stats

from wellread.corpus.holdout import document_id, is_sealed


def test_ids_never_change() -> None:
    """First 8 bytes of blake2b, little-endian, signed; `hashlib.blake2b(b"", digest_size=8)` is e4a6a0577479b2b4."""
    assert document_id("") == int.from_bytes(bytes.fromhex("e4a6a0577479b2b4"), "little", signed=True)
    assert document_id("a") == document_id("a")
    assert document_id("a") != document_id("a ")
    assert -(2**63) <= document_id("ä") < 2**63


def test_the_draw_never_changes() -> None:
    sealed = [i for i in range(40) if is_sealed(document_id(str(i)), 0.25, 0)]
    assert sealed == [1, 5, 12, 23, 27, 28, 29, 32, 33, 34, 35, 37]


@pytest.mark.parametrize("holdout", [0.01, 0.25, 0.5, 0.9])
def test_the_share_is_the_holdout(holdout: float) -> None:
    n = 20_000
    sealed = sum(is_sealed(document_id(f"row {i}"), holdout, 0) for i in range(n))
    assert stats.binomtest(sealed, n, holdout).pvalue > 1e-3


def test_nothing_is_sealed_without_holdout() -> None:
    assert not any(is_sealed(document_id(str(i)), 0.0, 0) for i in range(1000))


def test_seeds_draw_independently() -> None:
    ids = [document_id(str(i)) for i in range(20_000)]
    a, b = (np.array([is_sealed(i, 0.25, seed) for i in ids]) for seed in (0, 1))
    table = [[int((x & y).sum()) for y in (b, ~b)] for x in (a, ~a)]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_a_larger_holdout_contains_the_smaller() -> None:
    ids = [document_id(str(i)) for i in range(2000)]
    small, large = ({i for i in ids if is_sealed(i, share, 3)} for share in (0.1, 0.25))
    assert small < large
