"""Configuration of GPT-NeoX models with random weights."""

from __future__ import annotations

from typing import Any

from wellread.models.spec import ModelSpec


def configuration(spec: ModelSpec, bos: int, eos: int) -> Any:
    """Configuration of a GPT-NeoX model with these sizes.

    Parameters
    ----------
    bos, eos : int
        Ids of the tokens that begin and end a sequence.
    """
    from transformers import GPTNeoXConfig

    return GPTNeoXConfig(
        vocab_size=spec.vocab,
        hidden_size=spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        intermediate_size=spec.intermediate,
        max_position_embeddings=spec.positions,
        bos_token_id=bos,
        eos_token_id=eos,
    )
