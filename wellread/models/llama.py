"""Llama models that start from nothing, as llama2.c makes them: configuration and initial weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from wellread.models.spec import ModelSpec, check_heads

if TYPE_CHECKING:
    from torch import nn

EPSILON = 1e-5
"""Of the norms; llama2.c's C programs have it built in."""
THETA = 10000.0
"""Base of the rotary frequencies; llama2.c's C programs have it built in."""


def configuration(spec: ModelSpec, bos: int, eos: int) -> Any:
    """Configuration of a Llama of this shape: what llama2.c's programs can run, see model.py there.

    Parameters
    ----------
    bos, eos : int
        Ids of the tokens that begin and end a sequence. Generation ends at either: llama2.c's models put the one
        that begins the next sequence after the last word.

    Raises
    ------
    UserError
        When the heads do not divide the width evenly.
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
    """Divide the initial weights of what is added to the residual by sqrt(2 layers), in place.

    All matrices and the embedding are drawn with a standard deviation of 0.02, as transformers does; this is GPT-2's
    scaling (section 2.3 of its paper), which llama2.c takes over. Each layer adds to the residual twice: o_proj
    after attention, down_proj after the inner layer. (llama2.c's code scales w3, the up_proj, in place of the latter;
    its comment says residual projections, and so it is here.)
    """
    import torch

    layers: int = model.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(1 / math.sqrt(2 * layers))
