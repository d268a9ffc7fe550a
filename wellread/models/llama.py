"""Configuration and initial weights of Llama models with random weights, as in llama2.c."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from wellread.models.spec import ModelSpec, check_heads

if TYPE_CHECKING:
    from torch import nn

EPSILON = 1e-5
"""Epsilon of the norms; a constant in llama2.c's C programs."""
THETA = 10000.0
"""Base of the rotary frequencies; a constant in llama2.c's C programs."""


def configuration(spec: ModelSpec, bos: int, eos: int) -> Any:
    """Configuration of a Llama with these sizes that llama2.c's programs can run (source: its model.py).

    Parameters
    ----------
    bos, eos : int
        Ids of the tokens that begin and end a sequence. Generation stops at both: llama2.c's models end a text with the
        token that begins the next sequence.

    Raises
    ------
    UserError
        When the width is not divisible by the number of heads.
    """
    from transformers import LlamaConfig

    check_heads(f"--model {spec.name}", spec.width, spec.heads, spec.kv_heads or spec.heads)
    return LlamaConfig(
        vocab_size=spec.vocab,
        hidden_size=spec.width,
        intermediate_size=spec.intermediate,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads or spec.heads,
        max_position_embeddings=spec.positions,
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=bool(spec.tied),
        bos_token_id=bos,
        eos_token_id=eos if bos == eos else [bos, eos],
    )


def scale_residual_projections(model: nn.Module) -> None:
    """Divide the initial weights of projections to the residual stream by sqrt(2 layers), in place.

    transformers initializes all matrices and the embedding with a standard deviation of 0.02. The scaling is GPT-2's
    (section 2.3 of its paper), also used in llama2.c. Each layer adds to the residual stream twice: o_proj after
    attention, down_proj after the inner layer. (The code of llama2.c scales w3, the up_proj, instead of down_proj; its
    comment says "residual projections", which is followed here.)
    """
    import torch

    layers: int = model.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(1 / math.sqrt(2 * layers))
