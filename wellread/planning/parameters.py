"""Parameters and activations of a transformer in closed form, per architecture family. Nothing is built or loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from wellread.errors import UserError

if TYPE_CHECKING:
    from wellread.models.registry import ModelSpec

Compute = Literal["bf16", "autocast", "fp32"]
"""bf16: weights and activations in bf16 (DeepSpeed); autocast: fp32 weights, products in bf16 (plain engine)."""


@dataclass(frozen=True)
class Linear:
    """A matrix of one layer: what goes in, what comes out, and whether it adds a bias."""

    inputs: int
    outputs: int
    bias: bool = False

    @property
    def size(self) -> int:
        """Elements of weight and bias."""
        return self.outputs * (self.inputs + self.bias)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What one architecture family is made of."""

    linears: dict[str, Linear]
    """Matrices of one layer, under the names that LoRA's target modules have."""
    norms: int
    """Vectors as wide as the model in one layer."""
    final_norms: int
    positions: int = 0
    """Rows of a table of learned positions."""
    tied: bool = False
    """The output embedding is the input embedding."""
    head_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Numbers of elements of a model's parameters."""

    total: int
    layer: int
    """Of one transformer layer, all of the same size."""
    layers: int
    outside: int
    """Of everything outside the layers: embeddings, output embedding, last norm."""
    largest: int
    """Of the largest single tensor."""
    products: int
    """Of all matrices that enter a product: those of the layers, and the output embedding."""
    tensors: tuple[int, ...]
    """Of every matrix and embedding, in the model's order; norms and biases left out."""


def parameters(spec: ModelSpec) -> Parameters:
    """Count a model's parameters.

    Source: the layers that the modelling files of transformers 5.23 make (models/FAMILY/modeling_FAMILY.py);
    tests compare every family and every registry model with the same model on the meta device.

    Raises
    ------
    UserError
        When nothing is known of the model's family.
    """
    layout = layout_of(spec)
    matrices = [linear.inputs * linear.outputs for linear in layout.linears.values()]
    layer = sum(linear.size for linear in layout.linears.values()) + layout.norms * spec.width
    embedding, positions = spec.vocab * spec.width, layout.positions * spec.width
    head = 0 if layout.tied else embedding
    outside = embedding + positions + head + layout.head_bias * spec.vocab + layout.final_norms * spec.width
    tables = [size for size in (embedding, positions) if size]
    return Parameters(
        total=spec.layers * layer + outside,
        layer=layer,
        layers=spec.layers,
        outside=outside,
        largest=max(*matrices, *tables),
        products=spec.layers * sum(matrices) + embedding,
        tensors=(*tables, *(matrices * spec.layers), *([head] if head else [])),
    )


def lora_parameters(spec: ModelSpec, rank: int, modules: tuple[str, ...] = ()) -> int:
    """Trainable elements of LoRA: a pair of matrices (rank, inputs) and (outputs, rank) beside each chosen one.

    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1; peft makes the same.

    Parameters
    ----------
    modules : tuple of str
        Names of matrices as in `Layout.linears`; none: all of them.

    Raises
    ------
    UserError
        When the rank is below 1 or a name is not that of a matrix.
    """
    linears = layout_of(spec).linears
    unknown = [name for name in modules if name not in linears]
    if unknown:
        raise UserError(f"LoRA on {', '.join(unknown)}: {spec.name} has no such matrix; choose {', '.join(linears)}")
    if rank < 1:
        raise UserError(f"LoRA rank {rank}: must be at least 1")
    chosen = [linears[name] for name in modules or linears]
    return spec.layers * rank * sum(linear.inputs + linear.outputs for linear in chosen)


# --- families --------------------------------------------------------------------------------------------------------


def knows(spec: ModelSpec) -> bool:
    """Whether anything is known of the model's family."""
    return spec.family in FAMILIES


def layout_of(spec: ModelSpec) -> Layout:
    """Layout of a model.

    Raises
    ------
    UserError
        When nothing is known of its family.
    """
    if spec.family not in FAMILIES:
        raise UserError(
            f"--model {spec.name}: the memory of family {spec.family} is not known; known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[spec.family].layout(spec)


def _gpt_neox(spec: ModelSpec) -> Layout:
    h, inner, bias = spec.width, spec.intermediate, spec.attention_bias is not False
    linears = {
        "query_key_value": Linear(h, 3 * h, bias),
        "dense": Linear(h, h, bias),
        "dense_h_to_4h": Linear(h, inner, True),
        "dense_4h_to_h": Linear(inner, h, True),
    }
    return Layout(linears=linears, norms=4, final_norms=2, tied=bool(spec.tied))


def _llama(spec: ModelSpec, *, bias_in: bool = False) -> Layout:
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


def _qwen2(spec: ModelSpec) -> Layout:
    return _llama(spec, bias_in=True)


def _gptj(spec: ModelSpec) -> Layout:
    h, inner = spec.width, spec.intermediate
    linears = {name: Linear(h, h) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    linears |= {"fc_in": Linear(h, inner, True), "fc_out": Linear(inner, h, True)}
    return Layout(linears=linears, norms=2, final_norms=2, tied=bool(spec.tied), head_bias=True)


def _gpt_neo(spec: ModelSpec) -> Layout:
    h, inner = spec.width, spec.intermediate
    linears = {name: Linear(h, h) for name in ("q_proj", "k_proj", "v_proj")}
    linears |= {"out_proj": Linear(h, h, True), "c_fc": Linear(h, inner, True), "c_proj": Linear(inner, h, True)}
    return Layout(linears=linears, norms=4, final_norms=2, positions=spec.positions, tied=spec.tied is not False)


def _gpt2(spec: ModelSpec) -> Layout:
    h, inner = spec.width, spec.intermediate
    linears = {
        "c_attn": Linear(h, 3 * h, True),
        "attn.c_proj": Linear(h, h, True),
        "c_fc": Linear(h, inner, True),
        "mlp.c_proj": Linear(inner, h, True),
    }
    return Layout(linears=linears, norms=4, final_norms=2, positions=spec.positions, tied=spec.tied is not False)


def _mpt(spec: ModelSpec) -> Layout:
    h = spec.width  # its inner width is always four times the width
    linears = {
        "Wqkv": Linear(h, 3 * h),
        "out_proj": Linear(h, h),
        "up_proj": Linear(h, 4 * h),
        "down_proj": Linear(4 * h, h),
    }
    return Layout(linears=linears, norms=2, final_norms=1, tied=spec.tied is not False)


@dataclass(frozen=True)
class Saved:
    """Bytes that one layer keeps for its backward pass, per token, as multiples of the model's widths."""

    width: float
    intermediate: float
    keys: float = 0
    """Of the width of keys and values, where they have fewer heads than the queries."""
    scores: float = 0
    """Of heads times sequence length: attention that writes its matrix of scores (eager); 0 for sdpa."""


@dataclass(frozen=True)
class Family:
    """What is known of an architecture family; a new one is added by one entry of `FAMILIES`."""

    layout: Callable[[ModelSpec], Layout]
    saved: dict[Compute, Saved]

    @property
    def sdpa(self) -> bool:
        """Whether transformers has the family's attention in torch's fused form, linear in the sequence length."""
        return not self.saved["bf16"].scores


def _saved(bf16: tuple[float, ...], autocast: tuple[float, ...], fp32: tuple[float, ...]) -> dict[Compute, Saved]:
    return {"bf16": Saved(*bf16), "autocast": Saved(*autocast), "fp32": Saved(*fp32)}


_LLAMA_SAVED = _saved((20, 8, 4), (30, 8, 4), (32, 16, 8))
FAMILIES: dict[str, Family] = {
    "gpt_neox": Family(_gpt_neox, _saved((20, 4), (22, 4), (40, 8))),
    "llama": Family(_llama, _LLAMA_SAVED),
    "mistral": Family(_llama, _LLAMA_SAVED),
    "qwen2": Family(_qwen2, _LLAMA_SAVED),
    "gptj": Family(_gptj, _saved((16.25, 10, 0, 6), (20.25, 10, 0, 6), (24.5, 20, 0, 4))),
    "gpt_neo": Family(_gpt_neo, _saved((20, 10, 0, 6), (24, 10, 0, 6), (32, 20, 0, 4))),
    "gpt2": Family(_gpt2, _saved((16, 10), (20, 10), (32, 20))),
    "mpt": Family(_mpt, _saved((16, 4, 0, 6), (20, 4, 0, 6), (32, 8, 0, 4))),
}
"""Every family, with the bytes that its layers keep for backward (`layer_activations` says how they were found)."""


def layer_activations(
    spec: ModelSpec, compute: Compute, samples: int, tokens: int, *, cuda: bool, packed: bool = False
) -> int:
    """Bytes that one layer keeps between its forward and its backward pass.

    For gpt_neox in bf16, per token: the residual that both norms read (2 h), their outputs (4 h), queries, keys and
    values as projected (6 h), rotated queries and keys (4 h), the output of attention (2 h) and its copy in the
    order of the next product (2 h), and the inner layer before and after its activation (4 inner). Autocast keeps
    the residual in fp32; fp32 doubles all. The way of counting is that of Korthikanti et al. 2022,
    https://arxiv.org/abs/2205.05198, section 4.1; the numbers are those of transformers 5.23, found with
    ``torch.autograd.graph.saved_tensors_hooks``, and tests compare them in every family.

    Parameters
    ----------
    samples, tokens : int
        Samples of a micro-batch, and tokens of each.
    cuda : bool
        On a GPU the fused attention writes its output in the order that the next product reads: one copy less.
    packed : bool
        Under a mask, transformers repeats keys and values for all heads before the fused attention.
    """
    family = FAMILIES[spec.family]
    saved, width = family.saved[compute], 4 if compute == "fp32" else 2
    head = spec.head_size or spec.width // spec.heads
    per_token = saved.width * spec.width + saved.intermediate * spec.intermediate
    per_token += saved.keys * head * (spec.kv_heads or spec.heads) + saved.scores * spec.heads * tokens
    if packed and family.sdpa:
        per_token += 2 * width * head * (spec.heads - (spec.kv_heads or spec.heads))
    if family.sdpa:
        per_token += 4 * spec.heads - (width * spec.width if cuda else 0)
    return int(samples * tokens * per_token)


def packing_mask(compute: Compute, samples: int, tokens: int) -> int:
    """Bytes of the mask that keeps segments of packed samples apart (`wellread.models.loss.isolation`).

    One number for each pair of tokens of a sample; all layers and heads share it.
    """
    return samples * tokens**2 * (4 if compute == "fp32" else 2)


def layer_input(spec: ModelSpec, compute: Compute, samples: int, tokens: int) -> int:
    """Bytes that activation checkpointing keeps of a layer: its input, from which the layer is computed again.

    Source: Chen et al. 2016, https://arxiv.org/abs/1604.06174; the residual is fp32 under autocast.
    """
    return samples * tokens * spec.width * (2 if compute == "bf16" else 4)


def logits(spec: ModelSpec, compute: Compute, samples: int, tokens: int) -> int:
    """Bytes of the logits, one number per scored token and word; their gradient takes their place."""
    return (4 if compute == "fp32" else 2) * samples * tokens * spec.vocab
