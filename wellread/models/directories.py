"""Directories of models, downloaded from the hub if they are not on this machine; fingerprints of weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wellread.config import Init
from wellread.errors import UserError
from wellread.hashes import KeptHashes
from wellread.models.configs import check_generation
from wellread.models.spec import ModelSpec
from wellread.text_io import LFS_POINTER, Parser, read_text
from wellread.whole import unusable

SEARCH_PATH = "WELLREAD_MODELS"
"""Environment variable with directories (separated as in PATH) that contain models by registry name."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
"""Name of a part of a model; other models and formats, for other programs, have other names."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Suffixes of files of weights that are pickles."""


def is_hub_name(name: str) -> bool:
    """Whether a name has the form OWNER/NAME of a repository of the hub."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def hub_file(repository: str, filename: str, revision: str | None) -> Path:
    """Path of one file of a repository of the hub, downloaded if it is not on this machine.

    Raises
    ------
    UserError
        When the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, filename, revision=revision))
    except Exception as error:
        raise _unreachable(repository, error) from None


def _unreachable(repository: str, error: Exception) -> UserError:
    reason = type(error).__name__ if not str(error) else str(error).strip().splitlines()[0]
    return UserError(
        f"--model {repository}: could not be downloaded from the hub ({reason}); put it into a directory of "
        f"${SEARCH_PATH} or pass its directory"
    )


def local_directory(spec: ModelSpec, *, weights: bool) -> Path:
    """Directory with the model's files, downloaded from the hub if they are not on this machine.

    Parameters
    ----------
    weights : bool
        Whether to include the weights; otherwise only configuration and tokenizer.

    Raises
    ------
    UserError
        When the hub cannot be reached, or the weights are not in safetensors.
    """
    if spec.path is None:
        directory = _from_cache(str(spec.hub), spec.revision, weights=weights)
        check_generation(directory, spec.vocab)
        return directory
    if weights:
        weight_files(spec.path)
    return spec.path


def named_directory(name: str, revision: str | None) -> Path:
    """Directory of the base model that an adapter names by path or by repository of the hub.

    Raises
    ------
    UserError
        When it does not exist.
    """
    if Path(name).is_dir():
        return Path(name)
    if is_hub_name(name):
        return _from_cache(name, revision, weights=True)
    raise UserError(f"{name}: base model of the adapter does not exist; restore it, or fix adapter_config.json")


def _from_cache(repository: str, revision: str | None, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.txt", "*.jinja", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise _unreachable(repository, error) from None


def weight_files(directory: Path) -> list[Path]:
    """Files with the weights of a model, all in safetensors; reads no weights.

    Raises
    ------
    UserError
        When there are none, one is missing or only a Git LFS pointer, the weights are in another format, or there are
        shards that would not be read.
    """
    for name in (WEIGHTS, INDEX):
        if problem := unusable(directory / name):
            raise UserError(f"{directory / name}: {problem}")
    if (directory / WEIGHTS).is_file():
        paths = [directory / WEIGHTS]
        if (directory / INDEX).is_file() and (other := [path for path in _indexed(directory) if path not in paths]):
            raise UserError(
                f"{directory / INDEX}: names {other[0].name}, but the weights are in {WEIGHTS}; "
                "remove the files of one of them"
            )
    elif (directory / INDEX).is_file():
        paths = _indexed(directory)
    else:
        raise _other_format(directory)
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: does not exist, but {INDEX} names it; download the model again")
        with open(path, "rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(f"{path}: is a Git LFS pointer, not the weights; run git lfs pull in its directory")
    for path in unused_files(directory, paths):
        if SHARD.fullmatch(path.name):
            by = WEIGHTS if directory / WEIGHTS in paths else f"the files that {INDEX} names"
            raise UserError(f"{path}: is not used, because the weights are in {by}; remove the files of one of them")
    return paths


def unused_files(directory: Path, used: Iterable[Path] | None = None) -> list[Path]:
    """Files in safetensors that loading a model does not read (`used`: default `weight_files`)."""
    read = set(weight_files(directory) if used is None else used)
    return sorted(path for path in directory.glob("*.safetensors") if path not in read)


def _indexed(directory: Path) -> list[Path]:
    try:
        names = set(Parser().decode(read_text(directory / INDEX))["weight_map"].values())
        plain = all(isinstance(name, str) and Path(name).name == name for name in names)
        pickles = sorted(name for name in names if plain and Path(name).suffix in PICKLES)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        plain, pickles = False, []
    if pickles:
        raise _pickled(directory, pickles[0])
    if not plain:
        raise UserError(f"{directory / INDEX}: has no weight_map from tensors to files; download the model again")
    return [directory / name for name in sorted(names)]


def _other_format(directory: Path) -> UserError:
    """The error for a directory without weights in safetensors."""
    pickles = sorted(path.name for suffix in PICKLES for path in directory.glob(f"*{suffix}"))
    if not pickles:
        return UserError(f"{directory}: contains no {WEIGHTS}; pass a directory with the weights of the model")
    return _pickled(directory, pickles[0])


def _pickled(directory: Path, name: str) -> UserError:
    return UserError(
        f"{directory / name}: can execute code when it is loaded, so only safetensors are read; "
        f"convert it with: wellread import {directory} --out NEW_DIRECTORY"
    )


BLOCK = 1 << 20
"""Bytes hashed at each position of a weight file."""


def fingerprint(spec: ModelSpec, init: Init = "pretrained") -> str:
    """Identify initial weights: a fresh model by its sizes or config, any other model by its config and weights.

    Weight files of up to 64 MiB are hashed completely, larger ones by their size and 64 evenly spaced blocks of 1 MiB:
    weights from different trainings differ in every block, and a 24 GB model takes less than a second.
    """
    if spec.fresh:
        sizes: tuple[Any, ...] = (
            spec.family, spec.layers, spec.width, spec.heads, spec.intermediate, spec.vocab, spec.positions
        )  # fmt: skip
        if spec.kv_heads or spec.tied:
            sizes += (spec.kv_heads, spec.tied)
        return "fresh:" + hashlib.sha256(repr(sizes).encode()).hexdigest()[:32]
    if init == "fresh":
        config = (local_directory(spec, weights=False) / "config.json").read_bytes()
        return "fresh:" + hashlib.sha256(config).hexdigest()[:32]
    return fingerprint_directory(local_directory(spec, weights=True))


def fingerprint_directory(directory: Path) -> str:
    """Identify the weights in a directory, as `fingerprint` does."""
    state = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        state.update(f"{path.name}:{path.stat().st_size}".encode())
        with open(path, "rb") as file:
            last = max(path.stat().st_size - BLOCK, 0)
            for position in sorted({last * i // 63 // BLOCK * BLOCK for i in range(63)} | {last}):
                file.seek(position)
                state.update(file.read(BLOCK))
    return "weights:" + state.hexdigest()[:32]


def weights_hash(directory: Path, hashes: KeptHashes | None = None) -> str:
    """Hash of the configuration and of every byte of the weights in a directory, 32 hex digits.

    `fingerprint_directory` reads only parts of large files: it distinguishes trainings, not altered files.

    Parameters
    ----------
    hashes
        Keeps the hashes of the files (default: they are read again).
    """
    hashes = hashes or KeptHashes()
    state = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        state.update(f"{path.name}:{hashes.sha256(path)}".encode())
    hashes.keep()
    return state.hexdigest()[:32]
