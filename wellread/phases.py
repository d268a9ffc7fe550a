"""What lies in memory in each phase of a run: loading, engine start, forward, backward, step, saving.

One function per engine: `plain` (one process, or DDP), `zero12` and `zero3` (DeepSpeed). They describe what the engines
of `wellread.train` do with DeepSpeed 0.19.8, whose files are named as stage_1_and_2.py, stage3.py and so on (all in
deepspeed/runtime/zero). `wellread.memory` adds the phases up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wellread.parameters import Parameters

GIB = 2**30
MIB = 2**20

BUCKET = 500_000_000
"""Elements of a bucket of gradients (reduce_bucket_size, DeepSpeed's default)."""
LIVE = 1_000_000_000
"""Elements that ZeRO-3 keeps gathered (stage3_max_live_parameters, stage3_max_reuse_distance)."""
PREFETCH = 50_000_000
"""Elements that ZeRO-3 fetches ahead (stage3_prefetch_bucket_size)."""
SUB_GROUP = 1_000_000_000
"""Elements that ZeRO-3 steps at a time (sub_group_size)."""
FINE_SUB_GROUP = 100_000_000
"""The same under zero3-partial, where it is the grain of what is offloaded, and zero3-nvme, whose buffers are as large;
their files in configs/ds have to set it."""
NVME_BUFFERS = 4
"""Pinned buffers through which optimizer states pass (offload_optimizer.buffer_count)."""
BROADCAST = 250 * MIB
"""Buffer with which DDP sends the first weights to all ranks (torch: _sync_module_states, broadcast_bucket_size)."""
SHARD = 5 * GIB
"""File of weights that is put together at a time, where they are not all gathered to save."""
SPARE = 0.1
"""Part of a GPU that is not free when ZeRO-1 and 2 look for room to flatten the weights."""
HEAP_BLOCK = 32 * MIB
"""Smaller blocks stay in the process when they are freed: glibc's malloc takes blocks from the system one by one only
from its mmap threshold on, which grows to 32 MiB (DEFAULT_MMAP_THRESHOLD_MAX), and returns a heap only from its end."""


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How the training code treats memory beyond what the strategy needs; the defaults are what it does today."""

    whole_model_per_rank: bool = True
    """Every rank loads the whole model in fp32 into host memory, and DeepSpeed's engine keeps it until it has started
    (DeepSpeedEngine.__init__); else each rank reads its share from the file."""
    gather_to_save: bool = True
    """Rank 0 holds all weights in fp32 to save under ZeRO (DeepSpeedEngine.save); else one file at a time."""
    snapshot: bool = True
    """The plain engine copies weights and moments to host memory, and trains on while they are written."""
    reads_states_whole: bool = True
    """To resume under ZeRO, each rank reads its file of the optimizer's state into host memory (torch.load in
    DeepSpeed's torch_checkpoint_engine.py); else the file is mapped."""
    pinned_powers_of_two: bool = True
    """torch rounds page-locked memory up to a power of two and keeps what is freed (CachingHostAllocator.h); else
    PYTORCH_ALLOC_CONF=pinned_max_cached_size_mb:1 is set."""


@dataclass(frozen=True)
class Block:
    """Something in memory: one part of a phase."""

    part: str
    bytes: int
    small: int = 0
    """Of it, bytes that come and go in blocks below `HEAP_BLOCK`."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What lies in memory at one time."""

    name: str
    device: tuple[Block, ...] = ()
    """On each GPU; in host memory where ranks run on CPUs."""
    host: tuple[Block, ...] = ()
    """Of each rank, in host memory."""
    first: tuple[Block, ...] = ()
    """Of rank 0 alone, in host memory."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The numbers that every strategy is made of."""

    model: Parameters
    trainable: int
    """Elements that are trained (T)."""
    ranks: int
    width: int
    """Bytes of a weight of DeepSpeed's: 2 in bf16."""
    bf16: bool
    cuda: bool
    accumulates: bool
    activations: int
    """Bytes kept by forward for backward."""
    activation_block: int
    logits: int
    head: int
    """Elements of the output embedding."""
    habits: Habits
    gpu: float | None = None
    """Bytes of a GPU, where that is known."""

    @property
    def share(self) -> int:
        """Trainable elements of one rank under ZeRO (T / ranks)."""
        return -(-self.trainable // self.ranks)

    @property
    def full(self) -> bool:
        """Whether all weights are trained."""
        return self.trainable == self.model.total

    def tensors(self, part: str, width: int, *, of_all: bool = True, blocks: int | None = None) -> Block:
        """All weights, or those trained, tensor by tensor: `width` bytes of each element, in `blocks` bytes each."""
        total = (self.model.total if of_all else self.trainable) * width
        if not of_all and not self.full:
            return Block(part, total, total)  # LoRA's are small
        large = (t for t in self.model.tensors if t * (blocks or width) >= HEAP_BLOCK)
        return Block(part, total, total - width * sum(large))

    def bucket(self, *, touched: int | None = None) -> Block:
        """The buffer in which gradients travel: whole on a GPU, as far as it is written on a CPU."""
        size = BUCKET if self.cuda else min(BUCKET, self.trainable if touched is None else touched)
        return Block("communication buckets", size * self.width)

    def pinned(self, part: str, sizes: Iterable[int]) -> Block:
        """Page-locked blocks in host memory."""
        rounds = self.cuda and self.habits.pinned_powers_of_two
        return Block(part, sum(power_of_two(size) if rounds else size for size in sizes))


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << max(0, size - 1).bit_length()


def one(part: str, size: float) -> Block:
    """A part that is a single block, or of blocks as large."""
    return Block(part, int(size), int(size) if size < HEAP_BLOCK else 0)


def lasting(part: str, size: float) -> Block:
    """A part that is never freed."""
    return Block(part, int(size))


def _forward(s: Sizes) -> list[Block]:
    """Activations, logits and loss: the most that forward and the first moments of backward need."""
    small = s.activations if s.activation_block < HEAP_BLOCK else 0
    loss = [one("logits and loss", s.logits / 3)] * 3
    return [Block("activations", s.activations, small), *loss]


def _first_gradients(s: Sizes) -> list[Block]:
    """All activations, and beside them the gradients of the logits (fp32, and as computed) and of their matrix."""
    logits = [one("logits and loss", s.logits / 3), one("logits and loss", s.logits * s.width / 12)]
    return [_forward(s)[0], *logits, one("gradients", s.width * s.head)]


def _remaining(s: Sizes) -> Block:
    """Activations that are left when the first bucket of gradients is full: backward has reached that far."""
    left = max(0.0, 1 - BUCKET / s.trainable) if s.full else 1.0
    size = int(s.activations * left)
    return Block("activations", size, size if s.activation_block < HEAP_BLOCK else 0)


def plain(s: Sizes, *, snapshot: bool) -> list[Phase]:
    """Phases of the plain engine: one process, or DDP.

    Weights, gradients and AdamW's two moments in fp32 on every rank, 16 bytes per trainable weight (Rajbhandari et al.
    2020, https://arxiv.org/abs/1910.02054, section 3.1, less the half-precision copies). Under autocast the graph
    keeps a bf16 copy of every matrix from its product in forward to that in backward. DDP holds the gradients a second
    time, in buckets (torch.nn.parallel.DistributedDataParallel, gradient_as_bucket_view=False).
    """
    weights, moments = lasting("weights", 4 * s.model.total), lasting("moments", 8 * s.trainable)
    buckets = [lasting("communication buckets", 4 * s.trainable)] if s.ranks > 1 else []
    gradients = s.tensors("gradients", 4, of_all=False)
    broadcast = [one("first broadcast", min(4 * s.model.total, BROADCAST))] if s.ranks > 1 else []
    large = sum(2 * t for t in s.model.tensors if 2 * t >= HEAP_BLOCK)
    casts = [Block("bf16 copies of weights", 2 * s.model.products, max(0, 2 * s.model.products - large))]
    held = [weights, moments, *buckets]
    saving = (s.tensors("copies for saving", 12, of_all=False, blocks=4),) if snapshot else ()
    loaded = (s.tensors("weights as loaded", 4),) if s.cuda else ()
    before = [gradients] if s.accumulates else []
    cast = [one("gradients", 4 * s.head)]
    if not s.bf16:
        casts, cast = [], []
    return [
        Phase(name="loading", device=(weights,), host=loaded),
        Phase(name="engine start", device=(weights, *buckets, *broadcast)),
        Phase(name="forward", device=(*held, *before, *casts, *_forward(s)), first=saving),
        Phase(name="backward", device=(*held, *before, *casts, *_first_gradients(s), *cast), first=saving),
        Phase(name="backward", device=(*held, gradients), first=saving),
        Phase(name="saving", device=tuple(held), first=saving or (loaded if s.cuda else ())),
    ]


def _loading(s: Sizes) -> tuple[Block, ...]:
    """The model in fp32 that DeepSpeed's engine starts from: whole on each rank, or the largest tensor of a share."""
    whole = s.habits.whole_model_per_rank
    return (s.tensors("weights as loaded", 4) if whole else one("weights as loaded", 4 * s.model.largest),)


def _saving(s: Sizes, *, on_device: int) -> dict[str, tuple[Block, ...]]:
    """Host memory while saving: the gathered weights, and device tensors that torch.save copies one by one."""
    whole = s.tensors("gathered to save", 4, of_all=False)
    gathered = whole if s.habits.gather_to_save else one("gathered to save", min(SHARD, whole.bytes))
    copied = (one("copied to save", on_device),) if s.cuda and on_device else ()
    return {"host": copied, "first": (gathered,)}


def _resuming(s: Sizes, *, on_device: int, away: int) -> tuple[Block, ...]:
    """Host memory while resuming: the saved state of each rank, of which moments that lie there become part.

    Parameters
    ----------
    on_device, away : int
        Elements of a rank whose master weights and moments lie on the GPU, and in host memory.
    """
    if not s.habits.reads_states_whole:
        return ()
    return (one("state as read", (12 if s.cuda else 4) * on_device + 4 * away),)


def _started(blocks: list[Block]) -> list[Block]:
    """What is there before the first step, which makes the moments."""
    return [block for block in blocks if block.part != "moments"]


def zero12(s: Sizes, *, stage: int, offload: bool) -> list[Phase]:
    """Phases of ZeRO-1 and ZeRO-2, with the optimizer on the device or in host memory.

    Every rank holds all weights in one flat buffer; master weights and moments, 12 bytes per trainable weight, are
    divided over the ranks (Rajbhandari et al. 2020, sections 5.1 and 5.2). Gradients travel in a bucket and through a
    flat copy of it; stage 1 has them all before that, when backward is over. The step flattens a rank's gradients and
    casts them to fp32; their norm is taken in fp64, tensor by tensor (stage_1_and_2.py: setup_buckets,
    allreduce_bucket, step, get_norm_dtype). Offloaded: master weights, fp32 gradients and a copy of the new weights are
    page-locked, and every gradient passes through buffers as large as the largest tensor (ZeRO-Offload: Ren et al.
    2021, https://arxiv.org/abs/2101.06840; __init__, async_inplace_copy_grad_to_fp32_buffer_from_gpu).
    """
    w, share, all_gradients = s.width, s.share, s.width * s.trainable
    weights = lasting("weights", w * s.model.total)
    state = [lasting("master weights", 4 * share), lasting("moments", 8 * share)]
    largest = s.model.largest if s.full else s.share
    in_bucket = w * min(BUCKET, s.trainable)
    partition = one("gradients", w * share)
    held, host = [weights, *state], []
    if offload:
        buffers = lasting("offload buffers", w * largest)
        held = [weights, buffers]
        host = [
            s.pinned("master weights", [4 * share]),
            s.pinned("gradients", [4 * share]),
            s.pinned("pinned buffers", [w * share, w * largest]),
            state[1],
        ]
        if s.accumulates:
            rounded = s.pinned("", [w * t for t in s.model.tensors]).bytes if s.full else all_gradients
            host.append(lasting("accumulated gradients", rounded / s.ranks))
    carried = {1: [one("gradients", all_gradients)], 2: [partition]}[stage] if s.accumulates and not offload else []
    in_transit = one("communication buckets", in_bucket)
    backward = [s.bucket(), *([_remaining(s)] if stage == 2 else [])]
    if offload:
        backward += [one("fp64 norm", max(in_bucket, 8 * largest))]
    else:
        overflowing = all_gradients > in_bucket or s.accumulates
        backward += [in_transit, *([partition] if overflowing else [])]
        backward += [one("gradients", all_gradients - in_bucket)] if stage == 1 else carried
    gathering = one("communication buckets", w * s.model.total if s.ranks > 1 and not s.cuda else 0)
    casting = w * share + (4 * share if s.bf16 else 0)
    step = [one("optimizer step", max(8 * min(largest, share), casting)), partition]
    if stage == 2 and s.accumulates and s.ranks > 1:
        step += [partition, partition]
    stepping = [gathering] if offload or gathering.bytes > sum(b.bytes for b in step) else step
    moved = [s.tensors("weights as loaded", w)] if s.cuda and s.bf16 and s.habits.whole_model_per_rank else []
    unflattened = s.tensors("weights before flattening", w, of_all=False)
    on_host = s.gpu is not None and weights.bytes + unflattened.bytes > (1 - SPARE) * s.gpu  # DeepSpeed looks before
    before = [unflattened] if s.cuda or s.bf16 else []  # in fp32 they are those that were loaded
    starting = [one("first gradients", 4 * share)]
    gathered = one("gathered to save", 4 * s.model.largest * (2 if s.ranks > 1 else 1))
    saving = _saving(s, on_device=0 if offload else max(4 * share, w * s.model.total // s.ranks))
    resuming = _resuming(s, on_device=0 if offload else share, away=share if offload else 0)
    return [
        Phase(name="loading", host=(*_loading(s), *moved)),
        Phase(name="resuming", device=tuple(held), host=(*host, *resuming)),
        Phase(
            name="engine start",
            device=(weights, *([] if on_host else before)),
            host=(*_loading(s), *(before if on_host else [])),
        ),
        Phase(
            name="engine start",
            device=(*_started(held), *([] if offload else starting)),
            host=(*_loading(s), *_started(host), *(starting if offload else [])),
        ),
        Phase(name="forward", device=(*held, *carried, *_forward(s)), host=tuple(host)),
        Phase(name="backward", device=(*held, *carried, s.bucket(touched=0), *_first_gradients(s)), host=tuple(host)),
        Phase(name="backward", device=(*held, *backward), host=tuple(host)),
        Phase(name="step", device=(*held, *stepping), host=tuple(host)),
        Phase(name="saving", device=(*held, gathered), host=(*host, *saving["host"]), first=saving["first"]),
    ]


def sub_groups(s: Sizes, size: int) -> list[int]:
    """Elements of each group of weights that ZeRO-3 steps together on one rank (stage3.py: _create_fp16_sub_groups)."""
    if not s.full:
        return [s.share]
    groups, current = [], 0
    for tensor in s.model.tensors:
        current += -(-tensor // s.ranks)
        if current >= size:
            groups.append(current)
            current = 0
    vectors = s.model.total - sum(s.model.tensors)
    return [*groups, *([current] if current else []), -(-vectors // s.ranks)]


def zero3(
    s: Sizes, *, ratio: float = 0.0, host_weights: bool = False, nvme: bool = False, sub_group: int = SUB_GROUP
) -> list[Phase]:
    """Phases of ZeRO-3, with a part of the optimizer in host memory or on NVMe, and the weights in host memory.

    Weights, gradients, master weights and moments are divided over the ranks, 16 bytes per weight in bf16
    (Rajbhandari et al. 2020, section 5.3); up to `LIVE` weights are gathered at a time. Gradients travel in a bucket
    and through a copy in the order of the ranks (coalesced_collectives.py: reduce_scatter_coalesced); the step works
    on one sub-group after the other. Offloaded (ZeRO-Infinity: Rajbhandari et al. 2021,
    https://arxiv.org/abs/2104.07857): gradients lie in host memory twice, as they came and in fp32, and with
    ``ratio`` below 1 the first sub-groups stay on the GPU (stage3.py: _create_fp32_partitions,
    initialize_optimizer_states, subgroup_to_device).

    Parameters
    ----------
    ratio : float
        Part of the optimizer that is offloaded; 0: none.
    """
    w, share = s.width, s.share
    groups = sub_groups(s, sub_group)
    kept = int((1 - ratio) * len(groups)) if ratio else len(groups)
    on_device, away = groups[:kept], groups[kept:]
    mine, theirs = sum(on_device), sum(away)
    weights = lasting("weights", w * -(-s.model.total // s.ranks))
    held = [s.bucket(), lasting("master weights", 4 * mine), lasting("moments", 8 * mine)]
    host: list[Block] = []
    if ratio:
        held.append(lasting("gradients", 4 * mine))
        host.append(s.pinned("pinned buffers", [w * share]))
    else:
        held.append(lasting("gradients", w * share))
    if nvme:
        host.append(s.pinned("pinned buffers", [4 * max(groups)] * NVME_BUFFERS))
    elif away:
        host += [lasting("master weights", 4 * theirs), lasting("moments", 8 * theirs)]
        host.append(s.pinned("gradients", [4 * group for group in away]))
    if host_weights:
        host.append(s.pinned("weights", [weights.bytes]))
        if s.cuda and s.habits.pinned_powers_of_two:  # pinned one by one at first; what is freed stays with torch
            host.append(s.pinned("pinned buffers", [w * -(-t // s.ranks) for t in s.model.tensors]))
    else:
        held.append(weights)
    gathers = s.ranks > 1 or (host_weights and s.cuda)
    live = w * min(s.model.total, LIVE) if gathers else 0
    gathered = Block("gathered weights", live, s.tensors("", w).small if live == w * s.model.total else 0)
    ahead = one("prefetch buffers", w * PREFETCH if gathers and s.cuda else 0)
    in_bucket = w * min(BUCKET, s.trainable)
    copies = one("communication buckets", in_bucket * (1 if s.cuda else 2))
    last = gathered if s.trainable > BUCKET else one("gathered weights", w * s.head if gathers else 0)
    backward = [copies, last, _remaining(s)]
    group = max(groups)
    norm = 8 * -(-s.model.largest // s.ranks)
    if ratio:
        step = [one("optimizer step", max(norm, 8 * group if on_device else 0))]
    else:
        step = [one("optimizer step", max(norm, w * group + (4 * group if s.bf16 else 0)))]
    converting = one("first gradients", 8 * group)
    full = one("gathered to save", 4 * s.model.largest * (2 if s.ranks > 1 and not s.cuda else 1))
    saving = _saving(s, on_device=4 * group if mine else 0)
    cast = [s.tensors("weights as loaded", w)] if s.bf16 and s.habits.whole_model_per_rank else []
    return [
        Phase(name="loading", host=(*_loading(s), *cast)),
        Phase(name="resuming", device=tuple(held), host=(*host, *_resuming(s, on_device=mine, away=theirs))),
        Phase(name="engine start", device=(*_started(held), converting), host=(*_loading(s), *_started(host))),
        Phase(name="forward", device=(*held, gathered, ahead, *_forward(s)), host=tuple(host)),
        Phase(name="backward", device=(*held, gathered, ahead, *_first_gradients(s)), host=tuple(host)),
        Phase(name="backward", device=(*held, *backward), host=tuple(host)),
        Phase(name="step", device=(*held, *step), host=tuple(host)),
        Phase(name="saving", device=(*held, full), host=(*host, *saving["host"]), first=saving["first"]),
    ]
