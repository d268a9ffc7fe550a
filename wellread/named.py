"""Checkpoints and models by name, as a user writes them: RUN, RUN@step-N, or a directory."""

from __future__ import annotations

import re
from pathlib import Path

from wellread.checkpoint import MANIFEST, Checkpoint, list_checkpoints, open_checkpoint, read_checkpoint
from wellread.errors import UserError
from wellread.run import RunDirectory


def named_checkpoint(name: str) -> Checkpoint:
    """Find a checkpoint by name: RUN is the newest one of a run, RUN@step-N a certain one.

    Raises
    ------
    UserError
        When there is no such run or checkpoint; lists the available checkpoints.
    """
    if hint := _hint(Path(name)):
        raise UserError(f"{name}: {hint}")
    path, at, step = (name, "", "") if Path(name).is_dir() else name.rpartition("@")
    run = RunDirectory.open(path if at else name)
    if at:
        if not re.fullmatch(r"step-\d+", step):
            raise UserError(f"{name}: {step!r} is not a checkpoint; write RUN@step-N")
        return open_checkpoint(run.checkpoints, int(step.removeprefix("step-")))
    checkpoints = list_checkpoints(run.checkpoints)
    if not checkpoints:
        raise UserError(f"{run.path}: has no checkpoint yet")
    return checkpoints[-1]


def _hint(path: Path) -> str:
    """What to give instead of a directory that is not a run, a checkpoint of one or its model; empty for others."""
    folder = path.parent if path.name == "model" else path
    if (folder / MANIFEST).is_file() and re.fullmatch(r"step-\d+", folder.name):
        return f"a checkpoint of a run; give {folder.parent.parent}@step-{int(folder.name.removeprefix('step-'))}"
    if (path / "adapter_config.json").is_file():
        return "an adapter; export the model with wellread export RUN --merged --out DIR"
    return ""


def model_directory(name: str) -> Path:
    """Directory of a saved model: `name` itself, or the model of `named_checkpoint(name)`.

    Raises
    ------
    UserError
        When there is no such run, checkpoint or model, or the checkpoint does not match its manifest.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        if path.name == "model" and (path.parent / MANIFEST).is_file():
            _refuse(read_checkpoint(path.parent))
        return path
    if hint := _hint(path):
        raise UserError(f"{name}: {hint}")
    if "@" not in path.name and not (path / "config.yaml").is_file():
        raise UserError(f"{name}: neither a run nor a model directory; give RUN, RUN@step-N or a model directory")
    checkpoint = named_checkpoint(name)
    _refuse(checkpoint)
    return checkpoint.model


def _refuse(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that does not match its manifest."""
    if damage := checkpoint.damage():
        raise UserError(f"{damage}; choose another checkpoint: RUN@step-N")
