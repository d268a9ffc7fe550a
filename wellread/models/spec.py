"""What is known of a model before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wellread.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What was published of a model's own training."""

    batch_size: int
    """Samples per batch."""
    lr: float
    """Peak learning rate."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Where a model is and what is known of it before it is loaded."""

    name: str
    family: str
    layers: int
    width: int
    heads: int
    intermediate: int
    vocab: int
    positions: int
    kv_heads: int | None = None
    """Heads of keys and values, where they are fewer than the others."""
    head_size: int | None = None
    """Width of a head, where it is not width / heads."""
    tied: bool | None = None
    """Whether the output embedding is the input embedding (None: as is usual in the family)."""
    attention_bias: bool | None = None
    """Whether the projections of attention add a bias (None: as is usual in the family)."""
    path: Path | None = None
    """Local directory in Hugging Face layout."""
    hub: str | None = None
    revision: str | None = None
    """Branch, tag or commit of the hub repository, such as step3000 of a Pythia model."""
    fresh: bool = False
    """Starts from random weights; its tokenizer is trained on the data."""
    pretraining: Pretraining | None = None
    lr: float = 2e-5
    batch_size: int = 32
    epochs: float = 3
    seq_len: int = 512


def check_heads(where: str, width: int, heads: int, kv_heads: int) -> None:
    """Refuse heads that do not divide the width, or groups of them that do not come out even.

    Raises
    ------
    UserError
        One line that begins with `where`.
    """
    if width % heads:
        raise UserError(f"{where}: {heads} heads do not divide the width {width}; choose a multiple of {heads}")
    if heads % kv_heads:
        raise UserError(f"{where}: {kv_heads} heads of keys and values do not divide {heads} heads")
    if width // heads % 2:
        raise UserError(f"{where}: heads of width {width // heads} cannot be rotated in pairs; make it even")
