"""Convert a model whose weights are pickles (``pytorch_model.bin``) to safetensors, without executing them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from wellread.errors import UserError
from wellread.models.directories import INDEX, PICKLES, WEIGHTS

if TYPE_CHECKING:
    import torch

COPIED = (".json", ".model", ".txt", ".jinja")
"""Suffixes of the configuration and the tokenizer."""


def to_safetensors(directory: Path, out: Path) -> int:
    """Write a model in safetensors to an existing directory, with one file of weights in memory; return their number.

    Raises
    ------
    UserError
        When there are no pickled weights, or a file contains anything except tensors by name.
    """
    from safetensors.torch import save_file

    paths = sorted(path for path in directory.iterdir() if path.suffix in PICKLES and path.name != "training_args.bin")
    if not paths:
        raise UserError(f"{directory}: contains no pickled weights ({', '.join(PICKLES)}); nothing to convert")
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory}: has no config.json; a model directory needs Hugging Face layout")
    places: dict[str, str] = {}
    size = 0
    for number, path in enumerate(paths):
        name = WEIGHTS if len(paths) == 1 else f"model-{number + 1:05d}-of-{len(paths):05d}.safetensors"
        weights = _tensors(path)
        if twice := sorted(weights.keys() & places.keys()):
            raise UserError(f"{path}: contains {twice[0]} as another file does; keep only one of the two files")
        save_file(weights, out / name, metadata={"format": "pt"})
        places |= dict.fromkeys(weights, name)
        size += sum(value.nbytes for value in weights.values())
    if len(paths) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for path in directory.iterdir():
        if path.is_file() and path.suffix in COPIED and not path.name.endswith(".index.json"):
            shutil.copyfile(path, out / path.name)
    return len(places)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file with torch's restricted unpickler; tensors that share memory become separate."""
    import pickle
    import struct

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, OSError, struct.error) as error:
        lines = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line] or ["damaged or not torch's"]
        raise UserError(f"{path}: contains more than weights, so it is not loaded ({lines[0]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: contains {type(content).__name__}, not tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: {name} is {type(value).__name__}, not a tensor; keep only the weights in it")
    return {name: value.detach().clone().contiguous() for name, value in content.items()}
