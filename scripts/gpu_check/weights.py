"""Random weights of any model, created on the device: nothing is read from a disk or copied from host memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wellread.models.adapter import Adapter
from wellread.models.load import Source, initial

if TYPE_CHECKING:
    import torch
    from torch import nn

    from wellread.config import Dtype, LoraConfig
    from wellread.models.spec import ModelSpec

TABLE = 2**24
"""Size of the table of random numbers for all weights, because generating 12 billion would take minutes."""
DEVIATION = 0.02
"""Standard deviation of the weights."""


@dataclass(frozen=True)
class RandomSource(Source):
    """A model with random weights, which are the same on every device.

    Each weight is a view of one table of random numbers, from an offset that depends on its name. Rows of a large
    matrix overlap in the table, but no two of them are equal. On a GPU the views need no memory; on a CPU each weight
    is a copy, as when it is read from a file.
    """

    @classmethod
    def of_spec(cls, spec: ModelSpec, lora: LoraConfig | None = None) -> RandomSource:
        """A model in the shape of `spec`, with an adapter if `lora` has a rank."""
        fresh = initial(replace(spec, fresh=True), 0, eos=0)
        adapter = Adapter.fresh(lora, spec, 0) if lora and lora.rank else None
        return cls(fresh.config, fresh.in_memory, adapter=adapter)

    def reader(self, model: Any) -> Callable[[str], torch.Tensor]:
        """See `Source`."""
        import torch

        from wellread.models.tensors import saved_tensors
        from wellread.train import ranks

        added = self.adapter.tensors(model, None) if self.adapter else {}
        shapes = {name: tensor.shape for name, tensor in saved_tensors(model).items()}
        table = (DEVIATION * torch.randn(TABLE, generator=torch.Generator().manual_seed(0))).to(ranks.device())

        def read(name: str) -> torch.Tensor:
            if name in added:
                return added[name]
            shape = shapes[name]
            if len(shape) < 2:  # norms and biases
                return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
            view = view_of(table, name, shape)
            return view if table.is_cuda else view.clone(memory_format=torch.contiguous_format)

        return read

    def in_4bit(self, device: torch.device, dtype: Dtype) -> nn.Module:
        """See `Source`; each matrix is quantized on the device, so no more than one is there in full precision."""
        import torch
        from torch import nn

        assert self.adapter
        plain = replace(self, adapter=None)
        model: Any = plain.on_meta()
        read, kind = plain.reader(model), torch.bfloat16 if dtype == "bf16" else torch.float32
        head = model.get_output_embeddings()
        matrices = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
        for name, matrix in matrices.items():
            model.set_submodule(name, quantized(matrix, read(f"{name}.weight").to(device, kind), kind))
        for name, parameter in list(model.named_parameters()):
            if parameter.is_meta:
                module, _, key = name.rpartition(".")
                value = nn.Parameter(read(name).to(device), requires_grad=False)
                model.get_submodule(module).register_parameter(key, value)
        model.tie_weights()
        self.adapter.inject(model)
        for name, tensor in self.adapter.tensors(model, None).items():
            module, _, key = name.rpartition(".")
            model.get_submodule(module).register_parameter(key, nn.Parameter(tensor.to(device)))
        placed: nn.Module = model.to(device)
        return placed


def quantized(matrix: nn.Linear, weight: torch.Tensor, kind: torch.dtype) -> nn.Module:
    """A layer with this weight in 4 bits (NF4, double quantization), as `Source.in_4bit` loads it."""
    import bitsandbytes

    layer: Any = bitsandbytes.nn.Linear4bit(
        matrix.in_features, matrix.out_features, bias=matrix.bias is not None, compute_dtype=kind, device="meta"
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
    ).to(weight.device)
    smaller: nn.Module = layer
    return smaller


def view_of(table: torch.Tensor, name: str, shape: torch.Size) -> torch.Tensor:
    """The weight `name` as a view of the table; rows have a distance that fits all of them into half of the table."""
    width = shape[1:].numel()
    distance = max(1, (len(table) // 2 - width) // shape[0])
    first = zlib.crc32(name.encode()) % (len(table) - (shape[0] - 1) * distance - width + 1)
    inner = torch_strides(shape[1:])
    return table.as_strided(shape, (distance, *inner), first)


def torch_strides(shape: torch.Size) -> tuple[int, ...]:
    """Strides of a contiguous tensor of this shape."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tuple(strides)
