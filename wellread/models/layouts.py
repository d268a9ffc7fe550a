"""Matrices, norms and embeddings of each model family, computed from the sizes of a model."""

from __future__ import annotations

from dataclasses import dataclass

from wellread.models.spec import ModelSpec


@dataclass(frozen=True)
class Linear:
    """A matrix of one layer: number of inputs and outputs, and whether it has a bias."""

    inputs: int
    outputs: int
    bias: bool = False

    @property
    def size(self) -> int:
        """Number of elements of weight and bias."""
        return self.outputs * (self.inputs + self.bias)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Components of a model."""

    linears: dict[str, Linear]
    """Matrices of one layer, by the names of LoRA's target modules."""
    norms: int
    """Number of vectors with the width of the model in one layer."""
    final_norms: int
    positions: int = 0
    """Rows of the table of learned positions; 0 without one."""
    tied: bool = False
    """Whether the output embedding is the input embedding."""
    head_bias: bool = False


def gpt_neox(spec: ModelSpec) -> Layout:
    """GPT-NeoX, such as Pythia."""
    h, inner, bias = spec.width, spec.intermediate, spec.attention_bias is not False
    linears = {
        "query_key_value": Linear(h, 3 * h, bias),
        "dense": Linear(h, h, bias),
        "dense_h_to_4h": Linear(h, inner, True),
        "dense_4h_to_h": Linear(inner, h, True),
    }
    return Layout(linears=linears, norms=4, final_norms=2, tied=bool(spec.tied))


def llama(spec: ModelSpec, *, bias_in: bool = False) -> Layout:
    """Llama and Mistral; with `bias_in`, queries, keys and values have a bias."""
    h, inner = spec.width, spec.intermediate
    head = spec.head_size or h // spec.heads
    query, keys = spec.heads * head, (spec.kv_heads or spec.heads) * head
    bias = bool(spec.attention_bias)
    linears = {
        "q_proj": Linear(h, query, bias or bias_in),
        "k_proj": Linear(h, keys, bias or bias_in),
        "v_proj": Linear(h, keys, bias or bias_in),
        "o_proj": Linear(query, h, bias),
        "gate_proj": Linear(h, inner),
        "up_proj": Linear(h, inner),
        "down_proj": Linear(inner, h),
    }
    return Layout(linears=linears, norms=2, final_norms=1, tied=bool(spec.tied))


def qwen2(spec: ModelSpec) -> Layout:
    """Qwen 2: a Llama in which queries, keys and values have a bias."""
    return llama(spec, bias_in=True)


def gptj(spec: ModelSpec) -> Layout:
    """GPT-J."""
    h, inner = spec.width, spec.intermediate
    linears = {name: Linear(h, h) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    linears |= {"fc_in": Linear(h, inner, True), "fc_out": Linear(inner, h, True)}
    return Layout(linears=linears, norms=2, final_norms=2, tied=bool(spec.tied), head_bias=True)


def gpt_neo(spec: ModelSpec) -> Layout:
    """GPT-Neo."""
    h, inner = spec.width, spec.intermediate
    linears = {name: Linear(h, h) for name in ("q_proj", "k_proj", "v_proj")}
    linears |= {"out_proj": Linear(h, h, True), "c_fc": Linear(h, inner, True), "c_proj": Linear(inner, h, True)}
    return Layout(linears=linears, norms=4, final_norms=2, positions=spec.positions, tied=spec.tied is not False)


def gpt2(spec: ModelSpec) -> Layout:
    """GPT-2."""
    h, inner = spec.width, spec.intermediate
    linears = {
        "c_attn": Linear(h, 3 * h, True),
        "attn.c_proj": Linear(h, h, True),
        "c_fc": Linear(h, inner, True),
        "mlp.c_proj": Linear(inner, h, True),
    }
    return Layout(linears=linears, norms=4, final_norms=2, positions=spec.positions, tied=spec.tied is not False)


def mpt(spec: ModelSpec) -> Layout:
    """MPT."""
    h = spec.width  # its inner width is always four times the width
    linears = {
        "Wqkv": Linear(h, 3 * h),
        "out_proj": Linear(h, h),
        "up_proj": Linear(h, 4 * h),
        "down_proj": Linear(4 * h, h),
    }
    return Layout(linears=linears, norms=2, final_norms=1, tied=spec.tied is not False)
