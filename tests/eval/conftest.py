"""Synthetic token columns, which need no model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.small_evaluations import tokens_with

from eval import kept
from wellread.tokens import Tokens


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Replaces the model: sample i has mean -i, plus 100 at step s if it was read before s. Returns the calls."""
    calls: list[tuple[int, list[int]]] = []

    def run_model(checkpoint: Any, corpus: Any, ids: Any, how: Any, progress: Any) -> Iterator[Tokens]:
        calls.append((checkpoint.step, ids.tolist()))
        progress(ids.size)
        yield tokens_with(ids, 100 * (ids < 2 * checkpoint.step) - ids)

    monkeypatch.setattr(kept, "_run_model", run_model)
    return calls
