"""What lies in memory in each phase of a run: loading, engine start, forward, backward, step, saving.

Here is what all strategies are made of, and the plain engine; ZeRO's phases are in `wellread.planning.zero`.
`wellread.planning.estimate` adds the phases up.
"""

from __future__ import annotations

from dataclasses import dataclass

from wellread.models.limits import LOGITS_AT_ONCE
from wellread.models.tensors import SHARD_BYTES
from wellread.planning.parameters import Parameters
from wellread.units import MIB

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
"""Locked buffers through which optimizer states pass, each as large as the largest sub-group
(offload_optimizer.buffer_count)."""
NVME_POOL = 5
"""Locked buffers through which weights pass, each as large as a rank's part of the largest (offload_param.buffer_count
and, from the engine, buffer_size)."""
NVME_IN_HOST = 1_000_000_000
"""Elements of a rank's weights that stay in host memory under zero3-nvme (offload_param.max_in_cpu)."""
SPARE = 0.1
"""Part of a GPU that is not free when ZeRO-1 and 2 look for room to flatten the weights."""
HEAP_BLOCK = 32 * MIB
"""Smaller blocks stay in the process when they are freed: glibc's malloc takes blocks from the system one by one only
from its mmap threshold on, which grows to 32 MiB (DEFAULT_MMAP_THRESHOLD_MAX), and returns a heap only from its end."""


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
    fresh: bool = False
    """The model starts from random weights: rank 0 makes all of it."""
    gpu: float | None = None
    """Bytes of a GPU, where that is known."""
    offloaded: float = 0.0
    """Part of the optimizer that is not with the rank, but in host memory or on NVMe."""
    snapshot: bool = False
    """Rank 0 saves from a copy in host memory (TorchEngine.snapshot)."""

    @property
    def share(self) -> int:
        """Trainable elements of one rank under ZeRO (T / ranks)."""
        return -(-self.trainable // self.ranks)

    @property
    def full(self) -> bool:
        """Whether all weights are trained."""
        return self.trainable == self.model.total

    @property
    def largest_trained(self) -> int:
        """Elements of the largest tensor that is trained, at most."""
        return self.model.largest if self.full else self.share

    @property
    def in_bucket(self) -> int:
        """Bytes of gradients in a full bucket."""
        return self.width * min(BUCKET, self.trainable)

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


def one(part: str, size: float) -> Block:
    """A part that is a single block, or of blocks as large."""
    return Block(part, int(size), int(size) if size < HEAP_BLOCK else 0)


def lasting(part: str, size: float) -> Block:
    """A part that is never freed."""
    return Block(part, int(size))


def forward(s: Sizes) -> list[Block]:
    """Activations, logits and loss (`wellread.models.token_loss`): the most that forward needs."""
    small = s.activations if s.activation_block < HEAP_BLOCK else 0
    at_once = 8 * min(LOGITS_AT_ONCE["cuda" if s.cuda else "cpu"], s.logits // s.width)
    loss = [one("logits and loss", s.logits), Block("logits and loss", at_once, at_once)]
    return [Block("activations", s.activations, small), *loss]


def first_gradients(s: Sizes) -> list[Block]:
    """All activations, and beside them the gradients of the logits, in the place of these, and of their matrix."""
    return [*forward(s), one("gradients", s.width * s.head)]


def remaining(s: Sizes) -> Block:
    """Activations that are left when the first bucket of gradients is full: backward has reached that far."""
    left = max(0.0, 1 - BUCKET / s.trainable) if s.full else 1.0
    size = int(s.activations * left)
    return Block("activations", size, size if s.activation_block < HEAP_BLOCK else 0)


def plain(s: Sizes) -> list[Phase]:
    """Phases of the plain engine: one process, or DDP.

    Weights, gradients and AdamW's two moments in fp32 on every rank, 16 bytes per trainable weight (Rajbhandari et al.
    2020, https://arxiv.org/abs/1910.02054, section 3.1, less the half-precision copies). Under autocast the graph
    keeps a bf16 copy of every matrix from its product in forward to that in backward. DDP's gradients lie in its
    buckets from the start and stay there; one process frees them after each step.
    """
    weights, moments = lasting("weights", 4 * s.model.total), lasting("moments", 8 * s.trainable)
    held, gradients = [weights, moments], [s.tensors("gradients", 4, of_all=False)]
    if s.ranks > 1:
        held, gradients = [*held, lasting("gradients", 4 * s.trainable)], []
    large = sum(2 * t for t in s.model.tensors if 2 * t >= HEAP_BLOCK)
    casts = [Block("bf16 copies of weights", 2 * s.model.products, max(0, 2 * s.model.products - large))]
    copies = (s.tensors("copies for saving", 12, of_all=False, blocks=4),)
    before = gradients if s.accumulates else []
    cast = [one("gradients", 4 * s.head)]
    if not s.bf16:
        casts, cast = [], []
    # While a copy is written, the next steps run.
    beside = {"first": copies} if s.snapshot else {}
    return [
        loading(s, weights),
        Phase(name="forward", device=(*held, *before, *casts, *forward(s)), **beside),
        Phase(name="backward", device=(*held, *before, *casts, *first_gradients(s), *cast), **beside),
        Phase(name="backward", device=(*held, *gradients), **beside),
        Phase(name="saving", device=tuple(held), first=copies if s.snapshot else (shard(s),)),
    ]


def read(s: Sizes) -> tuple[Block, ...]:
    """What rank 0 has of the model's files while ranks receive it: one tensor, in half precision and in fp32.

    A fresh model is whole there (`wellread.models.load.Source.reader`).
    """
    if s.fresh:
        return (s.tensors("fresh model", 4),)
    return (one("tensor as read", 4 * s.model.largest), one("tensor as read", 2 * s.model.largest))


def loading(s: Sizes, weights: Block) -> Phase:
    """Weights come one tensor at a time (wellread/train/engines/weights.py)."""
    return Phase(name="loading", device=(weights,), first=read(s))


def shard(s: Sizes, *, besides: int = 0) -> Block:
    """Weights of one file, which rank 0 puts together in fp32 to save them; less those that are counted elsewhere."""
    whole = s.tensors("shard to save", 4, of_all=False)
    size = max(0, min(whole.bytes, max(SHARD_BYTES, 4 * s.model.largest)) - besides)
    return Block(whole.part, size, min(size, whole.small))
