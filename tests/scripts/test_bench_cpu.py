"""The bench against llama2.c: equal losses of its model, and what the last line says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.programs import missing
from support.small_models import tiny

from bench.cpu import Bench, llama2c_model, of_ranks, processor, threads, untuned
from wellread.models.llama import EPSILON
from wellread.models.loss import sample_losses

NOTHING: Any = None


def rates(*, compiled: bool = True) -> dict[str, list[float]]:
    rows = {"llama2.c, fp32": [10.0, 12.0], "llama2.c, bf16": [20.0, 22.0], "wellread": [30.0, 30.0]}
    return rows | ({"llama2.c, bf16 compiled": [15.0, 25.0]} if compiled else {})


def test_the_result_is_of_medians_and_of_the_compiled_row() -> None:
    bench = Bench(NOTHING, NOTHING, NOTHING, NOTHING, shipped=rates(), equal=rates(compiled=False))
    result = bench.result()
    assert list(result) == [
        "wellread", "llama2c", "ratio", "same_environment", "processor", "isa", "goal", "reached",
    ]  # fmt: skip
    assert (result["wellread"], result["llama2c"]) == (30, 20)
    assert result["ratio"] == 1.6  # median of 30 / 15 and 30 / 25
    assert result["same_environment"] == pytest.approx((30 / 20 + 30 / 22) / 2, abs=5e-4)  # not compiled: the fastest
    assert (result["goal"], result["reached"]) == (1.3, True)
    assert (result["processor"], result["isa"]) == processor()


def test_neither_side_gets_variables_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LD_PRELOAD", "OMP_WAIT_POLICY", "MALLOC_TOP_PAD_", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.setenv(name, "x")
    assert {name for name in untuned() if name.startswith(("OMP_", "MALLOC_", "LD_", "ONEDNN_"))} == {"OMP_NUM_THREADS"}
    assert {"OMP_NUM_THREADS", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"} <= set(of_ranks())
    assert (untuned()["OMP_NUM_THREADS"], untuned(2)["OMP_NUM_THREADS"]) == (str(threads()), "1")


@pytest.mark.shared
def test_losses_of_llama2cs_model_are_those_of_the_same_weights(shared: Path, tmp_path: Path) -> None:
    checkout = shared.parent / "peers" / "llama2c"
    if not (checkout / "model.py").is_file():
        missing(f"{checkout} has no model.py of llama2.c")
    model: Any = tiny("llama")
    model.config.rms_norm_eps = EPSILON
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path, dtype=torch.float32).train()
    other = llama2c_model(checkout, tmp_path)
    tokens = torch.randint(1, 101, (3, 24), generator=torch.Generator().manual_seed(0))
    targets = torch.ones_like(tokens, dtype=torch.bool)
    targets[:, 0] = False
    other(tokens[:, :-1], tokens[:, 1:].contiguous())
    torch.testing.assert_close(other.last_loss, sample_losses(model, tokens, targets).sum() / (3 * 23))
