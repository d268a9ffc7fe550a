"""One model of each family, small enough to compute in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 101

SIZES: dict[str, dict[str, Any]] = {
    "gpt_neox": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "llama": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "window_size": 4, "max_position_embeddings": 64,
    },
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},  # its head is not a plain matrix: full logits
}  # fmt: skip

LIKE_LLAMA: dict[str, dict[str, Any]] = {
    "mistral": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64, "sliding_window": None,
    },
    "qwen2": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
}  # fmt: skip
"""Families whose layers are those of Llama: only few tests need them as well."""


def tiny(family: str) -> nn.Module:
    """A model with random parameters, biases too: with biases of zero a test would not notice a missing one."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=VOCAB, bos_token_id=0, eos_token_id=0, **(SIZES | LIKE_LLAMA)[family]
    )
    model: nn.Module = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model
