"""Read the optimizer state of a checkpoint by parameter, for any engine and number of ranks that saved it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.serialization import config as torch_files

from wellread.train.engines.unpickling import CLASSES, restricted, restricted_loading, unsafe

Moments = Callable[[str], tuple[torch.Tensor, torch.Tensor]]
"""Name of a parameter (as in `LossModule`) -> its first and second moment, flat fp32."""

OPTIMIZER_FILE = "optimizer.pt"
"""File that the torch engine saves."""
KEYS = ("exp_avg", "exp_avg_sq")
PARTS = "parts"
"""Folder in which every rank saves its part of the moments with NVMe, where DeepSpeed's files would miss some."""
ZERO = "zero"
"""Folder in which DeepSpeed saves, one file per rank."""

CONVERTER = f"""
import importlib, runpy, torch
from torch.utils.serialization import config
config.load.mmap = True
for path in {CLASSES}:
    module, _, name = path.rpartition(".")
    torch.serialization.add_safe_globals([getattr(importlib.import_module(module), name)])
runpy.run_module("deepspeed.checkpoint.ds_to_universal", run_name="__main__", alter_sys=True)
"""
"""DeepSpeed's converter with memory-mapped files; otherwise it reads the complete file of a rank into memory.

It may build only `CLASSES`; `restricted` overrides its requests for the unrestricted unpickler."""


def mapped_files() -> AbstractContextManager[None]:
    """Make all calls of torch.load map files into memory instead of reading them completely."""
    mapped: AbstractContextManager[None] = cast(Any, torch_files).patch("load.mmap", True)
    return mapped


def read(state: Path, converted: Path) -> Moments:
    """Open the moments of a checkpoint.

    Parameters
    ----------
    state : Path
        ``state/`` of the checkpoint.
    converted : Path
        Folder where `convert` has written a ZeRO state.
    """
    if (state / OPTIMIZER_FILE).is_file():
        return _of_torch(state / OPTIMIZER_FILE)
    return _of_parts(state / PARTS) if (state / PARTS).is_dir() else _of_universal(converted)


def write_parts(state: Path, rank: int, parts: Iterable[tuple[str, str, torch.Tensor]], shard_bytes: int) -> None:
    """Save a rank's part of the moments, with at most about `shard_bytes` of them in memory.

    Parameters
    ----------
    parts
        Name of a parameter, key of its moment, and this rank's flat part without padding. Concatenating the parts in
        rank order gives the moment.
    """
    from safetensors.torch import save_file

    folder = state / PARTS
    folder.mkdir(exist_ok=True)
    shard: dict[str, torch.Tensor] = {}
    number = 0
    for name, key, part in parts:
        shard[f"{name}/{key}"] = part.clone()
        if sum(tensor.nbytes for tensor in shard.values()) >= shard_bytes:
            save_file(shard, folder / f"rank-{rank:05d}-{number:05d}.safetensors")
            shard, number = {}, number + 1
    save_file(shard, folder / f"rank-{rank:05d}-{number:05d}.safetensors")


def _of_parts(folder: Path) -> Moments:
    from safetensors import safe_open

    places: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("rank-*.safetensors")):  # in rank order, then in order of writing
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                places.setdefault(key, []).append(path)

    def load(key: str) -> torch.Tensor:
        parts = []
        for path in places[key]:
            with safe_open(path, "pt") as file:
                parts.append(file.get_tensor(key))
        return torch.cat(parts)

    return lambda name: (load(f"{name}/{KEYS[0]}"), load(f"{name}/{KEYS[1]}"))


def convert(state: Path, converted: Path) -> None:
    """Convert a ZeRO state to DeepSpeed's universal layout, which fits any number of ranks. One rank calls it.

    Raises
    ------
    UserError
        When a file contains anything except tensors, plain values and `CLASSES`.
    RuntimeError
        When DeepSpeed's converter fails; contains its output.
    """
    shutil.rmtree(converted, ignore_errors=True)
    # One worker makes the converter use one process. Stages 1 and 2 save less than it needs; it injects the rest.
    options = ["--num_extract_workers=1", "--num_merge_workers=1", "--inject_missing_state"]
    command = [sys.executable, "-c", CONVERTER, *options]
    folders = [f"--input_folder={state / ZERO}", f"--output_folder={converted}"]
    process = subprocess.run(
        [*command, *folders],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env=restricted(os.environ),
    )
    if process.returncode and "UnpicklingError" in process.stderr:
        raise unsafe(state, process.stderr)
    if process.returncode:
        raise RuntimeError(f"{state}: DeepSpeed's converter failed:\n{process.stdout}{process.stderr}")
    converted.with_name("latest_universal").unlink(missing_ok=True)  # names the folder, which is removed after loading


def _of_torch(path: Path) -> Moments:
    with restricted_loading(path.parent):
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # every rank reads it
    index = {name: number for number, name in enumerate(saved["names"])}

    def moments(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        state = saved["optimizer"]["state"][index[name]]
        return state["exp_avg"].flatten(), state["exp_avg_sq"].flatten()

    return moments


def _of_universal(folder: Path) -> Moments:
    def load(name: str, key: str) -> torch.Tensor:
        saved = torch.load(folder / ZERO / name / f"{key}.pt", map_location="cpu", weights_only=True)
        tensor: torch.Tensor = saved["param"] if isinstance(saved, dict) else saved
        return tensor.flatten().float()

    return lambda name: (load(name, "exp_avg"), load(name, "exp_avg_sq"))
