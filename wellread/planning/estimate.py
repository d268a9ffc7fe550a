"""Estimate the memory of a training run: bytes per GPU, per node, on disk and on NVMe.

A run has phases (`wellread.planning.phases`): it loads the model, starts its engine, then runs forward, backward and
the optimizer step, and saves. `estimate` finds the phase that needs the most memory and breaks it down into parts;
`choose` takes the fastest strategy that fits. Pure arithmetic: no file, no device, no clock.
docs/memory.md computes examples by hand; `python -m bench.memory` compares predicted with measured memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wellread.config import Dtype
from wellread.errors import UserError
from wellread.models.families import BLOCKED_FAMILIES, FAMILIES, Compute
from wellread.models.limits import BLOCKED_TOKENS
from wellread.planning import float8
from wellread.planning.machine import Machine, Place
from wellread.planning.parameters import (
    layer_activations,
    layer_input,
    logits,
    packing_mask,
    parameters,
    trained,
)
from wellread.planning.phases import KERNELS, Block, Phase, Sizes, add_up, plain
from wellread.planning.strategies import LADDER, Strategy
from wellread.units import GIB, MIB

if TYPE_CHECKING:
    from wellread.models.spec import ModelSpec

CUDA_CONTEXT = int(0.75 * GIB)
"""CUDA context, loaded kernels and cuBLAS workspaces on each GPU."""
NCCL = int(0.5 * GIB)
"""NCCL buffers on each GPU, when a run has several."""
FRAGMENTATION = 0.05
"""Unusable fragments that torch's allocator keeps, as a fraction of the memory that is allocated on a GPU."""
INTERPRETER = {"cpu": int(0.4 * GIB), "cuda": int(2.5 * GIB)}
"""Host memory of an idle rank after all imports; with the CUDA libraries on a GPU."""
PROCESS = {"torch": 32 * MIB, "deepspeed": 72 * MIB, "rank 0": 68 * MIB}
"""Additional host memory of a rank that trains, independent of the model: kernels, thread pools and module hooks.
Rank 0 needs more, for TensorBoard, the record and saving. Measured with models of 0.4 and 11 million parameters."""
MARGIN = 0.05
"""Fraction of every limit that stays free."""

RECOMPUTED = 0.75
"""Relative speed with activation checkpointing: with a second forward pass, a step is four units of work instead of
three (Chen et al. 2016). So a strategy on the GPU with checkpointing is preferred to one that offloads without it."""
FULL_PASS = 300
"""Tokens of a forward pass below which reading the weights takes longer than multiplying with them, in bf16: the
operations per byte of memory traffic, 989e12 / 3.35e12 on an H100 (roofline: Williams et al. 2009,
https://doi.org/10.1145/1498765.1498785). The speed of a smaller micro-batch is proportional to its tokens."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of each rank, and the checkpoints that a run keeps."""

    dtype: Dtype = "bf16"
    micro_batch: int = 1
    """Samples per forward pass."""
    accumulation: int = 1
    """Forward passes per optimizer step."""
    seq_len: int = 512
    fp32_gradients: bool = False
    """Whether the gradients of micro-batches are added up in fp32 under every strategy that can do that."""
    packed: bool = False
    """Whether samples are packed: then attention has a mask, unless it is of variable length."""
    fast: tuple[str, ...] = ()
    """Fast paths that the run takes where the engine has them (`wellread.planning.fast`)."""
    float8: bool = False
    """Whether the products of the layers are in float8, where the engine has that."""
    even: bool = False
    """Whether all samples have the same length: then a CPU compiles few kernels."""
    freeze: str = ""
    """Patterns of the parameters that are frozen."""
    lora_rank: int = 0
    """Rank of LoRA; 0: all weights that are not frozen are trained."""
    lora_modules: tuple[str, ...] = ()
    """Names of the matrices that LoRA adapts; empty: all matrices of a layer."""
    checkpoints: int = 1
    """Number of checkpoints that keep their model."""
    states: int = 2
    """Number of newest checkpoints that also keep the optimizer state."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Predicted memory of one strategy, and whether it fits."""

    strategy: str
    checkpointing: bool
    """Whether activations are recomputed in backward instead of kept."""
    ratio: float | None
    """Fraction of the optimizer that is in host memory (zero3-partial only)."""
    gpu_bytes: int
    """Per GPU."""
    host_bytes: int
    """Per node: the node of rank 0, which needs the most."""
    disk_bytes: int
    """For all kept checkpoints and the one that is being written."""
    nvme_bytes: int
    """Per node."""
    relative_speed: float
    """Expected tokens per second, relative to ddp without checkpointing (`LADDER`, `RECOMPUTED`, `FULL_PASS`)."""
    short: dict[str, int]
    """Kind of memory (gpu, host, disk, nvme) -> missing bytes; only kinds that are too small."""
    peaks: dict[str, str]
    """gpu, host -> the phase that needs the most of it."""
    parts: dict[str, dict[str, int]]
    """Breakdown: gpu, host, disk, nvme -> part -> bytes."""

    @property
    def fits(self) -> bool:
        """Whether the run stays within every limit less its margin."""
        return not self.short

    def as_dict(self) -> dict[str, Any]:
        """The estimate as an entry of `strategies` in plan.json."""
        sizes = ("gpu_bytes", "host_bytes", "disk_bytes", "nvme_bytes")
        names = ("strategy", "fits", *sizes, "relative_speed", "short", "peaks", "parts")
        return {name: getattr(self, name) for name in names} | {
            "activation_checkpointing": self.checkpointing,
            "offload_ratio": self.ratio,
        }


# --- one strategy ----------------------------------------------------------------------------------------------------


def estimate(
    spec: ModelSpec,
    work: Work,
    machine: Machine,
    strategy: str,
    *,
    checkpointing: bool = False,
    margin: float = MARGIN,
) -> Estimate:
    """Estimate the bytes that one strategy needs, and compare them with the limits.

    zero3-partial offloads the smallest fraction of the optimizer with which the remaining state fits the GPU.

    Raises
    ------
    UserError
        When the strategy or the model's family is unknown, or a size is not valid.
    """
    _check(work, machine)
    if strategy not in LADDER:
        raise UserError(f"--strategy {strategy}: unknown; choose {', '.join(LADDER)}")
    rung = LADDER[strategy]
    for ratio in rung.ratios or (None,):
        result = _estimate(spec, work, machine, rung, checkpointing, margin, ratio=ratio)
        if "gpu" not in result.short:
            break
    return result


def _estimate(
    spec: ModelSpec,
    work: Work,
    machine: Machine,
    rung: Strategy,
    checkpointing: bool,
    margin: float,
    *,
    ratio: float | None,
) -> Estimate:
    sizes = _sizes(spec, work, machine, rung, checkpointing, ratio)
    assert rung.phases
    phases = rung.phases(sizes)
    parts: dict[Place, dict[str, int]] = {"gpu": {}, "host": {}, "disk": _disk(sizes, work, rung), "nvme": {}}
    peaks = {}
    if machine.device == "cuda":
        peaks["gpu"], parts["gpu"] = _gpu(phases, sizes)
    peaks["host"], parts["host"] = _host(phases, machine)
    parts["host"] |= {
        "interpreters": machine.ranks_per_node * INTERPRETER[machine.device],
        "processes": machine.ranks_per_node * PROCESS[rung.engine] + PROCESS["rank 0"],
    }
    if machine.device == "cpu" and work.dtype == "bf16" and not work.even:
        parts["host"]["compiled kernels"] = machine.ranks_per_node * KERNELS
    if rung.on_nvme:
        on_node = -(-sizes.trainable // machine.nodes)
        weights = -(-sizes.width * sizes.model.total // machine.nodes)
        parts["nvme"] = {"weights": weights, "optimizer": 12 * on_node, "gradients": 4 * on_node}
    needed = {place: sum(of.values()) for place, of in parts.items()}
    return Estimate(
        strategy=rung.name,
        checkpointing=checkpointing,
        ratio=ratio,
        gpu_bytes=needed["gpu"],
        host_bytes=needed["host"],
        disk_bytes=needed["disk"],
        nvme_bytes=needed["nvme"],
        relative_speed=_speed(rung, checkpointing, work, machine),
        short=_short(needed, machine, margin),
        peaks=peaks,
        parts={place: parts[place] for place in parts},
    )


def _speed(rung: Strategy, checkpointing: bool, work: Work, machine: Machine) -> float:
    filled = min(1.0, work.micro_batch * work.seq_len / FULL_PASS) if machine.device == "cuda" else 1.0
    return round(rung.speed * (RECOMPUTED if checkpointing else 1) * filled, 4)


def _check(work: Work, machine: Machine) -> None:
    counts = {
        "--nodes": machine.nodes,
        "--ranks_per_node": machine.ranks_per_node,
        "--micro_batch_size": work.micro_batch,
        "accumulation": work.accumulation,
        "--seq_len": work.seq_len,
    }
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} {count}: must be at least 1")
    limits = {
        "--gpu_mem": machine.gpu_mem,
        "--host_mem": machine.host_mem,
        "--disk": machine.disk,
        "--nvme": machine.nvme,
    }
    for name, size in limits.items():
        if size is not None and not size > 0:
            raise UserError(f"{name} {size:g}: must be above 0 GiB; leave it out if there is no such limit")
    if machine.device == "cuda" and machine.gpu_mem is not None and machine.gpu_mem * GIB <= CUDA_CONTEXT:
        raise UserError(
            f"--gpu_mem {machine.gpu_mem:g}: CUDA itself needs {CUDA_CONTEXT / GIB:g} GiB; give the full size of a GPU"
        )
    if work.lora_rank < 0:
        raise UserError(f"LoRA rank {work.lora_rank}: must be at least 1, or 0 to train all weights")


def _sizes(
    spec: ModelSpec, work: Work, machine: Machine, rung: Strategy, checkpointing: bool, ratio: float | None
) -> Sizes:
    model, cuda, bf16 = parameters(spec), machine.device == "cuda", work.dtype == "bf16"
    masters = rung.engine == "torch" and "bf16" in work.fast
    compute: Compute = "fp32" if not bf16 else "autocast" if rung.engine == "torch" and not masters else "bf16"
    shape = (work.micro_batch, work.seq_len)
    varlen = "varlen" in work.fast
    layer = layer_activations(spec, compute, *shape, cuda=cuda, repeated=work.packed or varlen)
    if not cuda and bf16 and not varlen and spec.family in BLOCKED_FAMILIES:  # where attention runs in blocks, or not
        short = (work.micro_batch, min(work.seq_len, BLOCKED_TOKENS))
        layer = max(layer, layer_activations(spec, compute, *short, cuda=cuda, blocked=True))
    entry = layer_input(spec, compute, *shape)
    masks = FAMILIES[spec.family].masks if work.packed and not varlen else 0
    sizes = Sizes(
        model=model,
        trained=trained(spec, freeze=work.freeze, lora_rank=work.lora_rank, lora_modules=work.lora_modules),
        ranks=machine.ranks,
        width=2 if bf16 else 4,
        bf16=bf16,
        gradient_width=4 if (work.fp32_gradients and rung.fp32_gradients) or not bf16 else 2,
        cuda=cuda,
        accumulates=work.accumulation > 1,
        activations=int(masks * packing_mask(compute, *shape))
        + (spec.layers * entry + layer if checkpointing else spec.layers * layer + entry),
        activation_block=math.prod(shape) * spec.intermediate * (2 if bf16 else 4),
        logits=logits(spec, compute, *shape),
        head=spec.vocab * spec.width,
        fresh=spec.fresh,
        masters=masters,
        float8=float8.copies(spec, math.prod(shape)) if work.float8 and rung.engine == "torch" else 0,
        gpu=machine.limit("gpu") if cuda else None,
        offloaded=float(rung.offloads) if ratio is None else ratio,
    )
    return replace(sizes, snapshot=rung.engine == "torch" and _fits_a_snapshot(sizes, machine))


def _fits_a_snapshot(sizes: Sizes, machine: Machine) -> bool:
    """Whether the torch engine saves from a copy: only when twice its size is free (TorchEngine.snapshot)."""
    size = 4 * sizes.trained.saved + 8 * sizes.trainable
    if (limit := machine.limit("host")) is None:
        return True
    before = [phase for phase in plain(sizes) if phase.name == "saving"]
    return 2 * size <= limit - sum(_host([replace(before[0], first=())], machine)[1].values())


def _disk(sizes: Sizes, work: Work, rung: Strategy) -> dict[str, int]:
    """Bytes of the kept checkpoints, plus the new state that is written before the oldest is deleted.

    A model is saved in fp32 (with LoRA, only the adapter). For the trained weights, a state contains the moments; under
    DeepSpeed also the master weights; under ZeRO-1 and 2 also the weights in the training precision.
    """
    state = (rung.state + sizes.width * rung.state_weights) * sizes.trainable
    return {
        "models": work.checkpoints * 4 * sizes.trained.saved,
        "states": min(work.states + 1, work.checkpoints) * state,
    }


def _short(needed: dict[Place, int], machine: Machine, margin: float) -> dict[str, int]:
    short = {}
    for place, size in needed.items():
        limit = machine.limit(place)
        if place == "nvme" and size and limit is None:
            limit = 0.0
        if limit is not None and size > limit * (1 - margin):
            short[str(place)] = math.ceil(size - limit * (1 - margin))
    return short


# --- adding up -------------------------------------------------------------------------------------------------------


def _gpu(phases: list[Phase], sizes: Sizes) -> tuple[str, dict[str, int]]:
    """The phase that needs the most memory of a GPU, and its parts."""
    peak = max(phases, key=lambda phase: sum(block.bytes for block in phase.device))
    parts = add_up(peak.device)
    fragments = int(FRAGMENTATION * sum(parts.values()))
    return peak.name, parts | {"CUDA context": CUDA_CONTEXT + NCCL * (sizes.ranks > 1), "fragmentation": fragments}


def _host(phases: list[Phase], machine: Machine) -> tuple[str, dict[str, int]]:
    """The phase that needs the most host memory of the first node, and its parts over all ranks.

    Memory that was allocated in small blocks stays with the process (`HEAP_BLOCK`): in every phase, each rank keeps the
    largest amount that any phase needs.
    """
    other_ranks = machine.ranks_per_node - 1
    on_host = [
        (phase.name, (*phase.host, *(phase.device if machine.device == "cpu" else ())), phase.first) for phase in phases
    ]
    small = max(sum(block.small for block in blocks) for _, blocks, _ in on_host)
    small_first = max(sum(block.small for block in (*blocks, *first)) for _, blocks, first in on_host)

    def parts(blocks: tuple[Block, ...], first: tuple[Block, ...]) -> dict[str, int]:
        of_all = add_up(blocks * machine.ranks_per_node)
        for part, size in add_up(first).items():
            of_all[part] = of_all.get(part, 0) + size
        used = sum(block.small for block in blocks)
        used_first = used + sum(block.small for block in first)
        return of_all | {"freed but kept": (small_first - used_first) + other_ranks * (small - used)}

    return max(((name, parts(*of)) for name, *of in on_host), key=lambda candidate: sum(candidate[1].values()))
