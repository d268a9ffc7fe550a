"""Checkpoints: directories that exist whole, with a manifest of hashes, or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wellread.errors import UserError
from wellread.files import fsync_directory, fsync_file, full_disk_named, sha256_file, write_json
from wellread.run import RunDirectory

MANIFEST = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its manifest is there; `damage` tells whether its files still match."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of batches read."""
        return int(self.manifest["step"])

    @property
    def tokens(self) -> int:
        """Number of tokens read, prompts included, padding not."""
        return int(self.manifest["tokens"])

    @property
    def head(self) -> str:
        """Head of the record at this step."""
        return str(self.manifest["record"]["head"])

    @property
    def batches(self) -> tuple[int, int]:
        """Batch ids read since the previous checkpoint, as start and stop."""
        start, stop = self.manifest["record"]["batches"]
        return int(start), int(stop)

    @property
    def model(self) -> Path:
        """Directory of the model in Hugging Face layout."""
        return self.path / "model"

    @property
    def state(self) -> Path:
        """Directory of what resuming needs."""
        return self.path / "state"

    @property
    def resumable(self) -> bool:
        """Whether its state is there; retention keeps the states of the newest checkpoints alone."""
        return any(name.startswith("state/") for name in self.manifest["files"])

    def damage(self) -> str | None:
        """One line about the first file that is missing or altered; None when all match."""
        for name, expected in self.manifest["files"].items():
            path = self.path / name
            if not path.is_file():
                return f"{path}: missing"
            if path.stat().st_size != expected["size"]:
                return f"{path}: {path.stat().st_size:,} bytes, the manifest says {expected['size']:,}"
            if sha256_file(path) != expected["sha256"]:
                return f"{path}: altered (its sha256 is not the manifest's)"
        return None


def name_of(step: int) -> str:
    """Directory name of the checkpoint at `step`."""
    return f"step-{step:08d}"


def list_checkpoints(directory: Path) -> list[Checkpoint]:
    """All committed checkpoints, by step."""
    found = []
    for path in sorted(directory.glob("step-*")):
        manifest = path / MANIFEST
        if re.fullmatch(r"step-\d+", path.name) and manifest.is_file():
            try:
                found.append(Checkpoint(path, json.loads(manifest.read_text())))
            except ValueError:  # not JSON, not even text
                continue  # newest_valid names it
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def unreadable(directory: Path) -> list[str]:
    """One line for each checkpoint directory whose manifest is missing, damaged, or of another step."""
    steps = {checkpoint.path: checkpoint.step for checkpoint in list_checkpoints(directory)}
    return [
        f"{path / MANIFEST}: missing, damaged, or of another step"
        for path in sorted(directory.glob("step-*"))
        if path not in steps or path.name != name_of(steps[path])
    ]


def open_checkpoint(directory: Path, step: int) -> Checkpoint:
    """The committed checkpoint of `step`.

    Raises
    ------
    UserError
        When there is none; names those that are there.
    """
    found = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(directory)}
    if step not in found:
        there = ", ".join(f"step-{other}" for other in found) or "none"
        raise UserError(f"{directory}: no checkpoint step-{step}; there: {there}")
    return found[step]


def named_checkpoint(name: str) -> Checkpoint:
    """RUN's newest checkpoint, or that of RUN@step-N.

    Raises
    ------
    UserError
        When there is no such run or checkpoint; names the checkpoints that are there.
    """
    path, at, step = (name, "", "") if Path(name).is_dir() else name.rpartition("@")
    run = RunDirectory.open(path if at else name)
    if at:
        if not re.fullmatch(r"step-\d+", step):
            raise UserError(f"{name}: {step!r} is no checkpoint; write RUN@step-N")
        return open_checkpoint(run.checkpoints, int(step.removeprefix("step-")))
    found = list_checkpoints(run.checkpoints)
    if not found:
        raise UserError(f"{run.path}: has no checkpoint yet")
    return found[-1]


def model_directory(name: str) -> Path:
    """Directory of a saved model: the one that is named, or that of a `named_checkpoint`.

    Raises
    ------
    UserError
        When there is no such run, checkpoint or model.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        return path
    if "@" not in path.name and not (path / "config.yaml").is_file():
        raise UserError(f"{name}: neither a run nor a model directory; name RUN, RUN@step-N or a directory of a model")
    return named_checkpoint(name).model


def newest_valid(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """Newest resumable checkpoint whose files all match its manifest, and a line for each newer one passed over."""
    passed_over: list[str] = []
    by_path = {checkpoint.path: checkpoint for checkpoint in list_checkpoints(directory)}
    for path in sorted(directory.glob("step-*"), reverse=True):
        checkpoint = by_path.get(path)
        if checkpoint and not checkpoint.resumable:
            continue
        damage = checkpoint.damage() if checkpoint else f"{path / MANIFEST}: missing or damaged"
        if checkpoint and damage is None:
            return checkpoint, passed_over
        passed_over.append(str(damage))
    return None, passed_over


def drop_old_states(directory: Path, keep: int) -> None:
    """Delete the states of all but the newest `keep` checkpoints; models stay.

    The manifest forgets the state before its files go, so that a crash in between leaves a valid checkpoint.
    """
    found = list_checkpoints(directory)
    kept = [checkpoint.step for checkpoint in found if checkpoint.resumable][-keep:]
    for checkpoint in found:
        if checkpoint.step in kept:
            continue
        if checkpoint.resumable:
            files = {name: of for name, of in checkpoint.manifest["files"].items() if not name.startswith("state/")}
            write_json(checkpoint.path / MANIFEST, checkpoint.manifest | {"files": files})
        shutil.rmtree(checkpoint.state, ignore_errors=True)


def staging(directory: Path, step: int) -> Path:
    """Temporary directory in which the checkpoint of `step` is put together."""
    return directory / f".{name_of(step)}.tmp"


def clear_staging(directory: Path) -> None:
    """Remove what interrupted saves left behind."""
    for path in directory.glob(".step-*"):
        shutil.rmtree(path)


def commit(directory: Path, step: int, manifest: dict[str, Any]) -> Checkpoint:
    """Turn the staging directory of `step` into a checkpoint: hash and fsync its files, write the manifest, rename."""
    source, target = staging(directory, step), directory / name_of(step)
    files = {}
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        fsync_file(path)
        files[str(path.relative_to(source))] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    manifest = {"version": 1, **manifest, "files": files}
    write_json(source / MANIFEST, manifest)
    for path in (p for p in source.rglob("*") if p.is_dir()):
        fsync_directory(path)
    if target.exists():  # a damaged one, passed over by resume
        os.rename(target, directory / f".{target.name}.damaged")
    os.rename(source, target)
    fsync_directory(directory)
    clear_staging(directory)
    return Checkpoint(target, manifest)


@contextmanager
def cleared_on_error(directory: Path) -> Iterator[None]:
    """Leave no half-made checkpoint behind; report a full disk, which libraries do in many ways, as one OSError."""
    try:
        with full_disk_named(directory):  # looks at the disk before it is cleared
            yield
    except Exception:
        clear_staging(directory)
        raise
