"""The model of a run, and which of its weights are trained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from wellread.config import check
from wellread.errors import UserError

Dtype = Literal["bf16", "fp32"]
Init = Literal["pretrained", "fresh"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model."""

    name: str = "tiny"
    """Registry name (configs/models.yaml), hub name or directory in Hugging Face layout."""
    init: Init = "pretrained"
    """pretrained, or fresh: random weights, of the model no more than its config and tokenizer."""
    freeze: str | None = None
    """Parameters that stay as they are: patterns over their names, as gpt_neox.embed_in.*,*.layers.[0-3].*"""
    load_in_4bit: bool = False
    """Keep the frozen weights of a LoRA run in 4 bits (NF4); needs GPUs and bitsandbytes."""
    dtype: Dtype = "bf16"
    """bf16 (fp32 master weights, bf16 compute) or fp32."""

    def __post_init__(self) -> None:
        check.not_empty(self, name="model")
        if self.freeze is not None and not all(pattern.strip() for pattern in self.freeze.split(",")):
            raise UserError(
                f"--freeze {self.freeze!r}: holds an empty pattern; write them as *.embed_in.*,*.layers.0.*"
            )


@dataclass(frozen=True, kw_only=True)
class SmallLlama(ModelConfig):
    """The model of a pretraining."""

    name: str = "stories-15m"
    """Registry name, stories-WIDTHxLAYERSxHEADS, or a directory with a SentencePiece tokenizer.model."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters beside the matrices of a model, which itself stays as it is."""

    rank: int = 0
    """Rank of the adapters; 0 trains all weights."""
    alpha: float | None = None
    """What an adapter adds is scaled by alpha / rank (default: twice the rank)."""
    dropout: float = 0.0
    """Dropout of what enters an adapter."""
    targets: str | None = None
    """Matrices with an adapter, as q_proj,v_proj, or all-linear (default: those usual in the family)."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"--lora.rank {self.rank}: must be at least 1, or 0 to train all weights")
        if not self.rank and any(getattr(self, f.name) != f.default for f in fields(self)):
            raise UserError("--lora.rank: is missing, so the other settings of LoRA mean nothing; give one, e.g. 8")
        if self.alpha is not None and not self.alpha > 0:
            raise UserError(f"--lora.alpha {self.alpha}: must be above 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--lora.dropout {self.dropout}: must be at least 0 and below 1")
        if self.targets is not None and not all(name.strip() for name in self.targets.split(",")):
            raise UserError(f"--lora.targets {self.targets!r}: holds an empty name; write them as q_proj,v_proj")
