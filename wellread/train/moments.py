"""The optimizer state of a checkpoint, parameter by parameter, whichever engine and however many ranks saved it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

Moments = Callable[[str], tuple[torch.Tensor, torch.Tensor]]
"""Name of a parameter (as in `LossModule`) -> its first and second moment, flat fp32."""

OPTIMIZER_FILE = "optimizer.pt"
"""What the torch engine saves."""
ZERO = "zero"
"""Folder in which DeepSpeed saves, one file per rank."""


def read(state: Path, converted: Path) -> Moments:
    """Open the moments of a checkpoint.

    Parameters
    ----------
    state : Path
        ``state/`` of the checkpoint.
    converted : Path
        Where `convert` has put a ZeRO state.
    """
    if (state / OPTIMIZER_FILE).is_file():
        return _of_torch(state / OPTIMIZER_FILE)
    return _of_universal(converted)


def convert(state: Path, converted: Path) -> None:
    """Turn a ZeRO state into DeepSpeed's universal layout, which fits any number of ranks. One rank calls it.

    Raises
    ------
    RuntimeError
        When DeepSpeed's converter fails; carries what it printed.
    """
    shutil.rmtree(converted, ignore_errors=True)
    # Workers of 1 keep the converter in one process; missing state is injected for stages 1 and 2, which save none.
    options = ["--num_extract_workers=1", "--num_merge_workers=1", "--inject_missing_state"]
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *options]
    folders = [f"--input_folder={state / ZERO}", f"--output_folder={converted}"]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{state}: DeepSpeed's converter failed:\n{done.stdout}{done.stderr}")


def _of_torch(path: Path) -> Moments:
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # every rank reads it
    index = {name: number for number, name in enumerate(saved["names"])}

    def moments(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        state = saved["optimizer"]["state"][index[name]]
        return state["exp_avg"].flatten(), state["exp_avg_sq"].flatten()

    return moments


def _of_universal(folder: Path) -> Moments:
    def load(name: str, key: str) -> torch.Tensor:
        found = torch.load(folder / ZERO / name / f"{key}.pt", map_location="cpu", weights_only=True)
        tensor: torch.Tensor = found["param"] if isinstance(found, dict) else found
        return tensor.flatten().float()

    return lambda name: (load(name, "exp_avg"), load(name, "exp_avg_sq"))
