"""A corpus accepts the values that its format defines, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wellread.corpus.read import Corpus
from wellread.errors import UserError


@pytest.fixture
def copied(corpus: Corpus, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus.path, tmp_path / "corpus"))


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    meta = json.loads((folder / "corpus.json").read_text())
    change(meta)
    (folder / "corpus.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("dtype", ["O", "<u8", "<i4", ">u2", "S4", "", None, 5, ["<u2"], {"a": 1}])
def test_only_two_types_of_tokens(copied: Path, dtype: object) -> None:
    changed(copied, lambda meta: meta.update(dtype=dtype))
    with pytest.raises(UserError, match=r"corpus\.json: damaged \(dtype: expected (<u2 or <u4\)|a text, found )"):
        Corpus.open(copied)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("counts", {"samples": "5", "trainable": 1}),
        ("counts", {"samples": 5, "trainable": 6}),
        ("counts", {"samples": 5, "trainable": -1}),
        ("counts", None),
        ("hash", 5),
        ("sizes", None),
        ("sizes", {"../tokens.bin": 5}),
        ("sizes", {"/etc/passwd": 5}),
        ("sizes", {"..": 5}),
        ("sizes", {"tokens.bin": "5"}),
        ("tokenizer", [1]),
    ],
)
def test_other_values_are_refused_by_key(copied: Path, key: str, values: object) -> None:
    changed(copied, lambda meta: meta.update({key: values}))
    with pytest.raises(
        UserError, match=rf"corpus\.json: damaged \({key}.*: expected .*(compile it again|restore it from a copy)"
    ):
        Corpus.open(copied)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("offsets.npy", lambda values: values.astype(np.float64)),
        ("offsets.npy", lambda values: values[:-1]),
        ("offsets.npy", lambda values: values + 1),
        ("offsets.npy", lambda values: values * 1000),
        ("offsets.npy", lambda values: np.where(np.arange(values.size) == 9, 1 << 40, values)),  # as one altered byte
        ("target_offsets.npy", lambda values: np.where(np.arange(values.size) == 9, 1 << 40, values)),
        ("target_offsets.npy", lambda values: values * 2),
        ("targets.npy", lambda values: values.reshape(-1)),
    ],
)
def test_arrays_beyond_their_files_are_refused(copied: Path, name: str, change: Callable[[Any], Any]) -> None:
    np.save(copied / name, change(np.load(copied / name)))
    changed(copied, lambda meta: meta["sizes"].update({name: (copied / name).stat().st_size}))
    corpus = Corpus.open(copied)
    with pytest.raises(UserError, match=rf"{name}: damaged \(.*compile it again"):
        corpus.targets(0)
