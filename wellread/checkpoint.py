"""Checkpoints: directories with a manifest of hashes. A checkpoint is complete or does not exist."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wellread.errors import UserError
from wellread.files import (
    checksum,
    fsync_directory,
    fsync_file,
    read_json,
    remove,
    sha256_file,
    with_checksum,
    write_json,
)
from wellread.hashes import KeptHashes

MANIFEST = "checkpoint.json"
SHAPE = {
    "version": int, "step": int, "tokens": int, "skipped": int, "record": {"head": str, "batches": [int]},
    "corpus": str, "identity": dict, "strategy": str, "ranks": int, "dtype": str, "holdout_loss": (float, None),
    "files": {...: {"size": int, "sha256": str}}, "dropped": {...: {"size": int, "sha256": str}}, "checksum": str,
    "fast": [str], "grad_accum_dtype": (str, None),
}  # fmt: skip
"""Shape of that file."""
SHOWN = 12
"""Most names that an error lists."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its manifest exists; `damage` checks whether its files still match the manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of batches read."""
        return int(self.manifest["step"])

    @property
    def tokens(self) -> int:
        """Number of tokens read, including prompts, without padding."""
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
        """Directory of the training state that resuming needs."""
        return self.path / "state"

    @property
    def resumable(self) -> bool:
        """Whether it has a state: only the newest checkpoints keep theirs."""
        return any(name.startswith("state/") for name in self.manifest.get("files", ()))

    def damage(self, sha256: Callable[[str], str] | None = None, hashed: str = "") -> str | None:
        """Describe the first file that is missing, altered or not listed, in one line; None when all files match.

        Parameters
        ----------
        sha256 : callable, optional
            Returns the hash of the file with this name in the manifest (default: computes it).
        hashed : str
            Beginning of the names of the files to hash; of the others only the size is compared.
        """
        files = self.manifest.get("files")
        if not isinstance(files, dict) or not any(_is_weights(name) for name in files):
            return f"{self.path / MANIFEST}: files: lists no weights in model/"
        for name, expected in files.items():
            path = self.path / name
            if (
                not isinstance(expected, dict)
                or not {"size", "sha256"} <= expected.keys()
                or {"", ".."} & {*name.split("/")}
            ):
                return f"{self.path / MANIFEST}: files: {name!r} has no size or sha256, or is outside the checkpoint"
            if not path.is_file() or path.is_symlink():
                return f"{path}: missing" if not path.is_symlink() else f"{path}: is a link, the manifest lists a file"
            if path.stat().st_size != expected["size"]:
                return f"{path}: {path.stat().st_size:,} bytes, the manifest says {expected['size']:,}"
            if name.startswith(hashed) and (sha256(name) if sha256 else sha256_file(path)) != expected["sha256"]:
                return f"{path}: altered (its sha256 is not the manifest's)"
        if self.manifest.get("checksum") not in (None, checksum(self.manifest)):
            return f"{self.path / MANIFEST}: altered (its checksum is not that of its content)"
        return next((f"{self.path / name}: not listed in {MANIFEST}; remove it" for name in self.unlisted()), None)

    def unlisted(self) -> list[str]:
        """Names of files, links and other entries in its directory that its manifest does not list, sorted.

        A crash may leave a file of a state that was being deleted, and the temporary file of the manifest.
        """
        names = []
        for folder, folders, files in os.walk(self.path):
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            names += [Path(folder, name).relative_to(self.path).as_posix() for name in [*files, *links]]
        listed = {MANIFEST, *self.manifest.get("files", ())}
        listed |= {name for name in self.manifest.get("dropped", ()) if name.startswith("state/")}
        return sorted(
            name for name in {*names} - listed if not re.fullmatch(rf"\.{re.escape(MANIFEST)}\.\d+\.tmp", name)
        )

    def refuse_damaged(self, hashes: Path, again: bool = False) -> None:
        """Compare its files with its manifest before its model is read; quick if nothing changed since the last time.

        Parameters
        ----------
        hashes : Path
            File that keeps the hashes of the model's files, each with the size, time of change and inode of its file.
        again : bool
            Whether to hash files again that have not changed since.

        Raises
        ------
        UserError
            When a file of the checkpoint is missing, altered or not listed.
        """
        file_hashes = KeptHashes(hashes, again)

        def sha256(name: str) -> str:
            return file_hashes.sha256(self.path / name, name)

        damage = self.damage(sha256, "model/")
        if damage and (checkpoint := _committed(self.path)):  # the run may have deleted its state meanwhile
            damage = checkpoint.damage(sha256, "model/")
        if damage:
            raise UserError(f"{damage}; see wellread verify {self.path.parent.parent}")
        file_hashes.keep()


def _is_weights(name: str) -> bool:
    return name.startswith("model/") and name.endswith(".safetensors")


def name_of(step: int) -> str:
    """Directory name of the checkpoint at `step`."""
    return f"step-{step:08d}"


def list_checkpoints(directory: Path) -> list[Checkpoint]:
    """All committed checkpoints, by step."""
    paths = (path for path in directory.glob("step-*") if re.fullmatch(r"step-\d+", path.name))
    return sorted(filter(None, map(_committed, paths)), key=lambda checkpoint: (checkpoint.step, checkpoint.path))


def _committed(path: Path) -> Checkpoint | None:
    """The checkpoint in a directory; None when its manifest cannot be read: newest_valid and verify report it."""
    try:
        return read_checkpoint(path)
    except (UserError, OSError):
        return None


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a directory.

    Raises
    ------
    UserError
        When its manifest is damaged.
    """
    manifest = read_json(path / MANIFEST, SHAPE)
    if "step" not in manifest:
        raise UserError(f"{path / MANIFEST}: damaged ('step' is missing); restore it from a copy")
    batches = manifest.get("record", {}).get("batches", [0, 0])
    if len(batches) != 2:
        raise UserError(f"{path / MANIFEST}: damaged (record.batches: expected two numbers); restore it from a copy")
    return Checkpoint(path, manifest)


def open_checkpoint(directory: Path, step: int) -> Checkpoint:
    """The committed checkpoint of `step`.

    Raises
    ------
    UserError
        When there is none; lists the available ones.
    """
    checkpoints = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(directory)}
    if step not in checkpoints and (directory / name_of(step) / MANIFEST).exists():
        read_checkpoint(directory / name_of(step))  # says how its manifest is damaged
    if step not in checkpoints:
        raise missing_checkpoint(str(directory.parent), step, list(checkpoints))
    return checkpoints[step]


def missing_checkpoint(run: str, step: int, steps: list[int]) -> UserError:
    """The error about a missing checkpoint; it lists the existing ones, or the first and last if there are many."""
    names = [f"step-{other}" for other in steps]
    if len(names) > SHOWN:
        names = [*names[: SHOWN // 2], "…", *names[-SHOWN // 2 :]]
    return UserError(f"{run}: no checkpoint step-{step}; it has {', '.join(names) or 'none yet'}")


def newest_valid(directory: Path) -> tuple[Checkpoint | None, dict[str, str]]:
    """Newest resumable checkpoint with no damaged file, and what is wrong with each newer one, by name."""
    skipped: dict[str, str] = {}
    by_path = {checkpoint.path: checkpoint for checkpoint in list_checkpoints(directory)}
    for path in sorted(directory.glob("step-*"), reverse=True):
        checkpoint = by_path.get(path)
        if checkpoint and not checkpoint.resumable:
            continue
        damage = checkpoint.damage() if checkpoint else f"{path / MANIFEST}: missing or damaged"
        if checkpoint and damage is None:
            return checkpoint, skipped
        skipped[path.name] = str(damage)
    return None, skipped


def drop_old_states(directory: Path, keep: int, damaged: Collection[str] = ()) -> None:
    """Delete the states of all but the newest `keep` checkpoints; models are kept.

    Checkpoints named in `damaged` do not count, and keep what they have: training cannot resume from them. The state is
    removed from the manifest before its files are deleted: a crash in between leaves a valid checkpoint.
    """
    checkpoints = list_checkpoints(directory)
    usable = [checkpoint for checkpoint in checkpoints if checkpoint.path.name not in damaged]
    steps_with_state = [checkpoint.step for checkpoint in usable if checkpoint.resumable][-keep:]
    for checkpoint in usable:
        if checkpoint.step in steps_with_state:
            continue
        if checkpoint.resumable:
            files = checkpoint.manifest["files"]
            remaining = {name: file for name, file in files.items() if not name.startswith("state/")}
            dropped = {name: file for name, file in files.items() if name not in remaining}
            manifest = checkpoint.manifest | {"files": remaining, "dropped": dropped}
            write_json(checkpoint.path / MANIFEST, with_checksum(manifest))
        shutil.rmtree(checkpoint.state, ignore_errors=True)


def staging(directory: Path, step: int) -> Path:
    """Temporary directory in which the files of the checkpoint of `step` are written."""
    return directory / f".{name_of(step)}.tmp"


def clear_staging(directory: Path) -> None:
    """Remove the temporary directories of interrupted saves."""
    for path in directory.glob(".step-*"):
        remove(path)


def commit(directory: Path, step: int, manifest: dict[str, Any]) -> Checkpoint:
    """Turn the staging directory of `step` into a checkpoint: hash and fsync its files, write the manifest, rename."""
    source, target = staging(directory, step), directory / name_of(step)
    files = {}
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        fsync_file(path)
        files[str(path.relative_to(source))] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    manifest = with_checksum({"version": 1, **manifest, "files": files})
    write_json(source / MANIFEST, manifest)
    for path in (p for p in source.rglob("*") if p.is_dir()):
        fsync_directory(path)
    if target.exists():  # damaged, skipped by resume
        os.rename(target, directory / f".{target.name}.damaged")
    os.rename(source, target)
    fsync_directory(directory)
    clear_staging(directory)
    return Checkpoint(target, manifest)
