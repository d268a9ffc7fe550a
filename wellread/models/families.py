"""Model families: everything that differs from one to the next, an entry each. Imports neither torch nor transformers.

A family is named as `model_type` in config.json. A model of a family without entry can still be trained: its memory is
not predicted, its loss comes from whole logits, samples are not packed, and LoRA needs names of matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wellread.models import gpt_neox, layouts, llama
from wellread.models.layouts import Layout
from wellread.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

Compute = Literal["bf16", "autocast", "fp32"]
"""bf16: weights and activations in bf16 (DeepSpeed); autocast: fp32 weights, products in bf16 (plain engine)."""


@dataclass(frozen=True)
class Saved:
    """Bytes that one layer keeps for its backward pass, per token, as multiples of the model's widths."""

    width: float
    intermediate: float
    keys: float = 0
    """Of the width of keys and values, where they have fewer heads than the queries."""
    scores: float = 0
    """Of heads times sequence length: attention that writes its matrix of scores (eager); 0 for sdpa."""


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """How a model of the family starts from nothing."""

    configuration: Callable[[ModelSpec, int, int], Any]
    """Its transformers configuration, from sizes and the ids of the tokens that begin and end a sequence."""
    adjust: Callable[[nn.Module], None] | None = None
    """Changes the initial weights that transformers draws, in place."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is known of an architecture family."""

    layout: Callable[[ModelSpec], Layout]
    saved: dict[Compute, Saved]
    """What a layer keeps for backward (`wellread.planning.parameters.layer_activations` says how it was found)."""
    plain_head: bool = False
    """The logits are the output embedding applied to the last hidden state, and nothing else."""
    packed: bool = False
    """Segments of a packed sample are proven not to see one another: tests compare losses and gradients."""
    lora: tuple[str, ...]
    """Matrices with an adapter where none are named: those that peft takes (tests compare them)."""
    transposed: bool = False
    """Its matrices are stored as (inputs, outputs)."""
    fresh: Fresh | None = None
    """None: a model of the family is not started from nothing."""

    @property
    def sdpa(self) -> bool:
        """Whether transformers has the family's attention in torch's fused form, linear in the sequence length."""
        return not self.saved["bf16"].scores


def _saved(bf16: tuple[float, ...], autocast: tuple[float, ...], fp32: tuple[float, ...]) -> dict[Compute, Saved]:
    return {"bf16": Saved(*bf16), "autocast": Saved(*autocast), "fp32": Saved(*fp32)}


_LLAMA_SAVED = _saved((20, 8, 4), (30, 8, 4), (32, 16, 8))
_QUERIES_AND_VALUES = ("q_proj", "v_proj")

FAMILIES: dict[str, Family] = {
    "gpt_neox": Family(
        layout=layouts.gpt_neox,
        saved=_saved((20, 4), (22, 4), (40, 8)),
        plain_head=True,
        packed=True,
        lora=("query_key_value",),
        fresh=Fresh(configuration=gpt_neox.configuration),
    ),
    "llama": Family(
        layout=layouts.llama,
        saved=_LLAMA_SAVED,
        plain_head=True,
        packed=True,
        lora=_QUERIES_AND_VALUES,
        fresh=Fresh(configuration=llama.configuration, adjust=llama.scale_residual_projections),
    ),
    "mistral": Family(layout=layouts.llama, saved=_LLAMA_SAVED, lora=_QUERIES_AND_VALUES),
    "qwen2": Family(layout=layouts.qwen2, saved=_LLAMA_SAVED, lora=_QUERIES_AND_VALUES),
    "gptj": Family(
        layout=layouts.gptj,
        saved=_saved((16.25, 10, 0, 6), (20.25, 10, 0, 6), (24.5, 20, 0, 4)),
        plain_head=True,
        packed=True,
        lora=_QUERIES_AND_VALUES,
    ),
    "gpt_neo": Family(
        layout=layouts.gpt_neo,
        saved=_saved((20, 10, 0, 6), (24, 10, 0, 6), (32, 20, 0, 4)),
        plain_head=True,
        packed=True,
        lora=_QUERIES_AND_VALUES,
    ),
    "gpt2": Family(
        layout=layouts.gpt2,
        saved=_saved((16, 10), (20, 10), (32, 20)),
        lora=("c_attn",),
        transposed=True,
    ),
    "mpt": Family(
        layout=layouts.mpt,
        saved=_saved((16, 4, 0, 6), (20, 4, 0, 6), (32, 8, 0, 4)),
        plain_head=True,
        packed=True,
        lora=("Wqkv",),
    ),
}
"""Every family of which something is known; a new one is one entry."""

PACKED_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.packed)
FRESH_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.fresh)

KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "width": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "vocab": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len"),
}
"""What config.json calls the same number, in one family or another."""
OPTIONAL_KEYS = {
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "tied": "tie_word_embeddings",
    "attention_bias": "attention_bias",
}
INNER_KEYS = ("intermediate_size", "n_inner", "ffn_dim")
"""The inner width; without any, or null: four times the width."""
