"""Description of a model that is not loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wellread.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Published settings of a model's pretraining."""

    batch_size: int
    """Samples per batch."""
    lr: float
    """Peak learning rate."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Location and sizes of a model, and default settings for its training."""

    name: str
    family: str
    layers: int
    width: int
    heads: int
    intermediate: int
    vocab: int
    positions: int
    rope_limit: int | None = None
    """Longest samples whose losses do not depend on others in their batch (None: all that the model reads)."""
    kv_heads: int | None = None
    """Number of heads of keys and values, if it is different from `heads`."""
    head_size: int | None = None
    """Width of a head, if it is not width / heads."""
    tied: bool | None = None
    """Whether the output embedding is the input embedding (None: default of the family)."""
    attention_bias: bool | None = None
    """Whether the attention projections have a bias (None: default of the family)."""
    path: Path | None = None
    """Local directory in Hugging Face layout."""
    hub: str | None = None
    revision: str | None = None
    """Branch, tag or commit of the hub repository, e.g. step3000 of a Pythia model."""
    fresh: bool = False
    """Whether it starts from random weights; its tokenizer is then trained on the data."""
    pretraining: Pretraining | None = None
    lr: float = 2e-5
    batch_size: int = 32
    epochs: float = 3
    seq_len: int = 512


def check_heads(where: str, width: int, heads: int, kv_heads: int) -> None:
    """Check that heads divide the width, KV heads divide the heads, and the width of a head is even.

    Raises
    ------
    UserError
        When they do not; the message begins with `where`.
    """
    if width % heads:
        raise UserError(f"{where}: {heads} heads do not divide the width {width}; choose a multiple of {heads}")
    if heads % kv_heads:
        raise UserError(f"{where}: {kv_heads} heads of keys and values do not divide {heads} heads; choose a divisor")
    if width // heads % 2:
        raise UserError(
            f"{where}: rotary embedding needs heads of even width, not {width // heads}; change the width or the heads"
        )
