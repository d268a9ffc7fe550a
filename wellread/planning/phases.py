"""What is in memory in each phase of a run: loading, engine start, forward, backward, step, saving.

This module has the parts that all strategies share, and the phases of the torch engine; the phases of ZeRO are in
`wellread.planning.zero`. `wellread.planning.estimate` sums up the parts of each phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wellread.models.limits import SOFTMAX_AT_ONCE
from wellread.models.tensors import SHARD_BYTES
from wellread.planning.parameters import Parameters, Trained
from wellread.units import MIB

BUCKET = 200_000_000
"""Elements of a gradient bucket (reduce_bucket_size); all files in configs/ds must set this value."""
LIVE = 1_000_000_000
"""Elements that ZeRO-3 keeps gathered (stage3_max_live_parameters, stage3_max_reuse_distance)."""
PREFETCH = 50_000_000
"""Elements that ZeRO-3 prefetches (stage3_prefetch_bucket_size)."""
SUB_GROUP = 1_000_000_000
"""Elements that ZeRO-3 updates at a time in the optimizer step (sub_group_size)."""
FINE_SUB_GROUP = 100_000_000
"""The same for zero3-partial, which offloads whole sub-groups, and for zero3-nvme, whose buffers have the size of a
sub-group; their files in configs/ds must set this value."""
NVME_BUFFERS = 4
"""Page-locked buffers for the transfer of optimizer state, each as large as the largest sub-group
(offload_optimizer.buffer_count)."""
NVME_POOL = 5
"""Page-locked buffers for the transfer of weights, each as large as a rank's partition of the largest tensor
(offload_param.buffer_count and, set by the engine, buffer_size)."""
NVME_IN_HOST = 1_000_000_000
"""Elements of a rank's weights that stay in host memory under zero3-nvme (offload_param.max_in_cpu)."""
SPARE = 0.1
"""Fraction of a GPU that ZeRO-1 and 2 keep free when they decide whether to flatten the weights on the GPU."""
HEAP_BLOCK = 32 * MIB
"""Blocks below this size stay with the process after they are freed. glibc's malloc maps a block separately only above
its mmap threshold, which grows to 32 MiB (DEFAULT_MMAP_THRESHOLD_MAX); smaller blocks are in the heap, which it returns
to the system only from its end."""

CACHED_KERNELS = 1024
"""Matrix products in bf16 for which oneDNN keeps compiled kernels on a CPU (ONEDNN_PRIMITIVE_CACHE_CAPACITY). It must
be more than a run has: a layer has about twenty for each padded length (`wellread.corpus.padding`), which all layers
share. Otherwise kernels are compiled again and again, each at another place of the heap."""
KERNELS = int(256 * 1.1 * MIB)
"""Bytes that a process keeps for kernels. Fitted to one run of 300 steps (oneDNN 3.12, AVX-512) when the cache held 256
products; with all of them, the 506 products of `tiny` on Dolly need 276 MiB, 558 KiB each (docs/memory.md)."""


@dataclass(frozen=True)
class Block:
    """An allocation: one part of a phase."""

    part: str
    bytes: int
    small: int = 0
    """How many of the bytes are allocated and freed in blocks below `HEAP_BLOCK`."""


def add_up(blocks: Sequence[Block]) -> dict[str, int]:
    """Bytes of each part."""
    parts: dict[str, int] = {}
    for block in blocks:
        if block.bytes:
            parts[block.part] = parts.get(block.part, 0) + block.bytes
    return parts


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What is in memory at one time."""

    name: str
    device: tuple[Block, ...] = ()
    """Of each rank, on its GPU; in host memory when ranks run on CPUs."""
    host: tuple[Block, ...] = ()
    """Of each rank, in host memory."""
    first: tuple[Block, ...] = ()
    """Of rank 0 only, in host memory."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes from which the phases of every strategy are computed."""

    model: Parameters
    trained: Trained
    ranks: int
    width: int
    """Bytes per weight under DeepSpeed: 2 in bf16."""
    bf16: bool
    gradient_width: int
    """Bytes per weight of the gradients that DeepSpeed adds up."""
    cuda: bool
    accumulates: bool
    """Whether a step has several micro-batches."""
    activations: int
    """Bytes that forward keeps for backward."""
    activation_block: int
    """Bytes of one activation tensor of the MLP; below `HEAP_BLOCK`, all activations count as small blocks."""
    logits: int
    head: int
    """Elements of the output embedding."""
    fresh: bool = False
    """Whether the model starts from random weights: then rank 0 initializes the full model."""
    gpu: float | None = None
    """Memory of a GPU in bytes; None when unknown."""
    offloaded: float = 0.0
    """Fraction of the optimizer that is offloaded to host memory or NVMe."""
    masters: bool = False
    """Whether the torch engine has bf16 weights with fp32 masters instead of autocast."""
    float8: int = 0
    """Bytes of the copies in float8 of one product (`wellread.planning.float8`); 0 without --float8."""
    snapshot: bool = False
    """Whether rank 0 saves from a copy in host memory (TorchEngine.snapshot)."""

    @property
    def trainable(self) -> int:
        """Elements that are trained (T)."""
        return self.trained.elements

    @property
    def share(self) -> int:
        """Trainable elements of one rank under ZeRO (T / ranks)."""
        return -(-self.trainable // self.ranks)

    @property
    def flat_gradients(self) -> bool:
        """Whether gradients in bf16 are added up in fp32, in one flat buffer (`--grad_accum_dtype fp32`)."""
        return self.gradient_width > self.width

    @property
    def full(self) -> bool:
        """Whether all weights are trained."""
        return self.trainable == self.model.total

    @property
    def largest_trained(self) -> int:
        """Elements of the largest trained tensor; an upper bound under LoRA."""
        return max(self.trained.tensors, default=self.share)

    @property
    def in_bucket(self) -> int:
        """Bytes of the gradients in a full bucket."""
        return self.width * min(BUCKET, self.trainable)

    def tensors(self, part: str, width: int, *, of_all: bool = True, blocks: int | None = None) -> Block:
        """One allocation per tensor, for all weights or for the trained ones.

        Parameters
        ----------
        width : int
            Bytes per element.
        blocks : int, optional
            Bytes per element of a single block, when a tensor is allocated in several blocks.
        """
        total = (self.model.total if of_all else self.trainable) * width
        every = self.model.tensors if of_all else self.trained.tensors
        large = (t for t in every if t * (blocks or width) >= HEAP_BLOCK)
        return Block(part, total, total - width * sum(large))

    def bucket(self, *, touched: int | None = None) -> Block:
        """The communication buffer of gradients: all of it on a GPU, but on a CPU only the `touched` elements."""
        size = BUCKET if self.cuda else min(BUCKET, self.trainable if touched is None else touched)
        return Block("communication buckets", size * self.width)


def one(part: str, size: float) -> Block:
    """A part that is allocated as one block and freed after use."""
    return Block(part, int(size), int(size) if size < HEAP_BLOCK else 0)


def lasting(part: str, size: float) -> Block:
    """A part that is never freed."""
    return Block(part, int(size))


def forward(s: Sizes) -> list[Block]:
    """Peak of forward: activations, logits and loss (`wellread.models.token_loss`)."""
    small = s.activations if s.activation_block < HEAP_BLOCK else 0
    at_once = 8 * min(SOFTMAX_AT_ONCE["cuda" if s.cuda else "cpu"], s.logits // s.width)
    loss = [one("logits and loss", s.logits), Block("logits and loss", at_once, at_once)]
    return [Block("activations", s.activations, small), *loss]


def first_gradients(s: Sizes) -> list[Block]:
    """Memory at the start of backward: activations, gradients of the logits and of the output embedding.

    The gradients of the logits reuse the memory of the logits.
    """
    return [*forward(s), one("gradients", s.width * s.head)]


def product(s: Sizes) -> list[Block]:
    """What exists only during one product of a layer: with --float8, the copies of its factors."""
    return [one("float8 copies", s.float8)]


def remaining(s: Sizes) -> Block:
    """Activations that still exist when backward has filled the first bucket of gradients."""
    fraction = max(0.0, 1 - BUCKET / s.trainable) if s.full else 1.0
    size = int(s.activations * fraction)
    return Block("activations", size, size if s.activation_block < HEAP_BLOCK else 0)


def plain(s: Sizes) -> list[Phase]:
    """Phases of the torch engine: one process, or DDP.

    Every rank has weights, gradients and AdamW's two moments in fp32, 16 bytes per trainable weight (Rajbhandari et al.
    2020, https://arxiv.org/abs/1910.02054, section 3.1, without the half-precision copies). Under autocast, the graph
    keeps a bf16 copy of every matrix from its product in forward to its product in backward. DDP allocates gradients in
    its buckets at the start and keeps them; a single process frees its gradients after each step. With bf16 weights
    (`masters`), there are no such copies, but masters, and every rank frees its gradients after each step.
    """
    if s.masters:
        return _with_masters(s)
    weights, moments = lasting("weights", 4 * s.model.total), lasting("moments", 8 * s.trainable)
    resident, gradients = [weights, moments], [s.tensors("gradients", 4, of_all=False)]
    if s.ranks > 1:
        resident, gradients = [*resident, lasting("gradients", 4 * s.trainable)], []
    large = sum(2 * t for t in s.model.tensors if 2 * t >= HEAP_BLOCK)
    casts = [Block("bf16 copies of weights", 2 * s.model.products, max(0, 2 * s.model.products - large))]
    copies = _copies(s)
    before = gradients if s.accumulates else []
    cast = [one("gradients", 4 * s.head)]
    if not s.bf16:
        casts, cast = [], []
    # The next steps run while the copy is written to disk.
    meanwhile = {"first": copies} if s.snapshot else {}
    return [
        loading(s, weights),
        Phase(name="forward", device=(*resident, *before, *casts, *forward(s), *product(s)), **meanwhile),
        Phase(
            name="backward",
            device=(*resident, *before, *casts, *first_gradients(s), *cast, *product(s)),
            **meanwhile,
        ),
        Phase(name="backward", device=(*resident, *gradients, *product(s)), **meanwhile),
        Phase(name="saving", device=tuple(resident), first=copies if s.snapshot else (shard(s),)),
    ]


def _with_masters(s: Sizes) -> list[Phase]:
    """Phases of the torch engine with bf16 weights and fp32 masters: 18 bytes per trainable weight.

    The bf16 gradient of a tensor is freed as soon as it is added to the fp32 gradient of its master.
    """
    moments, gradients = lasting("moments", 8 * s.trainable), s.tensors("gradients", 4, of_all=False)
    resident = [lasting("weights", 2 * s.model.total), lasting("masters", 4 * s.trainable), moments]
    before = [gradients] if s.accumulates else []
    copies = _copies(s)
    meanwhile = {"first": copies} if s.snapshot else {}
    passing = one("gradients", 2 * s.largest_trained)
    return [
        loading(s, lasting("weights", 4 * s.model.total)),
        Phase(name="forward", device=(*resident, *before, *forward(s), *product(s)), **meanwhile),
        Phase(
            name="backward",
            device=(*resident, *before, *first_gradients(s), one("gradients", 4 * s.head), *product(s)),
        ),
        Phase(name="backward", device=(*resident, gradients, passing, *product(s)), **meanwhile),
        Phase(name="saving", device=tuple(resident), first=copies if s.snapshot else (shard(s),)),
    ]


def _copies(s: Sizes) -> tuple[Block, ...]:
    """The copy of a checkpoint's model and of AdamW's moments in host memory."""
    name, of_all = "copies for saving", s.trained.saved == s.model.total
    return s.tensors(name, 4, of_all=of_all, blocks=4), s.tensors(name, 8, of_all=False, blocks=4)


def read(s: Sizes) -> tuple[Block, ...]:
    """What rank 0 has in memory while it sends the weights to the ranks: one tensor, in half precision and in fp32.

    Of a fresh model, it has all weights (`wellread.models.load.Source.reader`).
    """
    if s.fresh:
        return (s.tensors("fresh model", 4),)
    return (one("tensor as read", 4 * s.model.largest), one("tensor as read", 2 * s.model.largest))


def loading(s: Sizes, weights: Block) -> Phase:
    """Loading: the weights arrive one tensor at a time (wellread/train/engines/weights.py)."""
    return Phase(name="loading", device=(weights,), first=read(s))


def shard(s: Sizes, *, counted: int = 0) -> Block:
    """Weights of one file, which rank 0 collects in fp32 to save; less `counted` bytes that another part includes."""
    all_weights = s.tensors("shard to save", 4, of_all=s.trained.saved == s.model.total)
    size = max(0, min(all_weights.bytes, max(SHARD_BYTES, 4 * s.model.largest)) - counted)
    return Block(all_weights.part, size, min(size, all_weights.small))
