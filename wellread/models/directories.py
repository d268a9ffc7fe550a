"""The files of a model: where they are, fetched from the hub when they are not here; and the fingerprint of weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from wellread.config import Init
from wellread.errors import UserError
from wellread.models.spec import ModelSpec

SEARCH_PATH = "WELLREAD_MODELS"
"""Environment variable: directories (separated as in PATH) that hold models by registry name."""


def is_hub_name(name: str) -> bool:
    """Whether a name is that of a repository of the hub, as OWNER/NAME."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def hub_file(repository: str, filename: str, revision: str | None) -> Path:
    """One file of a repository of the hub, downloaded when it is not on this machine.

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
        f"--model {repository}: cannot be had from the hub ({reason}); put it into a directory of ${SEARCH_PATH} "
        "or pass its directory"
    )


def local_directory(spec: ModelSpec, *, weights: bool) -> Path:
    """Directory with the model's files; downloaded from the hub when it is not on this machine.

    Parameters
    ----------
    weights : bool
        Also the weights, not only the configuration and the tokenizer.

    Raises
    ------
    UserError
        When the hub cannot be reached.
    """
    return spec.path if spec.path is not None else _from_cache(str(spec.hub), spec.revision, weights=weights)


def named_directory(name: str, revision: str | None) -> Path:
    """Directory of a model that an adapter names: a path, or a repository of the hub.

    Raises
    ------
    UserError
        When it is not there.
    """
    if Path(name).is_dir():
        return Path(name)
    if is_hub_name(name):
        return _from_cache(name, revision, weights=True)
    raise UserError(f"{name}: the adapter's base model is not there; put it back, or mend adapter_config.json")


def _from_cache(repository: str, revision: str | None, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.txt", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise _unreachable(repository, error) from None


BLOCK = 1 << 20
"""Bytes hashed at each place of a weight file."""


def fingerprint(spec: ModelSpec, init: Init = "pretrained") -> str:
    """Identify initial weights: of a fresh model by its sizes or config, of any other by its config and weights.

    A weight file is hashed whole up to 64 MiB, beyond that at 64 evenly spaced blocks of 1 MiB, together with its size:
    two different trainings differ in every block, and a 24 GB model still answers within a second.
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
    for path in sorted(directory.glob("*.safetensors")) or sorted(directory.glob("pytorch_model*.bin")):
        state.update(f"{path.name}:{path.stat().st_size}".encode())
        with open(path, "rb") as file:
            last = max(path.stat().st_size - BLOCK, 0)
            for position in sorted({last * i // 63 // BLOCK * BLOCK for i in range(63)} | {last}):
                file.seek(position)
                state.update(file.read(BLOCK))
    return "weights:" + state.hexdigest()[:32]
