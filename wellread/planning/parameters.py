"""Parameters and activations of a transformer in closed form, per architecture family. Nothing is built or loaded."""

from __future__ import annotations

from dataclasses import dataclass

from wellread.errors import UserError
from wellread.models.families import FAMILIES, Compute
from wellread.models.layouts import Layout
from wellread.models.spec import ModelSpec


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

    Source: the layers that the modeling files of transformers 5.23 make (models/FAMILY/modeling_FAMILY.py);
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
