"""Model directories in Hugging Face layout, one tensor at a time: no more than a shard is ever in memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 1 << 30
"""Largest shard of a model; a tensor that is larger has one of its own."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def saved_sizes(model: Any) -> dict[str, int]:
    """Bytes of each tensor that a model's directory holds, in fp32: tied weights once, and buffers that are saved.

    Parameters
    ----------
    model : transformers model, whose parameters may be divided over ranks by ZeRO-3
    """
    sizes = {name: 4 * int(getattr(p, "ds_numel", p.numel())) for name, p in model.named_parameters()}
    kept = {name for name in model.state_dict() if name not in (model._keys_to_ignore_on_save or ())}
    return sizes | {name: buffer.nbytes for name, buffer in model.named_buffers() if name in kept}


def write_model(
    model: Any,
    directory: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model as `save_pretrained` does, holding one shard of its tensors at a time.

    Parameters
    ----------
    tensors
        Name and fp32 value of everything in `saved_sizes`, in that order.
    shard_bytes
        Largest shard.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_configs(model, directory)
    sizes = saved_sizes(model)
    shards = divide(sizes, shard_bytes)
    names = [WEIGHTS] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    waiting = iter(tensors)
    places: dict[str, str] = {}
    for file, shard in zip(names, shards, strict=True):
        places |= dict.fromkeys(_write_shard(model, directory / file, shard, waiting), file)
    assert next(waiting, None) is None
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def divide(sizes: dict[str, int], shard_bytes: int) -> list[list[str]]:
    """Names of each shard: in order, each as full as `shard_bytes` allows."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _write_shard(model: Any, path: Path, names: list[str], waiting: Iterator[tuple[str, torch.Tensor]]) -> list[str]:
    """Write the next tensors; return their names in the file."""
    from safetensors.torch import save_file

    held: dict[str, torch.Tensor] = {}
    for name in names:
        given, value = next(waiting)
        assert given == name, (given, name)
        held |= {key: part.contiguous() for key, part in _as_saved(model, name, value).items()}
    save_file(held, path, metadata={"format": "pt"})
    return list(held)


def _as_saved(model: Any, name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor of a module as its files hold it: some families have other names there, or parts instead of a whole."""
    from transformers.core_model_loading import revert_weight_conversion

    saved: dict[str, torch.Tensor] = revert_weight_conversion(model, {name: value})
    return saved


def _write_configs(model: Any, directory: Path) -> None:
    config = copy.deepcopy(model.config)
    config.dtype = "float32"  # of the files; the module itself may be in bf16
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)
