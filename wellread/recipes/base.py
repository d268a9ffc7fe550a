"""What a recipe is: settings and their defaults, the samples that they name, and the model that reads these.

Modules of recipes are imported by ``--help``; what is slow to import they import inside functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from wellread.cli import add_dataclass, parse_dataclass
from wellread.config import RunConfig, to_dict
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
    """What a run is going to read, known before it is compiled."""

    config: RunConfig
    """Resolved."""

    @property
    @abstractmethod
    def spec(self) -> ModelSpec:
        """The model that reads them, with their vocabulary.

        Raises
        ------
        UserError
            When their vocabulary is not that of the model.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """What the corpus's folder begins with."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that decides what the corpus holds; hashes the data's files, so it is found once."""

    @abstractmethod
    def estimate(self) -> int:
        """How many there will be, before they are read closely."""

    @cached_property
    def directory(self) -> Path:
        """Where the corpus is compiled to; equal settings, equal folder."""
        from wellread.corpus.digest import corpus_key

        return Path(self.config.data.corpora) / f"{self.name}-{corpus_key(self.settings)}"


class Recipe(ABC, Generic[C]):
    """One kind of training: a program of the same name prepares its corpus and trains."""

    name: str
    """``python -m NAME prepare`` compiles the corpus, ``python -m NAME train RUN`` trains a rank."""
    config: type[C]
    hidden: tuple[str, ...] = ()
    """Settings that the help leaves out."""
    usage: str
    """What ``launch run NAME`` does."""
    description: str
    examples: str
    """Of ``launch``, whose command stands in them as {command}."""

    def add_flags(self, parser: ArgumentParser) -> None:
        """Give `parser` the flags of a run."""
        add_dataclass(parser, self.config, self.hidden)

    def parse(self, parser: ArgumentParser, argv: list[str]) -> tuple[C, dict[str, Any]]:
        """Parse `argv` with a parser that has these flags: the settings, and values of its further arguments."""
        return parse_dataclass(parser, self.config, argv)

    def resolve(self, config: C, spec: ModelSpec) -> C:
        """Fill in every default that depends on the model; steps are left to the plan.

        Raises
        ------
        UserError
            When the sequence length is beyond the model's positions, or LoRA or the order makes no sense.
        """
        from wellread.data.sets import label

        seq_len = config.data.seq_len or min(spec.seq_len, spec.positions)
        if seq_len > self.positions(spec, seq_len):
            raise UserError(f"--seq_len {seq_len}: {spec.name} has {spec.positions} positions; choose at most that")
        order = _checked_order(config)
        data, lora = config.data.name or self.usual_data(spec), config.lora
        if lora.rank and (spec.fresh or config.model.init == "fresh"):
            raise UserError(
                f"--lora.rank {lora.rank}: {spec.name} starts from random weights, which have to be trained"
            )
        return config.replace(
            data=data,
            out=config.save.out or f"runs/{spec.name}-{label(data)}",
            epochs=None
            if config.schedule.steps
            else config.schedule.epochs or (1.0 if order.kind == "curriculum" else spec.epochs),
            batch_size=config.schedule.batch_size or spec.batch_size,
            seq_len=seq_len,
            optim=replace(config.optim, lr=config.optim.lr or spec.lr * (LORA_RATE if lora.rank else 1)),
            lora=replace(lora, alpha=lora.alpha or 2 * lora.rank) if lora.rank else lora,
        )

    def positions(self, spec: ModelSpec, seq_len: int) -> int:
        """How many positions the model has when it reads samples of up to `seq_len` tokens."""
        return spec.positions

    @abstractmethod
    def usual_data(self, spec: ModelSpec) -> str:
        """What is read where ``--data`` says nothing."""

    @abstractmethod
    def samples(self, config: C, spec: ModelSpec) -> Samples:
        """What a run of resolved settings reads.

        Raises
        ------
        UserError
            When the data cannot be found.
        """

    def model(self, config: C, spec: ModelSpec, corpus: Path) -> ModelSpec:
        """The model of a run that has begun, whose compiled corpus is in directory `corpus`."""
        return spec

    def identity(self, config: C) -> dict[str, Any]:
        """Settings that make a run this run, beside those that every plan has; refused when they differ at resume."""
        lora = {"lora": to_dict(config.lora)} if config.lora.rank else {}
        return lora | ({"freeze": config.model.freeze} if config.model.freeze else {})


def _checked_order(config: RunConfig) -> OrderSpec:
    from wellread.order.spec import parse

    order = parse(config.schedule.order)
    if config.schedule.order_control and order.kind in ("shuffle", "sequential", "filter"):
        other = "it is random already" if order.kind != "sequential" else "--order shuffle is"
        raise UserError(
            f"--order_control: no control arm of --order {config.schedule.order}, for {other}; leave it out"
        )
    if order.kind == "curriculum" and config.schedule.epochs not in (None, 1):
        raise UserError(
            f"--epochs {config.schedule.epochs:g}: a curriculum is read once; its phases have epochs of their own"
        )
    return order
