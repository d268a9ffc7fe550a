"""Synthetic scores, which need no model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eval import kept
from wellread.scores import Scores


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Replaces the model: sample i has mean -i, plus 100 at step s if it was read before s. Returns the calls."""
    calls: list[tuple[int, list[int]]] = []

    def run_model(checkpoint: Any, corpus: Any, ids: Any, device: Any, progress: Any) -> Scores:
        calls.append((checkpoint.step, ids.tolist()))
        progress(ids.size)
        was_read = ids < 2 * checkpoint.step
        n = np.full(ids.size, 2)
        return Scores(sample_id=ids, n_targets=n, log_likelihood=2.0 * (100 * was_read - ids))

    monkeypatch.setattr(kept, "_run_model", run_model)
    return calls
