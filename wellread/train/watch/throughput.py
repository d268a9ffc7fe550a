"""Cost of steps: tokens, padding, arithmetic, memory; and the peak arithmetic of devices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wellread.planning import host_memory
from wellread.planning.parameters import knows, parameters
from wellread.planning.plan import Plan
from wellread.train import ranks

if TYPE_CHECKING:
    from wellread.models.spec import ModelSpec
    from wellread.train.evidence import Evidence

PEAKS: tuple[tuple[str, float, float], ...] = (
    ("GB300", 2500, 80),
    ("B300", 2250, 75),
    ("GB200", 2500, 80),
    ("B200", 2250, 75),
    ("GH200", 989.4, 67),
    ("H200 NVL", 835, 60),
    ("H200", 989.4, 67),
    ("H100 PCIe", 756, 51),
    ("H100 NVL", 835, 60),
    ("H100", 989.4, 67),
    ("H20", 148, 44),
    ("A100", 312, 19.5),
    ("A800", 312, 19.5),
    ("A40", 149.7, 37.4),
    ("A30", 165, 10.3),
    ("A10", 125, 31.2),
    ("A10G", 70, 31.5),
    ("L40S", 362, 91.6),
    ("L40", 181, 90.5),
    ("L4", 121, 30.3),
    ("RTX 6000 Ada", 364.2, 91.1),
    ("RTX A6000", 154.8, 38.7),
    ("RTX 5090", 209.5, 104.8),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71, 35.6),
    ("V100", 125, 15.7),
    ("MI300X", 1307.4, 163.4),
    ("MI250X", 191.5, 47.9),
)
"""Words of a device's name (the first matching line counts), dense TFLOP/s in bf16 and in fp32, from the vendors' data
sheets. fp32 excludes TF32, which torch does not use for matrix products by default. MI250X: one of its two dies, each
of which is a device. GB200 and GB300: one of their two GPUs. V100: fp16, because it has neither bf16 nor TF32."""
WITHOUT_TF32 = ("V100", "MI250X")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one batch, over all ranks."""

    tokens: int
    """Tokens read, without padding."""
    targets: int
    """Number of them that carry loss."""
    squares: int
    """Sum of the squares of the samples' lengths."""
    padded: int
    """Tokens computed, with padding."""
    host_bytes: int
    """Peak host memory of the ranks of one node so far, largest of the nodes; shared memory counts once per rank."""
    gpu_bytes: int
    """Peak GPU memory of one rank so far, largest of the ranks, as torch's allocator measures it; 0 without GPUs."""

    @classmethod
    def of(cls, evidence: Evidence, plan: Plan) -> Cost:
        """Cost of a batch, from the reports of its ranks."""
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
    """Peak host memory and peak GPU memory (0 without one) of this process, bytes."""
    import torch

    gpu = torch.cuda.max_memory_allocated() if ranks.device().type == "cuda" else 0
    return host_memory.peak(), int(gpu)


def training_flops(spec: ModelSpec, total: int, cost: Cost, trained: float = 1.0) -> float:
    """Floating-point operations that a batch needs, forward and backward.

    6 N for a token and 12 layers x width x length for its attention (PaLM, arXiv:2204.02311, appendix B), where N is
    the number of parameters that enter a matrix product. The output embedding counts only for target tokens.
    Recomputed activations do not count. A frozen weight needs 4 instead of 6, because it has no gradient.

    Parameters
    ----------
    total : int
        Number of parameters of the model, used as N in families that `wellread.planning.parameters` does not know.
    trained : float
        Share of the parameters that are trained.
    """
    attention = 12 * spec.layers * (spec.head_size or spec.width // spec.heads) * spec.heads * cost.squares
    each = 4 + 2 * trained
    if not knows(spec):
        return float(each * total * cost.tokens + attention)
    head = spec.vocab * spec.width
    return float(each * ((parameters(spec).products - head) * cost.tokens + head * cost.targets) + attention)


def peak_flops(device: str, dtype: str) -> float | None:
    """Peak floating-point operations per second of a device, by its name; None if it is not in `PEAKS`.

    Tensor cores compute TF32 at half the rate of bf16; devices without it compute in fp32.
    """
    name = set(re.split(r"[\s-]+", device))
    for words, bf16, fp32 in PEAKS:
        if set(words.split()) <= name and "Laptop" not in name:
            tf32 = fp32 if words in WITHOUT_TF32 else bf16 / 2
            return {"bf16": bf16, "fp32": fp32, "tf32": tf32}[dtype] * 1e12
    return None
