"""To what kept token columns of models belong: every byte of the weights, and what is scored."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from support.small_evaluations import make_run

from eval.kept import How, key_of_model
from eval.membership.any_store import Stored
from wellread.hashes import KeptHashes
from wellread.models.directories import BLOCK, fingerprint_directory, weights_hash


def model_in(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


class Scored:
    """One sample of three tokens, whose loss mask begins at the given token."""

    longest = 8

    def __init__(self, *tokens: int, first: int = 1) -> None:
        self._tokens, self._first = np.array(tokens), first

    def tokens(self, i: int) -> Any:
        return self._tokens

    def targets(self, i: int) -> Any:
        return np.arange(self._tokens.size) >= self._first

    def starts(self, i: int) -> Any:
        return np.zeros(1, np.int64)


def test_token_columns_belong_to_weights_and_to_what_is_scored(tmp_path: Path) -> None:
    """A changed tokenizer, and a reference model after a model that adds a token of its own, have other tokens."""
    model, compared = model_in(tmp_path / "a"), SimpleNamespace(n=1)

    def place(directory: Path, samples: Scored) -> Path:
        stored: Any = Stored(compared, samples, tmp_path, How(), None, KeptHashes())  # type: ignore[arg-type]
        return Path(stored._place(directory, "tokens", samples)[0])

    first = place(model, Scored(1, 2, 3))
    assert place(model, Scored(1, 2, 3)) == first
    places = [place(model, Scored(*tokens)) for tokens in ((0, 1, 2, 3), (1, 2, 4))]
    places += [place(model, Scored(1, 2, 3, first=2)), place(model_in(tmp_path / "b", b"others!"), Scored(1, 2, 3))]
    assert len({first, *places}) == 5


def test_every_byte_of_large_weights_is_hashed(tmp_path: Path) -> None:
    """A fingerprint reads 64 blocks of 1 MiB; of 200 MiB, byte 1 MiB is in none of them."""
    folders = [model_in(tmp_path / name) for name in "ab"]
    for folder in folders:
        os.truncate(folder / "model.safetensors", 200 * BLOCK)
    with open(folders[1] / "model.safetensors", "r+b") as file:
        file.seek(BLOCK)
        file.write(b"altered")
    assert fingerprint_directory(folders[0]) == fingerprint_directory(folders[1])
    assert weights_hash(folders[0]) != weights_hash(folders[1])


def test_hashes_of_a_reference_model_are_kept_by_size_time_and_inode(tmp_path: Path) -> None:
    run, model = make_run(tmp_path / "run"), model_in(tmp_path / "model")
    weights = model / "model.safetensors"
    before, status = key_of_model(run, model), weights.stat()
    with open(weights, "r+b") as file:
        file.write(b"altered")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert key_of_model(run, model) == before
    altered = key_of_model(run, model, again=True)
    assert altered != before
    assert key_of_model(run, model) == altered
