"""Products in float8 (`--float8`): the models and GPUs that they suit, and the memory of their copies."""

from __future__ import annotations

import re

from wellread.errors import UserError
from wellread.models.families import FAMILIES
from wellread.models.layouts import Linear
from wellread.models.spec import ModelSpec
from wellread.planning.parameters import knows, layout_of

WITHOUT = (
    "P40", "P100", "V100", "T4", "Quadro", "TITAN", "A2", "A10", "A10G", "A16", "A30", "A40", "A100", "A800",
    "A2000", "A4000", "A4500", "A5000", "A5500", "A6000", "2060", "2070", "2080", "3060", "3070", "3080", "3090",
    "MI210", "MI250", "MI250X",
)  # fmt: skip
"""Words of the names of GPUs without float8: NVIDIA's before compute capability 8.9 (Ada), AMD's before the MI300. A
rank asks a GPU with another name itself, when it starts."""
OLDER = "computes no float8, which begins with compute capability 8.9 (Ada, Hopper); leave it out"
"""What is said of a GPU without float8."""
MULTIPLE = 16
"""Both sizes of a matrix must be multiples of this for the kernels of torch."""
COPIES = 12
"""Bytes per element of the largest factor of a product. Without compiling, a factor is rounded through two copies in
fp32 (8), and a product has both factors in float8, each also in the order that its kernel reads (4). A compiled layer
fuses most of it, but nothing was measured, so that the plan counts it in any case."""


def check(spec: ModelSpec, gpu: str | None) -> None:
    """Check that a model and the GPUs of this name suit float8, as far as that is known before the start.

    Raises
    ------
    UserError
        When the GPU is too old, or no matrix of the model would be converted.
    """
    if set(re.split(r"[\s-]+", gpu or "")) & set(WITHOUT):
        raise UserError(f"--float8: {gpu} {OLDER}")
    if knows(spec) and FAMILIES[spec.family].transposed:
        raise UserError(f"--float8: the layers of {spec.family} have no linear modules to convert; leave it out")
    if knows(spec) and not _converted(spec):
        raise UserError(
            f"--float8: its kernels need matrices with sizes that are multiples of {MULTIPLE}, and {spec.name} "
            f"(width {spec.width}) has none; leave it out"
        )


def copies(spec: ModelSpec, tokens: int) -> int:
    """Most bytes of copies that a product needs in a forward pass of so many tokens."""
    return COPIES * max(max(m.inputs * m.outputs, tokens * max(m.inputs, m.outputs)) for m in _converted(spec))


def _converted(spec: ModelSpec) -> list[Linear]:
    """The matrices of a layer with sizes that the kernels accept."""
    linears = layout_of(spec).linears.values()
    return [m for m in linears if m.inputs % MULTIPLE == 0 and m.outputs % MULTIPLE == 0]
