"""Sizes that the shapes of forward passes are rounded up to, so that a run has few of them.

On a CPU, oneDNN compiles a kernel for each shape of a matrix product in bf16 and keeps the last 1,024 of them. A run
whose shapes are all different needs more memory in every step, and compiles instead of computing (docs/memory.md).
A GPU keeps nothing per shape, but its kernels compute tiles of 64 or 128 rows.
"""

from __future__ import annotations

SMALLEST = 8
"""All sizes are multiples of this, so that rows of matrices are aligned."""
ON_GPU = 64
"""The same on a GPU, where there is no other rounding."""
PER_DOUBLING = 8
"""Number of sizes between a power of two and its double: at most an eighth of a size is padding."""


def padded(size: int, most: int, device: str = "cpu") -> int:
    """The smallest size of the device's list that is at least `size`, but at most `most`.

    The list has all multiples of `SMALLEST`, then `PER_DOUBLING` sizes up to each power of two: 8, 16, … 128, 144,
    160, … 256, 288, … On a GPU (cuda), it has all multiples of `ON_GPU`.
    """
    unit = ON_GPU if device == "cuda" else SMALLEST
    if device != "cuda" and size > 0:
        unit = max(SMALLEST, (1 << (size - 1).bit_length()) // (2 * PER_DOUBLING))
    return max(size, min(-(-size // unit) * unit, most))
