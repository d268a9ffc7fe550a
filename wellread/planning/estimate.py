"""Bytes that a training run needs, per GPU, per host, on disk and on NVMe, and the strategy that they speak for.

A run passes through phases (`wellread.planning.phases`): it loads the model, starts its engine, and then runs
forward, backward and the optimizer's step, and saves. `estimate` finds the phase that needs most, and names what its
bytes consist of; `choose` takes the fastest strategy that fits. Pure arithmetic: no file, no device, no clock.
docs/memory.md works examples by hand; `python -m bench.memory` compares predicted with measured memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wellread.config import Dtype
from wellread.errors import UserError
from wellread.models.families import Compute
from wellread.planning.machine import Machine, Place
from wellread.planning.parameters import (
    layer_activations,
    layer_input,
    logits,
    lora_parameters,
    packing_mask,
    parameters,
)
from wellread.planning.phases import Block, Phase, Sizes, plain
from wellread.planning.strategies import LADDER, Strategy
from wellread.units import GIB, MIB

if TYPE_CHECKING:
    from wellread.models.spec import ModelSpec

CUDA_CONTEXT = int(0.75 * GIB)
"""CUDA's context, loaded kernels and the workspaces of cuBLAS on each GPU."""
NCCL = int(0.5 * GIB)
"""Buffers of NCCL on each GPU of a run of several."""
FRAGMENTATION = 0.05
"""Part of what is allocated on a GPU that torch's allocator holds beyond it, in pieces that fit nothing."""
INTERPRETER = {"cpu": int(0.4 * GIB), "cuda": int(2.5 * GIB)}
"""Host memory of a rank that has imported everything and does nothing; with CUDA's libraries on a GPU."""
PROCESS = {"torch": 32 * MIB, "deepspeed": 72 * MIB, "rank 0": 68 * MIB}
"""What a rank takes beyond that once it trains, whatever the model: kernels, thread pools and modules' hooks; rank 0
more, for TensorBoard, the record and saving. Measured with models of 0.4 and 11 million parameters."""
MARGIN = 0.05
"""Part of every limit that is left free."""

RECOMPUTED = 0.75
"""Speed with activation checkpointing: a second forward pass makes a step four units of work instead of three (Chen et
al. 2016). So every strategy that stays on the GPU comes with checkpointing before any that offloads comes without."""
FULL_PASS = 300
"""Tokens of a forward pass below which a GPU reads its weights more slowly than it multiplies with them, in bf16: its
operations per byte of memory traffic, 989e12 / 3.35e12 on an H100 (roofline: Williams et al. 2009,
https://doi.org/10.1145/1498765.1498785). A micro-batch of fewer tokens is slower by as much."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What each rank does."""

    dtype: Dtype = "bf16"
    micro_batch: int = 1
    """Samples per forward pass."""
    accumulation: int = 1
    """Forward passes per optimizer step."""
    seq_len: int = 512
    packed: bool = False
    """Samples are packed: attention has a mask."""
    lora_rank: int = 0
    """Rank of LoRA; 0: all weights are trained."""
    lora_modules: tuple[str, ...] = ()
    """Matrices that LoRA stands beside; none named: all of a layer's."""
    checkpoints: int = 1
    """Checkpoints whose models are kept."""
    states: int = 2
    """Newest checkpoints that keep the optimizer's state."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one strategy needs, and whether it fits."""

    strategy: str
    checkpointing: bool
    """Whether layers are computed again in backward instead of kept."""
    ratio: float | None
    """Part of the optimizer that lies in host memory, under zero3-partial."""
    gpu_bytes: int
    """Per GPU."""
    host_bytes: int
    """Per node: of the one with rank 0."""
    disk_bytes: int
    """For all checkpoints that are kept, and the one that is being written."""
    nvme_bytes: int
    """Per node."""
    relative_speed: float
    """Expected tokens per second as a part of ddp's without checkpointing (`LADDER`, `RECOMPUTED`, `FULL_PASS`)."""
    short: dict[str, int]
    """Bytes missing, by gpu, host, disk, nvme; those that suffice are left out."""
    peaks: dict[str, str]
    """Phase in which the most is needed, by gpu and host."""
    parts: dict[str, dict[str, int]]
    """What the bytes consist of: gpu, host, disk, nvme -> part -> bytes."""

    @property
    def fits(self) -> bool:
        """Whether every limit holds, with its margin."""
        return not self.short

    def as_dict(self) -> dict[str, Any]:
        """The estimate as plan.json has it."""
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
    """Bytes that one strategy needs, and which limits they pass.

    Under zero3-partial the smallest part of the optimizer is offloaded with which the rest fits the GPU.

    Raises
    ------
    UserError
        When the strategy or the model's family is unknown, or a size makes no sense.
    """
    _check(work, machine)
    if strategy not in LADDER:
        raise UserError(f"--strategy {strategy}: unknown; choose {', '.join(LADDER)}")
    rung = LADDER[strategy]
    for ratio in rung.ratios or (None,):
        found = _estimate(spec, work, machine, rung, checkpointing, margin, ratio=ratio)
        if "gpu" not in found.short:
            break
    return found


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
            raise UserError(f"{name} {size:g}: must be above 0 GiB; leave it out where there is no such limit")
    if machine.device == "cuda" and machine.gpu_mem is not None and machine.gpu_mem * GIB <= CUDA_CONTEXT:
        raise UserError(
            f"--gpu_mem {machine.gpu_mem:g}: CUDA alone takes {CUDA_CONTEXT / GIB:g} GiB; give the size of a whole GPU"
        )
    if work.lora_rank < 0:
        raise UserError(f"LoRA rank {work.lora_rank}: must be at least 1, or 0 to train all weights")


def _sizes(
    spec: ModelSpec, work: Work, machine: Machine, rung: Strategy, checkpointing: bool, ratio: float | None
) -> Sizes:
    model, cuda, bf16 = parameters(spec), machine.device == "cuda", work.dtype == "bf16"
    compute: Compute = "fp32" if not bf16 else "autocast" if rung.engine == "torch" else "bf16"
    shape = (work.micro_batch, work.seq_len)
    layer = layer_activations(spec, compute, *shape, cuda=cuda, packed=work.packed)
    entry = layer_input(spec, compute, *shape)
    mask = packing_mask(compute, *shape) if work.packed else 0
    sizes = Sizes(
        model=model,
        trainable=lora_parameters(spec, work.lora_rank, work.lora_modules) if work.lora_rank else model.total,
        ranks=machine.ranks,
        width=2 if bf16 else 4,
        bf16=bf16,
        cuda=cuda,
        accumulates=work.accumulation > 1,
        activations=mask + (spec.layers * entry + layer if checkpointing else spec.layers * layer + entry),
        activation_block=math.prod(shape) * spec.intermediate * (2 if bf16 else 4),
        logits=logits(spec, compute, *shape),
        head=spec.vocab * spec.width,
        fresh=spec.fresh,
        gpu=machine.limit("gpu") if cuda else None,
        offloaded=float(rung.offloads) if ratio is None else ratio,
    )
    return replace(sizes, snapshot=rung.engine == "torch" and _has_room_for_a_snapshot(sizes, machine))


def _has_room_for_a_snapshot(sizes: Sizes, machine: Machine) -> bool:
    """Whether the plain engine saves from a copy: when twice its size is free (TorchEngine.snapshot)."""
    copies = 12 * sizes.trainable
    limit = machine.limit("host")
    if limit is None:
        return True
    before = [phase for phase in plain(sizes) if phase.name == "saving"]
    return 2 * copies <= limit - sum(_host([replace(before[0], first=())], machine)[1].values())


def _disk(sizes: Sizes, work: Work, rung: Strategy) -> dict[str, int]:
    """Bytes of the checkpoints that are kept, and of the state that is written before the oldest is dropped.

    A model is saved in fp32 (with LoRA, the adapter alone); a state holds the moments, under DeepSpeed also the master
    weights, under ZeRO-1 and 2 the weights in its own precision too: of all that is trained.
    """
    state = (rung.state + sizes.width * rung.state_weights) * sizes.trainable
    return {
        "models": work.checkpoints * 4 * sizes.trainable,
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
    """The phase that needs most of a GPU, and its parts."""
    peak = max(phases, key=lambda phase: sum(block.bytes for block in phase.device))
    parts = _add_up(peak.device)
    fragments = int(FRAGMENTATION * sum(parts.values()))
    return peak.name, parts | {"CUDA context": CUDA_CONTEXT + NCCL * (sizes.ranks > 1), "fragmentation": fragments}


def _host(phases: list[Phase], machine: Machine) -> tuple[str, dict[str, int]]:
    """The phase that needs most of the first node, and its parts over all ranks.

    What has been allocated in small blocks stays with the process (`HEAP_BLOCK`): each rank keeps the most that it
    ever had of them, whatever the phase.
    """
    others = machine.ranks_per_node - 1
    on_host = [
        (phase.name, (*phase.host, *(phase.device if machine.device == "cpu" else ())), phase.first) for phase in phases
    ]
    kept = max(sum(block.small for block in blocks) for _, blocks, _ in on_host)
    kept_first = max(sum(block.small for block in (*blocks, *first)) for _, blocks, first in on_host)

    def parts(blocks: tuple[Block, ...], first: tuple[Block, ...]) -> dict[str, int]:
        of_all = _add_up(blocks * machine.ranks_per_node)
        for part, size in _add_up(first).items():
            of_all[part] = of_all.get(part, 0) + size
        used = sum(block.small for block in blocks)
        used_first = used + sum(block.small for block in first)
        return of_all | {"freed but kept": (kept_first - used_first) + others * (kept - used)}

    return max(((name, parts(*of)) for name, *of in on_host), key=lambda found: sum(found[1].values()))


def _add_up(blocks: Sequence[Block]) -> dict[str, int]:
    parts: dict[str, int] = {}
    for block in blocks:
        if block.bytes:
            parts[block.part] = parts.get(block.part, 0) + block.bytes
    return parts
