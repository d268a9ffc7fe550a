"""Headers of safetensors files: names, shapes and places of tensors, read without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from wellread.errors import UserError
from wellread.models.directories import weight_files

EMBEDDINGS = ("embed_in.weight", "embed_tokens.weight", "wte.weight", "word_embeddings.weight")
"""Last parts of the names of input embeddings, in all families."""
HEADS = ("lm_head.weight", "embed_out.weight")
"""The same for output embeddings."""
LONGEST = 100 << 20
"""Most bytes of a header, as in safetensors."""
BLOCK = 1 << 24
"""Bytes that are compared at once."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is stored."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte in its file."""
    stop: int


def embedding_rows(directory: Path) -> int | None:
    """Rows of the input embedding in the files of a model; None if they have none that can be read."""
    embedding = _ending(_places(directory), EMBEDDINGS)
    return embedding.shape[0] if embedding and len(embedding.shape) == 2 else None


def has_separate_head(directory: Path) -> bool:
    """Whether the files contain an output embedding that differs from the input embedding."""
    places = _places(directory)
    head, embedding = _ending(places, HEADS), _ending(places, EMBEDDINGS)
    if head is None or embedding is None:
        return False
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return True
    with open(head.path, "rb") as first, open(embedding.path, "rb") as second:
        first.seek(head.start)
        second.seek(embedding.start)
        for position in range(head.start, head.stop, BLOCK):
            size = min(BLOCK, head.stop - position)
            if first.read(size) != second.read(size):
                return True
    return False


def _ending(places: dict[str, Place], endings: tuple[str, ...]) -> Place | None:
    return next((place for name, place in places.items() if name.endswith(endings)), None)


def _places(directory: Path) -> dict[str, Place]:
    """All tensors by name; none if a file is damaged, which loading reports."""
    try:
        return {name: place for path in weight_files(directory) for name, place in _header(path).items()}
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _header(path: Path) -> dict[str, Place]:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(min(size, LONGEST)))
    places = {}
    for name, entry in entries.items():
        if name != "__metadata__":
            start, stop = (int(offset) + 8 + size for offset in entry["data_offsets"])
            places[name] = Place(path, str(entry["dtype"]), tuple(map(int, entry["shape"])), start, stop)
    return places
