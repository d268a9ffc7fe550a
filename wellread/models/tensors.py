"""Reading and writing model directories in Hugging Face layout, with at most one shard in memory."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellread.errors import UserError
from wellread.models.directories import INDEX, WEIGHTS, weight_files
from wellread.models.pretrained import refuse_unused, without_computed

if TYPE_CHECKING:
    import torch

Reader = Callable[[str], "torch.Tensor"]
"""Name of a parameter or saved buffer, as in the module -> its value in fp32, on the CPU."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights in safetensors that are numbers by themselves; those of 8 bits and fewer need scales."""
SHARD_BYTES = 1 << 30
"""Maximum size of a shard; a larger tensor gets a separate shard."""


def saved_tensors(model: Any) -> dict[str, torch.Tensor]:
    """All tensors that are saved, by name in the module: parameters (tied ones once) and persistent buffers.

    Parameters
    ----------
    model : transformers model; under ZeRO-3 its parameters are empty, but have a shape
    """
    persistent = model.state_dict().keys() - set(model._keys_to_ignore_on_save or ())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return dict(model.named_parameters()) | buffers


def saved_sizes(model: Any) -> dict[str, int]:
    """Bytes of each of the `saved_tensors`: parameters in fp32, buffers in their dtype."""
    parameters = {name: 4 * int(getattr(p, "ds_numel", p.numel())) for name, p in model.named_parameters()}
    return {name: parameters.get(name, tensor.nbytes) for name, tensor in saved_tensors(model).items()}


def reader(model: Any, directory: Path) -> Reader | None:
    """Return a function that reads single tensors from a model's files; None if `from_pretrained` is needed.

    It is needed for tensors that are stored under other names or in several parts.

    Parameters
    ----------
    model : transformers model, on the meta device

    Raises
    ------
    UserError
        When a file of weights is damaged, or files contain weights that the model has no place for, or of another
        type than floating point.
    """
    from safetensors import safe_open

    places: dict[str, tuple[Path, str]] = {}
    shapes = _shapes_in(directory)
    refuse_other_types(model, directory)
    for name, value in saved_tensors(model).items():
        saved = _as_saved(model, name, value)
        key = next((key for key in (*saved, name) if key in shapes), None)
        if len(saved) > 1 or key is None or shapes[key][1] != list(value.shape):
            return None
        places[name] = shapes[key][0], key
    refuse_unused(directory, _unused(model, shapes.keys() - {key for _, key in places.values()}))

    def read(name: str) -> torch.Tensor:
        path, key = places[name]
        with safe_open(path, "pt") as file:  # opened for each tensor, because pages stay mapped until it is closed
            tensor: torch.Tensor = file.get_tensor(key)
        return tensor.float()

    return read


def refuse_other_types(model: Any, directory: Path) -> None:
    """Raise an error if a parameter is stored as anything but `FLOATS`: its values need scales that nothing applies.

    Masks and the like, which are not parameters, may be of any type.
    """
    from safetensors import safe_open

    shapes = _shapes_in(directory)
    keys = {key for name, value in model.named_parameters() for key in (*_as_saved(model, name, value), name)}
    for path in sorted({path for path, _ in shapes.values()}):
        with safe_open(path, "pt") as file:
            for key in sorted(key for key in keys if key in shapes and shapes[key][0] == path):
                if (kind := file.get_slice(key).get_dtype()) not in FLOATS:
                    raise UserError(
                        f"{path}: {key} is stored as {kind}, which is quantized; "
                        f"pass a model with weights in {', '.join(FLOATS)}"
                    )


def _unused(model: Any, keys: set[str]) -> list[str]:
    """Keys without a place in the model; a copy of a tied tensor has one."""
    places = set(model.state_dict())
    copies = {key for name in places for key in _as_saved(model, name, model.get_parameter_or_buffer(name))}
    return without_computed(model, keys - places - copies)


def separate(model: Any, directory: Path) -> str | None:
    """Name of a tensor that the configuration ties to another, although the files hold different values; else None.

    transformers then does not tie them (`PreTrainedModel.tie_weights`).
    """
    import torch
    from safetensors import safe_open

    shapes = _shapes_in(directory)
    for target, source in model.all_tied_weights_keys.items():
        values = []
        for name in (target, source):
            saved = _as_saved(model, name, model.get_parameter_or_buffer(name))
            if (key := next((key for key in (*saved, name) if key in shapes), None)) is not None:
                with safe_open(shapes[key][0], "pt") as file:
                    values.append(file.get_tensor(key))
        if len(values) == 2 and not torch.equal(*values):
            return str(target)
    return None


def _shapes_in(directory: Path) -> dict[str, tuple[Path, list[int]]]:
    """File and shape of each tensor in a model's files.

    Raises
    ------
    UserError
        When a file is damaged, or the model is not in safetensors.
    """
    from safetensors import SafetensorError

    try:
        return {key: (path, shape) for path in weight_files(directory) for key, shape in _shapes(path)}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{directory}: the model cannot be loaded ({error})") from None


def _shapes(path: Path) -> Iterator[tuple[str, list[int]]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a dict)
            yield key, file.get_slice(key).get_shape()


def write_model(
    model: Any,
    directory: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    shard_bytes: int | None = None,
) -> None:
    """Write a model as `save_pretrained` does, but with only one shard in memory at a time.

    Parameters
    ----------
    tensors
        Name and fp32 value of all tensors in `saved_sizes`, in that order.
    shard_bytes
        Maximum size of a shard (default: `SHARD_BYTES`).
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_configs(model, directory)
    sizes = saved_sizes(model)
    shards = divide(sizes, shard_bytes or SHARD_BYTES)
    names = [WEIGHTS] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    remaining = iter(tensors)
    places: dict[str, str] = {}
    for file, shard in zip(names, shards, strict=True):
        places |= dict.fromkeys(_write_shard(model, directory / file, shard, remaining), file)
    assert next(remaining, None) is None
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def divide(sizes: dict[str, int], shard_bytes: int) -> list[list[str]]:
    """Names of the tensors in each shard: in order, each shard with as many as fit into `shard_bytes`."""
    shards: list[list[str]] = []
    free = 0
    for name, size in sizes.items():
        if not shards or size > free:
            shards.append([])
            free = shard_bytes
        shards[-1].append(name)
        free -= size
    return shards


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _write_shard(model: Any, path: Path, names: list[str], remaining: Iterator[tuple[str, torch.Tensor]]) -> list[str]:
    """Write one shard with the next tensors; return their names in the file."""
    from safetensors.torch import save_file

    stored: dict[str, torch.Tensor] = {}
    for name in names:
        next_name, value = next(remaining)
        assert next_name == name, (next_name, name)
        stored |= {key: part.contiguous() for key, part in _as_saved(model, name, value).items()}
    save_file(stored, path, metadata={"format": "pt"})
    open_to_readers(path)
    return list(stored)


def open_to_readers(path: Path) -> None:
    """Set the default permissions of new files; safetensors creates files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _as_saved(model: Any, name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Names and values with which a tensor is saved: some families use other names, or split a tensor into parts."""
    from transformers.core_model_loading import revert_weight_conversion

    saved: dict[str, torch.Tensor] = revert_weight_conversion(model, {name: value})
    return saved


def _write_configs(model: Any, directory: Path) -> None:
    config = copy.deepcopy(model.config)
    config.dtype = "float32"  # dtype of the files; the module may be in bf16
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)
