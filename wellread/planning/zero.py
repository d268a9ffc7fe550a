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


def zero12(s: Sizes, *, stage: int, offload: bool) -> list[Phase]:
    """Phases of ZeRO-1 and ZeRO-2, with the optimizer on the device or in host memory.

    Every rank holds all weights in one flat buffer; master weights and moments, 12 bytes per trainable weight, are
    divided over the ranks (Rajbhandari et al. 2020, sections 5.1 and 5.2). Gradients travel in a bucket and through a
    flat copy of it; stage 1 has them all before that, when backward is over. The step flattens a rank's gradients and
    casts them to fp32; their norm is taken in fp64, tensor by tensor (stage_1_and_2.py: __init__,
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
        host = [*state, lasting("gradients", 4 * share), lasting("pinned buffers", w * (share + largest))]
        if s.accumulates:
            host.append(lasting("accumulated gradients", w * share))
    carried = {1: [one("gradients", all_gradients)], 2: [partition]}[stage] if s.accumulates and not offload else []
    in_transit = one("communication buckets", in_bucket)
    backward = [s.bucket(), *([remaining(s)] if stage == 2 else [])]
    if offload:
        # The last gradient is the embedding's; autograd holds it until its hook has sent the bucket that it is in.
        backward += [one("fp64 norm", max(in_bucket, 8 * largest)), one("gradients", w * s.head if s.full else 0)]
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
    unflattened = s.tensors("weights before flattening", w, of_all=False)
    on_host = s.gpu is not None and weights.bytes + unflattened.bytes > (1 - SPARE) * s.gpu  # DeepSpeed looks before
    flattening = {"device": (weights,), "host": (unflattened, unflattened), "first": read(s)}
    if not on_host:
        flattening = {"device": (weights, unflattened), "first": read(s)}
    # A part of the flat weights is copied, then cast.
    cast = [one("weights before casting", w * share)]
    first = [] if offload else [one("first gradients", 4 * share)]
    return [
        loading(s, weights),
        Phase(name="engine start", **flattening),
        Phase(
            name="engine start",
            device=(*_started(held), *(first or cast)),
            host=(*_started(host), *(cast if offload else [])),
            first=read(s),
        ),
        Phase(name="forward", device=(*held, *carried, *forward(s)), host=tuple(host)),
        Phase(name="backward", device=(*held, *carried, s.bucket(touched=0), *first_gradients(s)), host=tuple(host)),
        Phase(name="backward", device=(*held, *backward), host=tuple(host)),
        Phase(name="step", device=(*held, *stepping), host=tuple(host)),
        *_saving(
            s,
            held,
            host,
            whole=1,
            file=weights.bytes,
            on_device=0 if offload else 4 * share,
            freed=unflattened.small if s.bf16 and not s.cuda else 0,
        ),
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
    group = max(groups)
    kept = int((1 - ratio) * len(groups)) if ratio else len(groups)
    on_device, away = groups[:kept], groups[kept:]
    mine, theirs = sum(on_device), sum(away)
    weights = lasting("weights", w * -(-s.model.total // s.ranks))
    held = [s.bucket(), lasting("master weights", 4 * mine), lasting("moments", 8 * mine)]
    host: list[Block] = []
    stepping_host: list[Block] = []
    if ratio:
        held.append(lasting("gradients", 4 * mine))
        host.append(lasting("gradients", w * share))
    else:
        held.append(lasting("gradients", w * share))
    if nvme:
        host += _nvme_buffers(s, group, weights.bytes)
        stepping_host = [one("first moments", 8 * group)]
    elif away:
        host += [lasting("master weights", 4 * theirs), lasting("moments", 8 * theirs)]
        host.append(lasting("gradients", 4 * theirs))
    if host_weights and not nvme:
        host.append(weights)
    elif not host_weights:
        held.append(weights)
    gathers = s.ranks > 1 or (host_weights and s.cuda)
    live = w * min(s.model.total, LIVE) if gathers else 0
    gathered = Block("gathered weights", live, s.tensors("", w).small if live == w * s.model.total else 0)
    ahead = one("prefetch buffers", w * PREFETCH if gathers and s.cuda else 0)
    in_bucket = w * min(BUCKET, s.trainable)
    copies = one("communication buckets", in_bucket * (1 if s.cuda else 2))
    last = gathered if s.trainable > BUCKET else one("gathered weights", w * s.head if gathers else 0)
    # The last gradient, as in `zero12`.
    backward = [copies, last, remaining(s), one("gradients", w * s.head if s.full else 0)]
    if nvme and s.bf16:  # a bucket's gradients are cast before they are written
        backward.append(one("gradients", 4 * min(BUCKET, s.trainable) // s.ranks))
    norm = 8 * -(-s.model.largest // s.ranks)
    if ratio:
        step = [one("optimizer step", max(norm, 8 * group if on_device else 0))]
    else:
        step = [one("optimizer step", max(norm, w * group + (4 * group if s.bf16 else 0)))]
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
        Phase(name="backward", device=(*held, *backward), host=tuple(host)),
        Phase(name="step", device=(*held, *step), host=(*host, *stepping_host)),
        *_saving(s, held, host, whole=2 if s.ranks > 1 and not s.cuda else 1, file=0, on_device=4 * group * (mine > 0)),
        *([_parts(s, held, host)] if nvme else []),
    ]


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
