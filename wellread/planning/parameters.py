"""Formulas for the parameters and activations of a transformer, per model family. No model is built or loaded."""

from __future__ import annotations

from dataclasses import dataclass

from wellread.errors import UserError
from wellread.models.families import FAMILIES, Compute
from wellread.models.freezing import frozen
from wellread.models.layouts import HEAD, Layout
from wellread.models.limits import blocks
from wellread.models.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameter counts of a model: numbers of elements."""

    total: int
    layer: int
    """Of one transformer layer; all have the same size."""
    layers: int
    outside: int
    """Of everything outside the layers: embeddings, output embedding, final norm."""
    largest: int
    """Of the largest single tensor."""
    products: int
    """Of all matrices used in matrix products: those of the layers, and the output embedding."""
    tensors: tuple[int, ...]
    """Of every matrix and embedding, in the model's order, without norms and biases."""


def parameters(spec: ModelSpec) -> Parameters:
    """Count the parameters of a model.

    Source: the layers in the modeling files of transformers 5.23 (models/FAMILY/modeling_FAMILY.py). Tests compare
    every family and every registry model with the same model on the meta device.

    Raises
    ------
    UserError
        When the model's family is unknown.
    """
    layout = layout_of(spec)
    matrices = [linear.inputs * linear.outputs for linear in layout.linears.values()]
    layer = sum(linear.size for linear in layout.linears.values()) + len(layout.norms) * spec.width
    embedding, positions = spec.vocab * spec.width, layout.positions * spec.width
    head = 0 if layout.tied else embedding
    outside = embedding + positions + head + layout.head_bias * spec.vocab + len(layout.final_norms) * spec.width
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
    """Trainable elements of LoRA: for each adapted matrix, two matrices (rank, inputs) and (outputs, rank).

    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1; peft does the same.

    Parameters
    ----------
    modules : tuple of str
        Names of matrices as in `Layout.linears`; empty: all of them.

    Raises
    ------
    UserError
        When the rank is below 1, or the model has no matrix of a given name.
    """
    linears = layout_of(spec).linears
    unknown = [name for name in modules if name not in linears]
    if unknown:
        raise UserError(f"LoRA on {', '.join(unknown)}: {spec.name} has no such matrix; choose {', '.join(linears)}")
    if rank < 1:
        raise UserError(f"LoRA rank {rank}: must be at least 1")
    matrices = [linears[name] for name in modules or linears]
    return spec.layers * rank * sum(linear.inputs + linear.outputs for linear in matrices)


@dataclass(frozen=True)
class Trained:
    """What a run trains and saves, in elements."""

    elements: int
    """T, the number of trained parameters."""
    tensors: tuple[int, ...]
    """Elements of each trained tensor, in the model's order; empty with LoRA, whose tensors are small."""
    saved: int
    """Elements of the model of a checkpoint: of an adapter, or of the complete model."""


def trained(spec: ModelSpec, *, freeze: str = "", lora_rank: int = 0, lora_modules: tuple[str, ...] = ()) -> Trained:
    """Count what a run trains.

    Parameters
    ----------
    freeze : str
        Patterns of `--freeze`.

    Raises
    ------
    UserError
        When a pattern of `freeze` matches no parameter, or all are frozen.
    """
    if lora_rank:
        elements = lora_parameters(spec, lora_rank, lora_modules)
        return Trained(elements, (), elements)
    model = parameters(spec)
    if not freeze:
        return Trained(model.total, model.tensors, model.total)
    sizes = layout_of(spec).sizes(spec)
    names = frozen(sizes, freeze, possible=[HEAD])  # its files may have other values than the embedding it is tied to
    tensors = tuple(size for name, size in sizes.items() if name not in names)
    return Trained(sum(tensors), tensors, model.total)


# --- families --------------------------------------------------------------------------------------------------------


def knows(spec: ModelSpec) -> bool:
    """Whether the model's family is in `FAMILIES`."""
    return spec.family in FAMILIES


def layout_of(spec: ModelSpec) -> Layout:
    """Layout of a model.

    Raises
    ------
    UserError
        When its family is unknown.
    """
    if spec.family not in FAMILIES:
        raise UserError(
            f"--model {spec.name}: no memory estimate for family {spec.family}; known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[spec.family].layout(spec)


def layer_activations(
    spec: ModelSpec,
    compute: Compute,
    samples: int,
    tokens: int,
    *,
    cuda: bool,
    repeated: bool = False,
    blocked: bool = False,
) -> int:
    """Bytes that one layer keeps from its forward to its backward pass.

    For gpt_neox in bf16, per token: the residual that both norms read (2 h), their outputs (4 h), queries, keys and
    values as projected (6 h), rotated queries and keys (4 h), the output of attention (2 h) and its copy in the
    order of the next product (2 h), and the inner layer before and after its activation (4 inner). Autocast keeps
    the residual in fp32; fp32 doubles everything. Counted as in Korthikanti et al. 2022,
    https://arxiv.org/abs/2205.05198, section 4.1, with the tensors that transformers 5.23 saves, measured with
    ``torch.autograd.graph.saved_tensors_hooks``. Tests compare every family.

    Parameters
    ----------
    samples, tokens : int
        Samples per micro-batch, and tokens per sample.
    cuda : bool
        Whether ranks run on GPUs: there, fused attention writes its output in the layout of the next product, which
        saves one copy.
    repeated : bool
        Whether keys and values are repeated for all heads before attention: with a mask, and with variable-length
        attention.
    blocked : bool
        Whether attention runs in blocks of rows (`wellread.models.blocked`): it keeps its probabilities, repeats no
        keys, and writes its output in the layout of the next product.
    """
    family = FAMILIES[spec.family]
    saved, width = family.saved[compute], 4 if compute == "fp32" else 2
    head = spec.head_size or spec.width // spec.heads
    per_token = saved.width * spec.width + saved.intermediate * spec.intermediate
    per_token += saved.keys * head * (spec.kv_heads or spec.heads) + saved.heads * spec.heads
    if blocked and (more := family.blocked) is not None:
        computed = sum((end - start) * end for start, end in blocks(tokens))
        return int(samples * (tokens * (per_token + more * spec.width) + spec.heads * width * computed))
    if repeated:
        per_token += 2 * width * head * (spec.heads - (spec.kv_heads or spec.heads))
    in_order = cuda and not saved.heads  # what is added to heads is cut off the output, which copies it
    per_token += 4 * spec.heads - (width * spec.width if in_order else 0)
    return int(samples * tokens * per_token)


def packing_mask(compute: Compute, samples: int, tokens: int) -> int:
    """Bytes of the mask that isolates the segments of packed samples (`wellread.models.loss.isolation`).

    One number for each pair of tokens of a sample; all layers and heads share the mask. Some families derive more from
    it (`Family.masks`).
    """
    return samples * tokens**2 * (4 if compute == "fp32" else 2)


def layer_input(spec: ModelSpec, compute: Compute, samples: int, tokens: int) -> int:
    """Bytes that activation checkpointing keeps per layer: its input, from which backward recomputes the layer.

    Source: Chen et al. 2016, https://arxiv.org/abs/1604.06174; the residual is fp32 under autocast.
    """
    return samples * tokens * spec.width * (2 if compute == "bf16" else 4)


def logits(spec: ModelSpec, compute: Compute, samples: int, tokens: int) -> int:
    """Bytes of the logits, one number per token and vocabulary entry; their gradient reuses the same memory."""
    return (4 if compute == "fp32" else 2) * samples * tokens * spec.vocab
