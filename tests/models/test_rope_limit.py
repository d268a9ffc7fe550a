"""Models that choose rotary factors by the longest text of a batch: no loss may depend on the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from eval.membership.compared import positions_of
from wellread.config import RunConfig
from wellread.errors import UserError
from wellread.models.configs import rope_limit
from wellread.models.continuations import positions
from wellread.models.loss import sample_losses
from wellread.models.registry import find
from wellread.recipes.registry import resolve

SIZES: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
FACTORS: dict[str, Any] = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16, "factor": 4.0} | FACTORS
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}


def model(**rope: Any) -> Any:
    torch.manual_seed(0)
    result: Any = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, rope_parameters=rope)).eval()
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return result


def losses(causal_lm: Any, width: int) -> float:
    """Loss of a text of 12 tokens, padded to `width`."""
    tokens, targets = torch.zeros((1, width), dtype=torch.int64), torch.zeros((1, width), dtype=torch.bool)
    tokens[0, :12], targets[0, 1:12] = torch.arange(12) * 7 % 101, True
    with torch.no_grad():
        return float(sample_losses(causal_lm, tokens, targets)[0])


def test_a_loss_does_not_depend_on_the_longest_sample_of_its_batch() -> None:
    causal_lm = model(**LONGROPE)
    assert losses(causal_lm, 12) == pytest.approx(losses(causal_lm, 16), rel=1e-5)
    with pytest.raises(UserError, match=r"^samples of 48 tokens: .* than 16 tokens, .* choose samples of at most 16$"):
        losses(causal_lm, 48)
    causal_lm = model(**DYNAMIC)  # beyond 64, which is more than the model reads
    assert losses(causal_lm, 12) == pytest.approx(losses(causal_lm, 64), rel=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_parameters": LONGROPE}, 16),
        ({"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 16} | FACTORS}, 16),
        ({"original_max_position_embeddings": 8, "rope_scaling": {"type": "su"} | FACTORS}, 8),
        ({"original_max_position_embeddings": 8, "rope_scaling": {"type": "yarn"} | FACTORS}, 8),  # Phi3's old name
        ({"rope_parameters": {"full_attention": LONGROPE, "sliding_attention": {"rope_type": "default"}}}, 16),
        ({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 16}}, None),
        ({"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 16}}, None),
        ({"rope_parameters": DYNAMIC}, None),
        ({"rope_scaling": None, "original_max_position_embeddings": 8}, None),
        ({}, None),
    ],
)
def test_the_limit_in_a_configuration(config: dict[str, Any], expected: int | None) -> None:
    assert rope_limit(config) == expected


@pytest.mark.parametrize("value", ["16", 16.5, True, 0, [16]])
def test_a_limit_that_is_not_a_number_of_tokens(value: Any) -> None:
    with pytest.raises(UserError, match=r"^there: original_max_position_embeddings .*: expected a whole number"):
        rope_limit({"rope_parameters": LONGROPE | {"original_max_position_embeddings": value}}, "there")


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_longer_samples_are_refused_and_longer_texts_truncated(kind: str, tmp_path: Path) -> None:
    outer = {"original_max_position_embeddings": 16} if kind == "phi3" else {}
    rope = {key: value for key, value in LONGROPE.items() if key not in outer and (key != "factor" or not outer)}
    (Phi3Config if kind == "phi3" else LlamaConfig)(**SIZES, rope_parameters=rope, **outer).save_pretrained(tmp_path)
    spec = find(str(tmp_path))
    assert (spec.positions, spec.rope_limit) == (64, 16)
    assert resolve(RunConfig.of(), spec).data.seq_len == 16
    for config in (RunConfig.of(seq_len=17), RunConfig.of(seq_len=17, init="fresh")):
        with pytest.raises(UserError, match=r"^--seq_len 17: .* longer than 16 tokens, .*; choose at most 16$"):
            resolve(config, spec)
    assert positions_of(tmp_path, 2048) == 16


def test_dynamic_factors_are_those_beyond_all_positions(tmp_path: Path) -> None:
    LlamaConfig(**SIZES, rope_parameters=DYNAMIC).save_pretrained(tmp_path)
    assert positions_of(tmp_path, 2048) == positions(LlamaConfig(**SIZES)) == 64
    with pytest.raises(UserError, match=r"--seq_len 65: .* has 64 positions; choose at most that"):
        resolve(RunConfig.of(seq_len=65), find(str(tmp_path)))
