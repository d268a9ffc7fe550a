"""Matrices, norms and embeddings of each model family, computed from the sizes of a model, with names in transformers.

Names are those of `named_parameters` of the causal language model; the output embedding is `lm_head` in all families.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wellread.models.spec import ModelSpec

HEAD = "lm_head.weight"
"""The output embedding, unless it is tied to that of the input."""


@dataclass(frozen=True)
class Linear:
    """A matrix of one layer: number of inputs and outputs, and whether it has a bias."""

    inputs: int
    outputs: int
    bias: bool = False
    module: str = ""
    """The module of a layer that contains it."""

    @property
    def size(self) -> int:
        """Number of elements of weight and bias."""
        return self.outputs * (self.inputs + self.bias)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Components of a model."""

    linears: dict[str, Linear]
    """Matrices of one layer, by the names of LoRA's target modules."""
    layers: str
    """The list of layers."""
    norms: tuple[str, ...]
    """Vectors with the width of the model in one layer."""
    final_norms: tuple[str, ...]
    embedding: str
    positions: int = 0
    """Rows of the table of learned positions; 0 without one."""
    tied: bool = False
    """Whether the output embedding is the input embedding."""
    head_bias: bool = False

    def sizes(self, spec: ModelSpec) -> dict[str, int]:
        """Number of elements of each parameter, by its name; tied embeddings are one parameter."""
        sizes = {self.embedding: spec.vocab * spec.width}
        if self.positions:
            sizes["transformer.wpe.weight"] = self.positions * spec.width
        for place in (f"{self.layers}.{layer}" for layer in range(spec.layers)):
            for name, linear in self.linears.items():
                matrix = f"{place}.{linear.module}.{name.rpartition('.')[2]}"
                sizes[f"{matrix}.weight"] = linear.inputs * linear.outputs
                if linear.bias:
                    sizes[f"{matrix}.bias"] = linear.outputs
            sizes |= {f"{place}.{norm}": spec.width for norm in self.norms}
        sizes |= dict.fromkeys(self.final_norms, spec.width)
        if not self.tied:
            sizes[HEAD] = spec.vocab * spec.width
        if self.head_bias:
            sizes["lm_head.bias"] = spec.vocab
        return sizes


def _within(module: str, **linears: Linear) -> dict[str, Linear]:
    return {name: replace(linear, module=module) for name, linear in linears.items()}


def _both(*norms: str) -> tuple[str, ...]:
    """Weight and bias of each norm."""
    return tuple(f"{norm}.{part}" for norm in norms for part in ("weight", "bias"))


def gpt_neox(spec: ModelSpec) -> Layout:
    """GPT-NeoX, such as Pythia."""
    h, inner, bias = spec.width, spec.intermediate, spec.attention_bias is not False
    attention = _within("attention", query_key_value=Linear(h, 3 * h, bias), dense=Linear(h, h, bias))
    mlp = _within("mlp", dense_h_to_4h=Linear(h, inner, True), dense_4h_to_h=Linear(inner, h, True))
    return Layout(
        linears=attention | mlp,
        layers="gpt_neox.layers",
        norms=_both("input_layernorm", "post_attention_layernorm"),
        final_norms=_both("gpt_neox.final_layer_norm"),
        embedding="gpt_neox.embed_in.weight",
        tied=bool(spec.tied),
    )


def llama(spec: ModelSpec, *, bias_in: bool = False) -> Layout:
    """Llama and Mistral; with `bias_in`, queries, keys and values have a bias."""
    h, inner = spec.width, spec.intermediate
    head = spec.head_size or h // spec.heads
    query, keys = spec.heads * head, (spec.kv_heads or spec.heads) * head
    bias = bool(spec.attention_bias)
    attention = _within(
        "self_attn",
        q_proj=Linear(h, query, bias or bias_in),
        k_proj=Linear(h, keys, bias or bias_in),
        v_proj=Linear(h, keys, bias or bias_in),
        o_proj=Linear(query, h, bias),
    )
    mlp = _within("mlp", gate_proj=Linear(h, inner), up_proj=Linear(h, inner), down_proj=Linear(inner, h))
    return Layout(
        linears=attention | mlp,
        layers="model.layers",
        norms=("input_layernorm.weight", "post_attention_layernorm.weight"),
        final_norms=("model.norm.weight",),
        embedding="model.embed_tokens.weight",
        tied=bool(spec.tied),
    )


def qwen2(spec: ModelSpec) -> Layout:
    """Qwen 2: a Llama in which queries, keys and values have a bias."""
    return llama(spec, bias_in=True)


def gptj(spec: ModelSpec) -> Layout:
    """GPT-J."""
    h, inner = spec.width, spec.intermediate
    attention = {name: Linear(h, h) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    mlp = _within("mlp", fc_in=Linear(h, inner, True), fc_out=Linear(inner, h, True))
    return Layout(
        linears=_within("attn", **attention) | mlp,
        layers="transformer.h",
        norms=_both("ln_1"),
        final_norms=_both("transformer.ln_f"),
        embedding="transformer.wte.weight",
        tied=bool(spec.tied),
        head_bias=True,
    )


def gpt_neo(spec: ModelSpec) -> Layout:
    """GPT-Neo: a GPT-2 with other matrices."""
    h, inner = spec.width, spec.intermediate
    attention = {name: Linear(h, h) for name in ("q_proj", "k_proj", "v_proj")} | {"out_proj": Linear(h, h, True)}
    mlp = _within("mlp", c_fc=Linear(h, inner, True), c_proj=Linear(inner, h, True))
    return replace(gpt2(spec), linears=_within("attn.attention", **attention) | mlp)


def gpt2(spec: ModelSpec) -> Layout:
    """GPT-2."""
    h, inner = spec.width, spec.intermediate
    linears = {
        "c_attn": Linear(h, 3 * h, True, "attn"),
        "attn.c_proj": Linear(h, h, True, "attn"),
        "c_fc": Linear(h, inner, True, "mlp"),
        "mlp.c_proj": Linear(inner, h, True, "mlp"),
    }
    return Layout(
        linears=linears,
        layers="transformer.h",
        norms=_both("ln_1", "ln_2"),
        final_norms=_both("transformer.ln_f"),
        embedding="transformer.wte.weight",
        positions=spec.positions,
        tied=spec.tied is not False,
    )


def mpt(spec: ModelSpec) -> Layout:
    """MPT."""
    h = spec.width  # its inner width is always four times the width
    attention = _within("attn", Wqkv=Linear(h, 3 * h), out_proj=Linear(h, h))
    return Layout(
        linears=attention | _within("ffn", up_proj=Linear(h, 4 * h), down_proj=Linear(4 * h, h)),
        layers="transformer.blocks",
        norms=("norm_1.weight", "norm_2.weight"),
        final_norms=("transformer.norm_f.weight",),
        embedding="transformer.wte.weight",
        tied=spec.tied is not False,
    )
