"""Phases of a run under ZeRO: what the DeepSpeed engine of `wellread.train` has in memory in each phase.

They describe DeepSpeed 0.19.8. Its files are cited as stage_1_and_2.py and stage3.py (both in deepspeed/runtime/zero)
and swap_tensor/*.py (in deepspeed/runtime).
"""

from __future__ import annotations

from wellread.models.tensors import SHARD_BYTES
from wellread.planning.phases import (
    BUCKET,
    LIVE,
    NVME_BUFFERS,
    NVME_IN_HOST,
    NVME_POOL,
    PREFETCH,
    SPARE,
    SUB_GROUP,
    Block,
    Phase,
    Sizes,
    first_gradients,
    forward,
    lasting,
    loading,
    one,
    read,
    remaining,
    shard,
)


def _saving(
    s: Sizes,
    resident: list[Block],
    host: list[Block],
    *,
    gathered_copies: int,
    file: int,
    on_device: int,
    freed: int = 0,
) -> list[Phase]:
    """Saving under ZeRO: the weights, gathered one by one, then the state.

    Every rank takes part in gathering and copies the result to the host, where rank 0 collects it for its shard
    (DeepSpeedEngine._saved). torch.save copies tensors from a GPU to the host, block by block.

    Parameters
    ----------
    gathered_copies : int
        Number of fp32 copies of a weight on the device while it is gathered.
    file : int
        Bytes of the weights that rank 0 saves together with the state.
    on_device : int
        Bytes of the largest block of a rank's state that is on the device.
    freed : int
        On a CPU: bytes of small blocks that bf16 weights have freed; fp32 weights do not fit into them.
    """
    gathered = one("gathered to save", 4 * s.model.largest)
    copies = (gathered, gathered) if s.cuda else (gathered,)
    gathering = Phase(
        name="saving",
        device=(*resident, *[gathered] * gathered_copies),
        host=(*host, *copies),
        first=(shard(s, counted=gathered.bytes), Block("too small to use again", freed, freed)),
    )
    if not s.cuda:
        return [gathering]
    copied = one("copied to save", on_device)
    return [
        gathering,
        Phase(name="saving", device=tuple(resident), host=tuple(host), first=(one("copied to save", file),)),
        Phase(name="saving", device=tuple(resident), host=(*host, copied)),
    ]


def _started(blocks: list[Block]) -> list[Block]:
    """The blocks that exist before the first step: all but the moments, which the first step allocates."""
    return [block for block in blocks if block.part != "moments"]


def zero12(s: Sizes, *, stage: int) -> list[Phase]:
    """Phases of ZeRO-1 and ZeRO-2, with the optimizer on the device or in host memory.

    Every rank has all weights in one flat buffer. Master weights and moments, 12 bytes per trainable weight, are
    partitioned over the ranks (Rajbhandari et al. 2020, sections 5.1 and 5.2). Gradients are reduced in a bucket and a
    flat copy of it; in stage 1, all gradients exist before that, at the end of backward. The step flattens the
    gradients of a rank and casts them to fp32, unless they were added up in one flat buffer in fp32 (stage 2,
    _build_compact_grad_partition_buffer); their norm is computed in fp64, tensor by tensor (stage_1_and_2.py:
    __init__, allreduce_bucket, step, get_norm_dtype). With offloading, master weights, fp32 gradients and a copy of the
    new weights are page-locked, and every gradient passes through buffers as large as the largest tensor (ZeRO-Offload:
    Ren et al. 2021, https://arxiv.org/abs/2101.06840; __init__, async_inplace_copy_grad_to_fp32_buffer_from_gpu).
    """
    w, share = s.width, s.share
    weights = lasting("weights", w * s.model.total)
    unflattened = s.tensors("weights before flattening", w, of_all=False)
    resident, host = _flat_state(s, weights)
    carried: list[Block] = []
    if s.accumulates and not s.offloaded:
        carried = [one("gradients", w * s.trainable if stage == 1 else s.gradient_width * share)]
    return [
        loading(s, weights),
        *_flattening(s, weights, unflattened, resident, host),
        Phase(name="forward", device=(*resident, *carried, *forward(s)), host=tuple(host)),
        Phase(
            name="backward",
            device=(*resident, *carried, s.bucket(touched=0), *_second_bucket(s, stage, 0), *first_gradients(s)),
            host=tuple(host),
        ),
        Phase(name="backward", device=(*resident, *_backward_end(s, stage, carried)), host=tuple(host)),
        Phase(name="step", device=(*resident, *_flat_step(s, stage)), host=tuple(host)),
        *_saving(
            s,
            resident,
            host,
            gathered_copies=1,
            file=weights.bytes,
            on_device=0 if s.offloaded else 4 * share,
            freed=unflattened.small if s.bf16 and not s.cuda else 0,
        ),
    ]


def _flat_state(s: Sizes, weights: Block) -> tuple[list[Block], list[Block]]:
    """What is always in memory under ZeRO-1 and 2: on the device, and in host memory."""
    w, share = s.width, s.share
    state = [lasting("master weights", 4 * share), lasting("moments", 8 * share)]
    if not s.offloaded:
        return [weights, *state], []
    largest = s.largest_trained
    host = [*state, lasting("gradients", 4 * share), lasting("pinned buffers", w * (share + largest))]
    if s.accumulates:
        host.append(lasting("accumulated gradients", w * share))
    return [weights, lasting("offload buffers", w * largest)], host


def _flattening(
    s: Sizes, weights: Block, unflattened: Block, resident: list[Block], host: list[Block]
) -> tuple[Phase, Phase]:
    """Start of the engine under ZeRO-1 and 2: the weights are flattened, then a rank's partition is copied and cast."""
    # DeepSpeed checks the free GPU memory, and flattens on the host when there is too little.
    on_host = s.gpu is not None and weights.bytes + unflattened.bytes > (1 - SPARE) * s.gpu
    flattening = Phase(name="engine start", device=(weights, unflattened), first=read(s))
    if on_host:
        flattening = Phase(name="engine start", device=(weights,), host=(unflattened, unflattened), first=read(s))
    cast = one("weights before casting", s.width * s.share)
    casting = (cast,) if s.offloaded else (one("first gradients", 4 * s.share),)
    casting_phase = Phase(
        name="engine start",
        device=(*_started(resident), *casting),
        host=(*_started(host), *([cast] if s.offloaded else [])),
        first=read(s),
    )
    return flattening, casting_phase


def _backward_end(s: Sizes, stage: int, carried: list[Block]) -> list[Block]:
    """Gradients and communication buckets at the end of backward under ZeRO-1 and 2."""
    w, all_gradients = s.width, s.width * s.trainable
    more = max(0, s.trainable - BUCKET)
    blocks = [s.bucket(), *_second_bucket(s, stage, more), *([remaining(s)] if stage == 2 else [])]
    if s.offloaded:
        # The last gradient is that of the embedding; autograd keeps it until its hook has reduced its bucket.
        norm = one("fp64 norm", max(s.in_bucket, 8 * s.largest_trained))
        return [*blocks, norm, one("gradients", w * s.head if s.trained.tensors else 0)]
    blocks.append(one("communication buckets", s.in_bucket))
    if s.flat_gradients:
        added = one("gradients", s.gradient_width * min(s.largest_trained, s.share))  # cast before it is added
        return [*blocks, one("gradients", s.gradient_width * s.share), added]
    if all_gradients > s.in_bucket or s.accumulates:
        blocks.append(one("gradients", w * s.share))
    return [*blocks, *([one("gradients", all_gradients - s.in_bucket)] if stage == 1 else carried)]


def _second_bucket(s: Sizes, stage: int, touched: int) -> list[Block]:
    """The bucket that zero2 fills while the first is reduced (overlap_comm; stage_1_and_2.py: setup_buckets)."""
    return [s.bucket(touched=touched)] if stage == 2 and not s.offloaded else []


def _flat_step(s: Sizes, stage: int) -> list[Block]:
    """What the step needs under ZeRO-1 and 2: buffers for casting and the norm, or the weights gathered after it."""
    w, share, partition = s.width, s.share, one("gradients", s.gradient_width * s.share)
    gathering = one("communication buckets", w * s.model.total if s.ranks > 1 and not s.cuda else 0)
    casting = 0 if s.flat_gradients else w * share + (4 * share if s.bf16 else 0)
    step = [one("optimizer step", max(8 * min(s.largest_trained, share), casting)), partition]
    if stage == 2 and s.accumulates and s.ranks > 1 and not s.flat_gradients:
        step += [partition, partition]
    return [gathering] if s.offloaded or gathering.bytes > sum(b.bytes for b in step) else step


def sub_groups(s: Sizes, size: int) -> list[int]:
    """Elements of each sub-group, which ZeRO-3 updates together on one rank (stage3.py: _create_fp16_sub_groups)."""
    if not s.trained.tensors:
        return [s.share]
    groups, current = [], 0
    for tensor in s.trained.tensors:
        current += -(-tensor // s.ranks)
        if current >= size:
            groups.append(current)
            current = 0
    vectors = s.trainable - sum(s.trained.tensors)
    return [*groups, *([current] if current else []), -(-vectors // s.ranks)]


def zero3(s: Sizes, *, host_weights: bool = False, nvme: bool = False, sub_group: int = SUB_GROUP) -> list[Phase]:
    """Phases of ZeRO-3; parts of the optimizer, and the weights, may be in host memory or on NVMe.

    Weights, gradients, master weights and moments are partitioned over the ranks, 16 bytes per weight in bf16
    (Rajbhandari et al. 2020, section 5.3); up to `LIVE` weights are gathered at a time. Gradients are reduced in a
    bucket and a copy of it in rank order (coalesced_collectives.py: reduce_scatter_coalesced). The step processes one
    sub-group after the other. With offloading (ZeRO-Infinity: Rajbhandari et al. 2021,
    https://arxiv.org/abs/2104.07857), gradients are in host memory twice, as received and in fp32. With partial
    offloading, the first sub-groups stay on the GPU (stage3.py: _create_fp32_partitions, initialize_optimizer_states,
    subgroup_to_device).
    """
    groups = sub_groups(s, sub_group)
    group, device_groups = max(groups), int((1 - s.offloaded) * len(groups))
    device_elements, host_elements = sum(groups[:device_groups]), sum(groups[device_groups:])
    weights = lasting("weights", s.width * -(-s.model.total // s.ranks))
    resident = _divided_on_device(s, device_elements, None if host_weights else weights)
    if nvme:
        host = [lasting("gradients", s.gradient_width * s.share), *_nvme_buffers(s, group, weights.bytes)]
    else:
        host = _divided_on_host(s, host_elements, weights if host_weights else None)
    gathers = s.ranks > 1 or (host_weights and s.cuda)
    gathered, ahead = _gathered(s, gathers)
    # Weights are copied into one block on the host, then cast, sub-group by sub-group.
    flattening = Block("weights before flattening", weights.bytes if s.cuda and not nvme else 0)
    casting = one("first gradients", 8 * group)
    return [
        Phase(name="loading", device=() if host_weights else (weights,), host=(flattening,), first=read(s)),
        Phase(
            name="engine start",
            device=(*_started(resident), *([] if nvme else [casting])),
            host=(*_started(host), *([casting] if nvme else [])),
            first=read(s),
        ),
        Phase(name="forward", device=(*resident, gathered, ahead, *forward(s)), host=tuple(host)),
        Phase(name="backward", device=(*resident, gathered, ahead, *first_gradients(s)), host=tuple(host)),
        Phase(name="backward", device=(*resident, *_reduced(s, gathered, gathers, nvme=nvme)), host=tuple(host)),
        Phase(
            name="step",
            device=(*resident, _group_step(s, group, device_elements)),
            host=(*host, *([one("first moments", 8 * group)] if nvme else [])),
        ),
        *_saving(
            s,
            resident,
            host,
            gathered_copies=2 if s.ranks > 1 and not s.cuda else 1,
            file=0,
            on_device=4 * group * (device_elements > 0),
        ),
        *([_parts(s, resident, host)] if nvme else []),
    ]


def _divided_on_device(s: Sizes, device_elements: int, weights: Block | None) -> list[Block]:
    """What is always on a rank's device under ZeRO-3, with the optimizer state of `device_elements` weights."""
    gradients = lasting("gradients", 4 * device_elements if s.offloaded else s.gradient_width * s.share)
    state = [lasting("master weights", 4 * device_elements), lasting("moments", 8 * device_elements), gradients]
    return [s.bucket(), *state, *([weights] if weights else [])]


def _divided_on_host(s: Sizes, host_elements: int, weights: Block | None) -> list[Block]:
    """What a rank always has in host memory under ZeRO-3, with the optimizer state of `host_elements` weights."""
    if not s.offloaded:
        return []
    state = [
        lasting("master weights", 4 * host_elements),
        lasting("moments", 8 * host_elements),
        lasting("gradients", 4 * host_elements),
    ]
    return [lasting("gradients", s.gradient_width * s.share), *state, *([weights] if weights else [])]


def _gathered(s: Sizes, gathers: bool) -> tuple[Block, Block]:
    """Weights that ZeRO-3 has gathered from all ranks, and its prefetch buffers."""
    live = s.width * min(s.model.total, LIVE) if gathers else 0
    small = s.tensors("", s.width).small if live == s.width * s.model.total else 0
    ahead = one("prefetch buffers", s.width * PREFETCH if gathers and s.cuda else 0)
    return Block("gathered weights", live, small), ahead


def _reduced(s: Sizes, gathered: Block, gathers: bool, *, nvme: bool) -> list[Block]:
    """What the end of backward needs under ZeRO-3: communication buckets, gathered weights and the last gradient."""
    w = s.width
    copies = one("communication buckets", s.in_bucket * (1 if s.cuda else 2))
    last = gathered if s.trainable > BUCKET else one("gathered weights", w * s.head if gathers else 0)
    # The last gradient, as in `_backward_end`.
    blocks = [copies, last, remaining(s), one("gradients", w * s.head if s.trained.tensors else 0)]
    if s.bf16 and (nvme or s.flat_gradients):  # a bucket's gradients are cast to fp32: before they are written or added
        blocks.append(one("gradients", 4 * min(BUCKET, s.trainable) // s.ranks))
    return blocks


def _group_step(s: Sizes, group: int, device_elements: int) -> Block:
    """What the step of one sub-group needs on the device under ZeRO-3; or the gradient norm before it, if more."""
    casting = 4 * group if s.flat_gradients else s.width * group + (4 * group if s.bf16 else 0)
    if s.offloaded:
        casting = 8 * group if device_elements else 0
    return one("optimizer step", max(8 * -(-s.model.largest // s.ranks), casting))


def _nvme_buffers(s: Sizes, group: int, weights: int) -> list[Block]:
    """What zero3-nvme keeps in host memory: buffers, and the first weights of a rank.

    Sources: swap_tensor/utils.py, SwapBufferManager; swap_tensor/partitioned_param_swapper.py, _configure_aio and
    reserve_partitioned_swap_space; stage3.py, _create_param_groups_fp16_flat_cpu_memory.
    """
    in_host = min(weights, s.width * NVME_IN_HOST)
    pool = NVME_POOL * s.width * -(-s.model.largest // s.ranks)
    return [
        lasting("weights", in_host),
        lasting("NVMe buffers", 4 * group * NVME_BUFFERS + pool + (s.width * group if weights > in_host else 0)),
    ]


def _parts(s: Sizes, resident: list[Block], host: list[Block]) -> Phase:
    """Saving under zero3-nvme: each rank writes its moments, one shard per file (`wellread.train.engines.moments`)."""
    part = 4 * -(-s.model.largest // s.ranks)
    return Phase(
        name="saving", device=tuple(resident), host=(*host, one("parts to save", min(8 * s.share, SHARD_BYTES + part)))
    )
