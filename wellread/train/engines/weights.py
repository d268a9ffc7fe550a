"""Load weights into a model on the meta device, one tensor at a time, so that no rank needs memory for a second copy.

Rank 0 reads the tensors and sends them to the other ranks. A node needs memory for one tensor in addition to what the
engine allocates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from wellread.models.load import Source
from wellread.models.tensors import Reader, saved_tensors
from wellread.train import ranks

Make = Callable[[str, "torch.Size"], torch.Tensor]
"""Name and shape of a parameter -> the value that this rank stores."""


class Weights:
    """The fp32 weights of a model, read by rank 0. Every method is collective."""

    def __init__(self, source: Source, model: nn.Module) -> None:
        self._read: Reader | None = source.reader(model) if ranks.rank() == 0 else None

    def on_rank0(self, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The value on rank 0; an uninitialized tensor on the other ranks."""
        value = torch.empty(shape, dtype=dtype, device=device)
        if self._read:
            value.copy_(self._read(name))
        return value

    def everywhere(self, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The value on every rank."""
        value = self.on_rank0(name, shape, dtype, device)
        if ranks.world_size() > 1:
            dist.broadcast(value.view(-1).view(torch.uint8), src=0)  # as bytes: gloo supports few types
        return value


def fill(model: nn.Module, weights: Weights, dtype: torch.dtype, device: torch.device) -> None:
    """Set every parameter to its value, on every rank."""
    _replace(model, lambda name, shape: weights.everywhere(name, shape, dtype, device))
    _fill_buffers(model, weights, device)


def fill_divided(model: nn.Module, weights: Weights, dtype: torch.dtype, device: torch.device, settings: Any) -> None:
    """Give every rank its part of each parameter, partitioned by ZeRO-3 with these DeepSpeed settings."""
    import deepspeed

    deepspeed.init_distributed(dist_init_required=False)  # zero.Init needs it; uses the existing process group
    first: list[Any] = []

    def divided(name: str, shape: torch.Size) -> torch.Tensor:
        parameter: Any = nn.Parameter(weights.on_rank0(name, shape, dtype, device))
        # Both broadcast rank 0's value and keep one part. Init runs once; the first parameter carries its settings.
        if first:
            first[0].convert_to_zero_parameters(param_list=[parameter])
        else:
            deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=settings, dtype=dtype)
            first.append(parameter)
        partitioned: torch.Tensor = parameter
        return partitioned

    _replace(model, divided)
    _fill_buffers(model, weights, device)


def _replace(model: nn.Module, make: Make) -> None:
    filled: dict[nn.Parameter, nn.Parameter] = {}  # so that tied parameters stay tied
    for prefix, module in model.named_modules():
        for key, meta in list(module._parameters.items()):
            if meta is None:
                continue
            if meta not in filled:
                value = make(f"{prefix}.{key}".lstrip("."), meta.shape)
                filled[meta] = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
                filled[meta].requires_grad_(meta.requires_grad)
            module._parameters[key] = filled[meta]


def _fill_buffers(model: nn.Module, weights: Weights, device: torch.device) -> None:
    """Move all buffers to the device, and set those that the model's files contain."""
    for module in model.modules():
        for key, buffer in module._buffers.items():
            module._buffers[key] = buffer if buffer is None else buffer.to(device)
    parameters = dict(model.named_parameters())
    for name, buffer in saved_tensors(model).items():
        if name not in parameters:
            buffer.copy_(weights.everywhere(name, buffer.shape, buffer.dtype, device))


def set_master(model: nn.Module, weights: Weights, device: torch.device) -> None:
    """Set ZeRO's fp32 master weights to the exact values; DeepSpeed creates them from rounded weights."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    for name, parameter in trained(model):
        value = weights.everywhere(name, shape_of(parameter), torch.float32, device)
        if is_padded(parameter):
            safe_set_local_fp32_param(parameter, padded_part(parameter, value))
        else:
            safe_set_full_fp32_param(parameter, value)


def trained(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters that are not frozen, by name; DeepSpeed has master weights and moments only for these."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def set_moment(parameter: nn.Parameter, key: str, moment: torch.Tensor) -> None:
    """Set one of ZeRO's moments of a parameter; `moment` is flat and complete."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if is_padded(parameter):
        safe_set_local_optimizer_state(parameter, padded_part(parameter, moment), key)
    else:
        safe_set_full_optimizer_state(parameter, moment.reshape(shape_of(parameter)), key)


def is_padded(parameter: Any) -> bool:
    """Whether ZeRO-3 partitions a parameter over a number of ranks that does not divide its size.

    DeepSpeed's functions for complete values fail for such a parameter; its functions for parts fail for a weight on
    NVMe.
    """
    return hasattr(parameter, "ds_id") and parameter.ds_numel % parameter.ds_zero_partition_world_size != 0


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Shape of the complete parameter, partitioned or not."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def padded_part(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """This rank's part of the complete `value` of a partitioned parameter, flat; the last rank's part is padded."""
    size, number = parameter.ds_tensor.ds_numel, parameter.ds_zero_partition_rank
    part = value.flatten()[number * size : (number + 1) * size]
    return nn.functional.pad(part, (0, size - part.numel()))


def unpadded(parameter: Any, part: torch.Tensor) -> torch.Tensor:
    """This rank's part of a partitioned parameter, without padding."""
    before = parameter.ds_zero_partition_rank * parameter.ds_tensor.ds_numel
    return part.flatten()[: max(0, int(parameter.ds_numel) - before)]
