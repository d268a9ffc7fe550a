"""Model families: everything that differs between families. Imports neither torch nor transformers.

The name of a family is the `model_type` in config.json. Models of other families can also be trained, but their memory
is not estimated, their loss needs the logits of all tokens, samples cannot be packed, and LoRA needs names of matrices.
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
"""bf16: weights and activations in bf16 (DeepSpeed); autocast: fp32 weights, matrix products in bf16 (torch engine)."""


@dataclass(frozen=True)
class Saved:
    """Bytes per token that one layer saves for its backward pass, as multiples of the model's widths."""

    width: float
    intermediate: float
    keys: float = 0
    """Multiple of the width of keys and values, if they have fewer heads than the queries."""
    heads: float = 0
    """Bytes per head, for what attention adds to queries, keys, values and its output."""


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """How a model of the family is created with random weights."""

    configuration: Callable[[ModelSpec, int, int], Any]
    """Function from sizes and the ids of the BOS and EOS tokens to a transformers configuration."""
    adjust: Callable[[nn.Module], None] | None = None
    """Modifies the initial weights of transformers, in place."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Properties of an architecture family."""

    layout: Callable[[ModelSpec], Layout]
    saved: dict[Compute, Saved]
    """Memory that a layer saves for backward (measured as `wellread.planning.parameters.layer_activations` says)."""
    plain_head: bool = False
    """Whether the logits are exactly the output embedding applied to the last hidden state."""
    packed: bool = False
    """Whether packing is supported: tests show that segments of a packed sample do not attend to each other."""
    masks: float = 1
    """Masks of packed samples that a forward pass has: that of all families, and what layers derive from it."""
    varlen: bool = False
    """Whether variable-length attention is supported: its layers pass the bounds of segments on to attention."""
    blocked: float | None = None
    """What a layer saves more per token when attention runs in blocks in bf16 on a CPU (`wellread.models.blocked`), in
    addition to probabilities, as a multiple of the width. None: it never runs in blocks."""
    lora: tuple[str, ...]
    """Default matrices for LoRA: the same as in peft (tests compare them)."""
    transposed: bool = False
    """Whether its matrices are stored as (inputs, outputs)."""
    fresh: Fresh | None = None
    """None if models with random weights are not supported."""


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
        varlen=True,
        blocked=-2,
        lora=("query_key_value",),
        fresh=Fresh(configuration=gpt_neox.configuration),
    ),
    "llama": Family(
        layout=layouts.llama,
        saved=_LLAMA_SAVED,
        plain_head=True,
        packed=True,
        varlen=True,
        blocked=0,
        lora=_QUERIES_AND_VALUES,
        fresh=Fresh(configuration=llama.configuration, adjust=llama.scale_residual_projections),
    ),
    "mistral": Family(layout=layouts.llama, saved=_LLAMA_SAVED, lora=_QUERIES_AND_VALUES),
    "qwen2": Family(layout=layouts.qwen2, saved=_LLAMA_SAVED, lora=_QUERIES_AND_VALUES),
    "gptj": Family(
        layout=layouts.gptj,
        saved=_saved((12.25, 10), (20.25, 10), (24.5, 20)),
        plain_head=True,
        packed=True,
        lora=_QUERIES_AND_VALUES,
    ),
    "gpt_neo": Family(
        layout=layouts.gpt_neo,
        saved=_saved((16, 10), (24, 10), (32, 20)),
        plain_head=True,
        packed=True,
        masks=2,
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
        saved=_saved((18, 4, 0, 64), (22, 4, 0, 64), (36, 8, 0, 128)),
        plain_head=True,
        packed=True,
        masks=2.5,
        lora=("Wqkv",),
    ),
}
"""All known families; to support a new one, add an entry."""

BLOCKED_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.blocked is not None)
VARLEN_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.varlen)
PACKED_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.packed)
FRESH_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.fresh)

KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "width": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "vocab": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len"),
}
"""Field of ModelSpec -> its names in config.json, which differ between families."""
OPTIONAL_KEYS = {
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "tied": "tie_word_embeddings",
    "attention_bias": "attention_bias",
}
INNER_KEYS = ("intermediate_size", "n_inner", "ffn_dim")
"""Names of the inner width in config.json; if none is set, it is four times the width."""
