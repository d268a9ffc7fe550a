"""What the device can do at best: matrix products and copies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from scripts.gpu_check.trial import synchronize

REPEATS = 10
SHAPES = ((16384, 2048, 8192), (16384, 8192, 2048), (16384, 2048, 6144))
"""Products of a layer at 1.4B with 8 x 2,048 tokens: into the MLP, out of it, into queries, keys and values."""


def measured(size: int, phase: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """One row per ceiling, best of three rounds of ten; on random numbers, because zeros need less power.

    Parameters
    ----------
    size : int
        Rows and columns of the square matrices.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    for kind, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        phase(f"product in {kind}")
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        yield product(f"matrix product, {kind}, {size:,} x {size:,}", a, b)
    for rows, inner, columns in SHAPES if on_gpu else ():
        a = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
        b = torch.randn(inner, columns, device=device, dtype=torch.bfloat16)
        yield product(f"matrix product, bf16, {rows:,} x {inner:,} x {columns:,}", a, b)
    phase("copy")
    source = torch.randn(4 * size * size, device=device)
    target = torch.empty_like(source)
    seconds = best(lambda: target.copy_(source))
    yield {"name": "copy, read + written", "trained": True, "tb_per_second": 2 * source.nbytes / seconds / 1e12}


def product(name: str, a: Any, b: Any) -> dict[str, Any]:
    """Speed of one product."""
    rate = 2 * a.shape[0] * a.shape[1] * b.shape[1] / best(lambda: a @ b) / 1e12
    return {"name": name, "trained": True, "tflops": rate}


def best(run: Callable[[], Any]) -> float:
    """Seconds of the fastest round, per call."""
    run()
    rounds = []
    for _ in range(3):
        synchronize()
        began = time.perf_counter()
        for _ in range(REPEATS):
            run()
        synchronize()
        rounds.append((time.perf_counter() - began) / REPEATS)
    return min(rounds)
