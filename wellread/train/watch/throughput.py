"""What steps cost: tokens, padding, arithmetic, memory; and how much of the devices' arithmetic that is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wellread.planning import host_memory
from wellread.planning.parameters import knows, parameters
from wellread.planning.plan import Plan

if TYPE_CHECKING:
    from wellread.models.spec import ModelSpec
    from wellread.train.evidence import Evidence

PEAKS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250, 75),
    ("GH200", 989.4, 67),
    ("H200", 989.4, 67),
    ("H100 PCIe", 756, 51),
    ("H100 NVL", 835, 60),
    ("H100", 989.4, 67),
    ("A100", 312, 19.5),
    ("A800", 312, 19.5),
    ("A40", 149.7, 37.4),
    ("A30", 165, 10.3),
    ("A10", 125, 31.2),
    ("A10G", 70, 31.5),
    ("L40S", 362, 91.6),
    ("L40", 181, 90.5),
    ("L4", 121, 30.3),
    ("RTX A6000", 154.8, 38.7),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71, 35.6),
    ("MI300X", 1307.4, 163.4),
    ("MI250X", 191.5, 47.9),
)
"""Words of a device's name (the first line that fits counts), TFLOP/s in bf16 and in fp32, dense; from the makers' data
sheets. fp32 is without TF32, which torch does not use for matrix products unless told to. MI250X: of one of its two
dies, which are two devices."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one batch cost, over all ranks."""

    tokens: int
    """Tokens read, padding not counted."""
    targets: int
    """Of these, those that carry loss."""
    squares: int
    """Sum of the squares of the samples' lengths."""
    padded: int
    """Positions computed, padding counted."""
    host_bytes: int
    """Most host memory that the ranks of one node have held so far; what they share counts for each."""
    gpu_bytes: int
    """Most that any rank has held on its GPU so far, as torch's allocator sees it; 0 without GPUs."""

    @classmethod
    def of(cls, evidence: Evidence, plan: Plan) -> Cost:
        """From what the ranks told of the batch."""
        samples, host = evidence.samples, evidence.ranks["host_peak"]
        return cls(
            tokens=int(samples["n_tokens"].sum()),
            targets=int(samples["n_targets"].sum()),
            squares=int((samples["n_tokens"] ** 2).sum()),
            padded=int(samples["width"].sum()),
            host_bytes=int(host.reshape(plan.machine.nodes, -1).sum(1).max()),
            gpu_bytes=int(evidence.ranks["gpu_peak"].max()),
        )


def memory_peaks() -> tuple[int, int]:
    """Bytes that this process has held at most: of host memory, and of its GPU (0 without one)."""
    import torch

    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return host_memory.peak(), int(gpu)


def training_flops(spec: ModelSpec, total: int, cost: Cost, trained: float = 1.0) -> float:
    """Floating-point operations that a batch needs, forward and backward, whatever is computed besides.

    6 N for a token and 12 layers x width x length for its attention (PaLM, arXiv:2204.02311, appendix B), with N the
    parameters that enter a product. Of these the output embedding is needed where a token is predicted, alone.
    Activations computed again do not count. A frozen weight needs 4, for it has no gradient.

    Parameters
    ----------
    total : int
        Parameters of the model, which stand for N in a family that `wellread.planning.parameters` does not know.
    trained : float
        Share of the parameters that is trained.
    """
    attention = 12 * spec.layers * (spec.head_size or spec.width // spec.heads) * spec.heads * cost.squares
    each = 4 + 2 * trained
    if not knows(spec):
        return float(each * total * cost.tokens + attention)
    head = spec.vocab * spec.width
    return float(each * ((parameters(spec).products - head) * cost.tokens + head * cost.targets) + attention)


def peak_flops(device: str, dtype: str) -> float | None:
    """Operations per second that a device could do at best, by its name; None when it is not in the table."""
    found = set(re.split(r"[\s-]+", device))
    for words, bf16, fp32 in PEAKS:
        if set(words.split()) <= found and "Laptop" not in found:
            return (bf16 if dtype == "bf16" else fp32) * 1e12
    return None
