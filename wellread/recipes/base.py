"""The base class of recipes: settings and their defaults, the samples, and the model that reads them.

``--help`` imports the modules of recipes; so they import slow modules inside functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from wellread.cli import add_dataclass, parse_dataclass
from wellread.config import RunConfig, to_dict
from wellread.config.canary import RANDOM
from wellread.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from wellread.models.spec import ModelSpec
    from wellread.order.spec import OrderSpec

C = TypeVar("C", bound=RunConfig)

LONGEST_NAME = 60
"""Characters of a corpus's folder, before its key."""
LORA_RATE = 10
"""LoRA's best learning rate as a multiple of that of all weights, whatever the model and the rank (Schulman et al.
2025, "LoRA Without Regret", https://thinkingmachines.ai/blog/lora)."""


class Samples(ABC):
    """What a run will read; known before it is compiled."""

    config: RunConfig
    """Resolved."""

    @property
    @abstractmethod
    def spec(self) -> ModelSpec:
        """The model that reads the samples, with their vocabulary.

        Raises
        ------
        UserError
            When the vocabularies of samples and model differ.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """First part of the name of the corpus directory."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All settings that determine the content of the corpus. Computed once, because it hashes the data files."""

    @abstractmethod
    def estimate(self) -> int:
        """Estimated number of samples, without reading all data."""

    @cached_property
    def directory(self) -> Path:
        """Directory of the compiled corpus; equal settings give the same directory."""
        from wellread.corpus.digest import corpus_key

        return Path(self.config.data.corpora).expanduser() / f"{self.name}-{corpus_key(self.settings)}"


class Recipe(ABC, Generic[C]):
    """One kind of training: a program of the same name prepares its corpus and trains."""

    name: str
    """``python -m NAME prepare`` compiles the corpus, ``python -m NAME train RUN`` trains a rank."""
    config: type[C]
    hidden: tuple[str, ...] = ()
    """Settings that the help does not list."""
    most_used: tuple[str, ...] = (
        "model",
        "data",
        "out",
        "steps",
        "epochs",
        "batch_size",
        "seq_len",
        "optim.lr",
        "strategy",
        "ranks_per_node",
    )
    """Flags that the help of ``wellread run`` and ``wellread plan`` lists first."""
    most_used_to_compile: tuple[str, ...]
    """Flags that the help of ``wellread prepare`` lists first."""
    usage: str
    """What ``wellread run NAME`` does."""
    description: str
    examples: str
    """Examples for the help of ``wellread run`` and ``wellread plan``; {command} is replaced."""

    def add_flags(self, parser: ArgumentParser) -> None:
        """Give `parser` the flags of a run."""
        from wellread.help import arrange

        self._add_settings(parser)
        arrange(parser, self.config, self.most_used)

    def add_compile_flags(self, parser: ArgumentParser) -> None:
        """Give `parser` the same flags; the help lists those first that compiling a corpus uses."""
        from wellread.help import arrange

        self._add_settings(parser)
        arrange(parser, self.config, self.most_used_to_compile, only_sections=("data", "canary"))

    def _add_settings(self, parser: ArgumentParser) -> None:
        add_dataclass(parser, self.config, self.hidden)
        self.add_own_flags(parser)

    def add_own_flags(self, parser: ArgumentParser) -> None:
        """Give `parser` flags that are not settings; `parse` turns them into settings."""

    def parse(self, parser: ArgumentParser, argv: list[str]) -> tuple[C, dict[str, Any]]:
        """Parse `argv` with a parser that has these flags; return the settings, and all other values."""
        return parse_dataclass(parser, self.config, argv)

    def resolve(self, config: C, spec: ModelSpec) -> C:
        """Fill in all defaults that depend on the model; the plan computes the steps.

        Raises
        ------
        UserError
            When the sequence length exceeds the model's positions, or LoRA or the order contradicts other settings.
        """
        seq_len = config.data.seq_len or min(spec.seq_len, spec.positions, spec.rope_limit or spec.positions)
        if seq_len > self.positions(spec, seq_len):
            raise UserError(f"--seq_len {seq_len}: {spec.name} has {spec.positions} positions; choose at most that")
        if spec.rope_limit and seq_len > spec.rope_limit:
            raise UserError(
                f"--seq_len {seq_len}: {spec.name} uses other rotary factors for all samples of a batch with one "
                f"longer than {spec.rope_limit} tokens, so losses would depend on the batch; "
                f"choose at most {spec.rope_limit}"
            )
        if config.canary.canaries and config.canary.tokens > seq_len and config.canary.canary_text == RANDOM:
            raise UserError(
                f"--canary_tokens {config.canary.tokens}: longer than a window of {seq_len} tokens (--seq_len); "
                "choose at most that"
            )
        order = _checked_order(config)
        data, lora = config.data.name or self.usual_data(spec), config.lora
        if lora.rank and (spec.fresh or config.model.init == "fresh"):
            raise UserError(
                f"--lora.rank {lora.rank}: {spec.name} starts from random weights, so all of them "
                "have to be trained; leave it out"
            )
        return config.replace(
            data=data,
            out=config.save.out or default_out(spec, data),
            epochs=None
            if config.schedule.steps
            else config.schedule.epochs or (1.0 if order.kind == "curriculum" else spec.epochs),
            batch_size=config.schedule.batch_size or spec.batch_size,
            seq_len=seq_len,
            optim=replace(config.optim, lr=config.optim.lr or spec.lr * (LORA_RATE if lora.rank else 1)),
            lora=replace(lora, alpha=lora.alpha or 2 * lora.rank) if lora.rank else lora,
        )

    def positions(self, spec: ModelSpec, seq_len: int) -> int:
        """Number of positions of the model when samples have up to `seq_len` tokens."""
        return spec.positions

    @abstractmethod
    def usual_data(self, spec: ModelSpec) -> str:
        """The data set that is read without ``--data``."""

    @abstractmethod
    def samples(self, config: C, spec: ModelSpec) -> Samples:
        """The samples of a run with resolved settings.

        Raises
        ------
        UserError
            When the data does not exist.
        """

    def model(self, config: C, spec: ModelSpec, corpus: Path) -> ModelSpec:
        """The model of a run that has begun, whose compiled corpus is in directory `corpus`."""
        return spec

    def identity(self, config: C) -> dict[str, Any]:
        """Settings that a run of this recipe never changes, in addition to those of every plan."""
        lora = {"lora": to_dict(config.lora)} if config.lora.rank else {}
        return lora | ({"freeze": config.model.freeze} if config.model.freeze else {})


def default_out(spec: ModelSpec, data: str) -> str:
    """The run directory that is used without ``--out``."""
    from wellread.data.sets import label

    return f"runs/{spec.name}-{label(data)}"


def _checked_order(config: RunConfig) -> OrderSpec:
    from wellread.order.spec import parse

    order = parse(config.schedule.order)
    if config.schedule.order_control and order.kind in ("shuffle", "sequential", "filter"):
        reason = "it is already random" if order.kind != "sequential" else "use --order shuffle"
        raise UserError(
            f"--order_control: --order {config.schedule.order} has no control experiment ({reason}); leave it out"
        )
    if order.kind == "curriculum" and config.schedule.epochs not in (None, 1):
        raise UserError(
            f"--epochs {config.schedule.epochs:g}: a curriculum is read once; set the epochs of its phases instead"
        )
    return order
