"""The model of a run, and which of its weights are trained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from wellread.config import check
from wellread.errors import UserError

Dtype = Literal["bf16", "fp32"]
Init = Literal["pretrained", "fresh"]
GradAccumDtype = Literal["auto", "fp32"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Initial weights, frozen parameters, precision."""

    name: str = "tiny"
    """Model: a name in configs/models.yaml, a hub name, or a directory in Hugging Face layout."""
    init: Init = "pretrained"
    """Initial weights: pretrained, or fresh (random; only the config and tokenizer of the model are used)."""
    freeze: str | None = None
    """Patterns of parameters that are not trained, e.g. gpt_neox.embed_in.*,*.layers.[0-3].* (default: none)."""
    load_in_4bit: bool = False
    """Load the frozen weights of a LoRA run in 4 bits (NF4); needs GPUs and bitsandbytes."""
    dtype: Dtype = "bf16"
    """Precision: bf16 (fp32 master weights, bf16 compute) or fp32."""
    grad_accum_dtype: GradAccumDtype = "auto"
    """Precision in which the gradients of micro-batches are added up: auto is fp32 under ddp and --dtype under ZeRO;
    fp32 is possible under zero2 and zero3, for 2 bytes more per weight."""
    tf32: bool = False
    """Products in TF32: with --dtype fp32 on GPUs, faster matrix products of numbers rounded to 11 bits."""
    float8: bool = False
    """Products of the layers' matrices in float8, with --dtype bf16 under ddp on GPUs from compute capability 8.9;
    needs torchao, and is meant for --compile on: without it, slower."""
    deterministic: bool = False
    """Only operations that give the same bits each time, so that resuming on the same GPUs is exact; slower."""

    def __post_init__(self) -> None:
        check.not_empty(self, name="model")
        if self.tf32 and self.dtype != "fp32":
            raise UserError("--tf32: rounds the products of fp32 training; add --dtype fp32, or leave it out")
        if self.float8 and self.dtype == "fp32":
            raise UserError("--float8: rounds the products of bf16 training; leave out --dtype fp32, or leave it out")
        if self.freeze is not None and not all(pattern.strip() for pattern in self.freeze.split(",")):
            raise UserError(
                f"--freeze {self.freeze!r}: contains an empty pattern; write patterns as *.embed_in.*,*.layers.0.*"
            )


@dataclass(frozen=True, kw_only=True)
class SmallLlama(ModelConfig):
    """Initial weights, frozen parameters, precision."""

    name: str = "stories-15m"
    """Model: a name in configs/models.yaml, stories-WIDTHxLAYERSxHEADS, or a directory with
    a SentencePiece tokenizer.model."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA: low-rank adapters are trained, the weights of the model are frozen."""

    rank: int = 0
    """Rank of the adapters; 0 trains all weights instead."""
    alpha: float | None = None
    """The output of an adapter is multiplied by alpha / rank (default: twice the rank)."""
    dropout: float = 0.0
    """Dropout probability at the input of an adapter."""
    targets: str | None = None
    """Matrices with an adapter, e.g. q_proj,v_proj, or all-linear (default: the usual ones of the model family)."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"--lora.rank {self.rank}: must be at least 1, or 0 to train all weights")
        if not self.rank and any(getattr(self, f.name) != f.default for f in fields(self)):
            raise UserError("--lora.rank: is missing, but other settings of LoRA are set; set a rank, e.g. 8")
        if self.alpha is not None and not self.alpha > 0:
            raise UserError(f"--lora.alpha {self.alpha}: must be above 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--lora.dropout {self.dropout}: must be at least 0 and below 1")
        if self.targets is not None and not all(name.strip() for name in self.targets.split(",")):
            raise UserError(f"--lora.targets {self.targets!r}: contains an empty name; write names as q_proj,v_proj")
