"""Phases of a run under ZeRO: what the DeepSpeed engine of `wellread.train` has in memory when.

They describe DeepSpeed 0.19.8, whose files are named as stage_1_and_2.py, stage3.py (both in deepspeed/runtime/zero)
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
    s: Sizes, held: list[Block], host: list[Block], *, whole: int, file: int, on_device: int, freed: int = 0
) -> list[Phase]:
    """Saving under ZeRO: the weights, gathered one by one, then the states.

    Every rank takes part in gathering and copies what it gets to the host, where rank 0 keeps it for its shard
    (DeepSpeedEngine._saved). torch.save copies what lies on a GPU to the host, block by block.

    Parameters
    ----------
    whole : int
        fp32 copies of a weight on the device while it is gathered.
    file : int
        Bytes of the weights that rank 0 saves beside the states.
    on_device : int
        Bytes of the largest block of a rank's state that is on the device.
    freed : int
        Bytes that bf16 weights left in small blocks on a CPU: fp32 ones do not fit there.
    """
    gathered = one("gathered to save", 4 * s.model.largest)
    copies = (gathered, gathered) if s.cuda else (gathered,)
    gathering = Phase(
        name="saving",
        device=(*held, *[gathered] * whole),
        host=(*host, *copies),
        first=(shard(s, besides=gathered.bytes), Block("too small to use again", freed, freed)),
    )
    if not s.cuda:
        return [gathering]
    copied = one("copied to save", on_device)
    return [
        gathering,
        Phase(name="saving", device=tuple(held), host=tuple(host), first=(one("copied to save", file),)),
        Phase(name="saving", device=tuple(held), host=(*host, copied)),
    ]


def _started(blocks: list[Block]) -> list[Block]:
    """What is there before the first step, which makes the moments."""
    return [block for block in blocks if block.part != "moments"]


def zero12(s: Sizes, *, stage: int) -> list[Phase]:
    """Phases of ZeRO-1 and ZeRO-2, with the optimizer on the device or in host memory.

    Every rank holds all weights in one flat buffer; master weights and moments, 12 bytes per trainable weight, are
    divided over the ranks (Rajbhandari et al. 2020, sections 5.1 and 5.2). Gradients travel in a bucket and through a
    flat copy of it; stage 1 has them all before that, when backward is over. The step flattens a rank's gradients and
    casts them to fp32; their norm is taken in fp64, tensor by tensor (stage_1_and_2.py: __init__,
    allreduce_bucket, step, get_norm_dtype). Offloaded: master weights, fp32 gradients and a copy of the new weights are
    page-locked, and every gradient passes through buffers as large as the largest tensor (ZeRO-Offload: Ren et al.
    2021, https://arxiv.org/abs/2101.06840; __init__, async_inplace_copy_grad_to_fp32_buffer_from_gpu).
    """
    w, share = s.width, s.share
    weights = lasting("weights", w * s.model.total)
    unflattened = s.tensors("weights before flattening", w, of_all=False)
    held, host = _flat_state(s, weights)
    carried: list[Block] = []
    if s.accumulates and not s.offloaded:
        carried = [one("gradients", w * (s.trainable if stage == 1 else share))]
    return [
        loading(s, weights),
        *_flattening(s, weights, unflattened, held, host),
        Phase(name="forward", device=(*held, *carried, *forward(s)), host=tuple(host)),
        Phase(name="backward", device=(*held, *carried, s.bucket(touched=0), *first_gradients(s)), host=tuple(host)),
        Phase(name="backward", device=(*held, *_sent(s, stage, carried)), host=tuple(host)),
        Phase(name="step", device=(*held, *_flat_step(s, stage)), host=tuple(host)),
        *_saving(
            s,
            held,
            host,
            whole=1,
            file=weights.bytes,
            on_device=0 if s.offloaded else 4 * share,
            freed=unflattened.small if s.bf16 and not s.cuda else 0,
        ),
    ]


def _flat_state(s: Sizes, weights: Block) -> tuple[list[Block], list[Block]]:
    """What is held all the time under ZeRO-1 and 2, on the device and in host memory."""
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
    s: Sizes, weights: Block, unflattened: Block, held: list[Block], host: list[Block]
) -> tuple[Phase, Phase]:
    """Start of the engine under ZeRO-1 and 2: weights become one buffer, then a part of it is copied and cast."""
    # DeepSpeed looks for room before it flattens.
    on_host = s.gpu is not None and weights.bytes + unflattened.bytes > (1 - SPARE) * s.gpu
    first = Phase(name="engine start", device=(weights, unflattened), first=read(s))
    if on_host:
        first = Phase(name="engine start", device=(weights,), host=(unflattened, unflattened), first=read(s))
    cast = one("weights before casting", s.width * s.share)
    casting = (cast,) if s.offloaded else (one("first gradients", 4 * s.share),)
    second = Phase(
        name="engine start",
        device=(*_started(held), *casting),
        host=(*_started(host), *([cast] if s.offloaded else [])),
        first=read(s),
    )
    return first, second


def _sent(s: Sizes, stage: int, carried: list[Block]) -> list[Block]:
    """What the end of backward needs under ZeRO-1 and 2: gradients, and the buckets in which they are sent."""
    w, all_gradients = s.width, s.width * s.trainable
    sent = [s.bucket(), *([remaining(s)] if stage == 2 else [])]
    if s.offloaded:
        # The last gradient is the embedding's; autograd holds it until its hook has sent the bucket that it is in.
        norm = one("fp64 norm", max(s.in_bucket, 8 * s.largest_trained))
        return [*sent, norm, one("gradients", w * s.head if s.full else 0)]
    sent.append(one("communication buckets", s.in_bucket))
    if all_gradients > s.in_bucket or s.accumulates:
        sent.append(one("gradients", w * s.share))
    return [*sent, *([one("gradients", all_gradients - s.in_bucket)] if stage == 1 else carried)]


def _flat_step(s: Sizes, stage: int) -> list[Block]:
    """What the step needs under ZeRO-1 and 2: casting and the norm, or the weights that are gathered after it."""
    w, share, partition = s.width, s.share, one("gradients", s.width * s.share)
    gathering = one("communication buckets", w * s.model.total if s.ranks > 1 and not s.cuda else 0)
    casting = w * share + (4 * share if s.bf16 else 0)
    step = [one("optimizer step", max(8 * min(s.largest_trained, share), casting)), partition]
    if stage == 2 and s.accumulates and s.ranks > 1:
        step += [partition, partition]
    return [gathering] if s.offloaded or gathering.bytes > sum(b.bytes for b in step) else step


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


def zero3(s: Sizes, *, host_weights: bool = False, nvme: bool = False, sub_group: int = SUB_GROUP) -> list[Phase]:
    """Phases of ZeRO-3, with a part of the optimizer in host memory or on NVMe, and the weights in host memory.

    Weights, gradients, master weights and moments are divided over the ranks, 16 bytes per weight in bf16
    (Rajbhandari et al. 2020, section 5.3); up to `LIVE` weights are gathered at a time. Gradients travel in a bucket
    and through a copy in the order of the ranks (coalesced_collectives.py: reduce_scatter_coalesced); the step works
    on one sub-group after the other. Offloaded (ZeRO-Infinity: Rajbhandari et al. 2021,
    https://arxiv.org/abs/2104.07857): gradients lie in host memory twice, as they came and in fp32, and where only a
    part is offloaded the first sub-groups stay on the GPU (stage3.py: _create_fp32_partitions,
    initialize_optimizer_states, subgroup_to_device).
    """
    groups = sub_groups(s, sub_group)
    group, kept = max(groups), int((1 - s.offloaded) * len(groups))
    mine, theirs = sum(groups[:kept]), sum(groups[kept:])
    weights = lasting("weights", s.width * -(-s.model.total // s.ranks))
    held = _divided_on_device(s, mine, None if host_weights else weights)
    if nvme:
        host = [lasting("gradients", s.width * s.share), *_nvme_buffers(s, group, weights.bytes)]
    else:
        host = _divided_on_host(s, theirs, weights if host_weights else None)
    gathers = s.ranks > 1 or (host_weights and s.cuda)
    gathered, ahead = _gathered(s, gathers)
    # Weights are put into one block, by way of the host, then cast, sub-group by sub-group.
    flattening = Block("weights before flattening", weights.bytes if s.cuda and not nvme else 0)
    casting = one("first gradients", 8 * group)
    return [
        Phase(name="loading", device=() if host_weights else (weights,), host=(flattening,), first=read(s)),
        Phase(
            name="engine start",
            device=(*_started(held), *([] if nvme else [casting])),
            host=(*_started(host), *([casting] if nvme else [])),
            first=read(s),
        ),
        Phase(name="forward", device=(*held, gathered, ahead, *forward(s)), host=tuple(host)),
        Phase(name="backward", device=(*held, gathered, ahead, *first_gradients(s)), host=tuple(host)),
        Phase(name="backward", device=(*held, *_reduced(s, gathered, gathers, nvme=nvme)), host=tuple(host)),
        Phase(
            name="step",
            device=(*held, _group_step(s, group, mine)),
            host=(*host, *([one("first moments", 8 * group)] if nvme else [])),
        ),
        *_saving(s, held, host, whole=2 if s.ranks > 1 and not s.cuda else 1, file=0, on_device=4 * group * (mine > 0)),
        *([_parts(s, held, host)] if nvme else []),
    ]


def _divided_on_device(s: Sizes, mine: int, weights: Block | None) -> list[Block]:
    """What a rank holds on its device all the time under ZeRO-3, where the optimizer of `mine` elements is there."""
    gradients = lasting("gradients", 4 * mine if s.offloaded else s.width * s.share)
    state = [lasting("master weights", 4 * mine), lasting("moments", 8 * mine), gradients]
    return [s.bucket(), *state, *([weights] if weights else [])]


def _divided_on_host(s: Sizes, theirs: int, weights: Block | None) -> list[Block]:
    """What a rank holds in host memory all the time under ZeRO-3, where the optimizer of `theirs` elements is there."""
    if not s.offloaded:
        return []
    state = [lasting("master weights", 4 * theirs), lasting("moments", 8 * theirs), lasting("gradients", 4 * theirs)]
    return [lasting("gradients", s.width * s.share), *state, *([weights] if weights else [])]


def _gathered(s: Sizes, gathers: bool) -> tuple[Block, Block]:
    """Weights of all ranks that ZeRO-3 has gathered, and the buffers of those that it fetches ahead."""
    live = s.width * min(s.model.total, LIVE) if gathers else 0
    small = s.tensors("", s.width).small if live == s.width * s.model.total else 0
    ahead = one("prefetch buffers", s.width * PREFETCH if gathers and s.cuda else 0)
    return Block("gathered weights", live, small), ahead


def _reduced(s: Sizes, gathered: Block, gathers: bool, *, nvme: bool) -> list[Block]:
    """What the end of backward needs under ZeRO-3: the buckets in which gradients are sent, and the last gradient."""
    w = s.width
    copies = one("communication buckets", s.in_bucket * (1 if s.cuda else 2))
    last = gathered if s.trainable > BUCKET else one("gathered weights", w * s.head if gathers else 0)
    # The last gradient, as in `_sent`.
    found = [copies, last, remaining(s), one("gradients", w * s.head if s.full else 0)]
    if nvme and s.bf16:  # a bucket's gradients are cast before they are written
        found.append(one("gradients", 4 * min(BUCKET, s.trainable) // s.ranks))
    return found


def _group_step(s: Sizes, group: int, mine: int) -> Block:
    """What the step of a sub-group needs on the device under ZeRO-3, or the norm of the gradients before it."""
    casting = s.width * group + (4 * group if s.bf16 else 0)
    if s.offloaded:
        casting = 8 * group if mine else 0
    return one("optimizer step", max(8 * -(-s.model.largest // s.ranks), casting))


def _nvme_buffers(s: Sizes, group: int, weights: int) -> list[Block]:
    """What zero3-nvme keeps in host memory: buffers, and the first weights.

    Sources: swap_tensor/utils.py, SwapBufferManager; swap_tensor/partitioned_param_swapper.py, _configure_aio and
    reserve_partitioned_swap_space; stage3.py, _create_param_groups_fp16_flat_cpu_memory.
    """
    in_host = min(weights, s.width * NVME_IN_HOST)
    pool = NVME_POOL * s.width * -(-s.model.largest // s.ranks)
    return [
        lasting("weights", in_host),
        lasting("NVMe buffers", 4 * group * NVME_BUFFERS + pool + (s.width * group if weights > in_host else 0)),
    ]


def _parts(s: Sizes, held: list[Block], host: list[Block]) -> Phase:
    """Saving under zero3-nvme: each rank's moments, in files of a shard (`wellread.train.engines.moments`)."""
    part = 4 * -(-s.model.largest // s.ranks)
    return Phase(
        name="saving", device=tuple(held), host=(*host, one("parts to save", min(8 * s.share, SHARD_BYTES + part)))
    )
