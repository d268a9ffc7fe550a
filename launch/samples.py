"""What a run is going to read: which corpus that is, and what is known of it before it is compiled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from wellread.config import PretrainConfig, RunConfig
from wellread.corpus import tokenizer
from wellread.data import documents, sets
from wellread.data.mixture import Mixture, corpus_directory
from wellread.data.sources.source import Source
from wellread.errors import UserError
from wellread.models import registry
from wellread.models.registry import ModelSpec


class Samples(Protocol):
    """Samples of one of the training programs."""

    @property
    def spec(self) -> ModelSpec:
        """The model that reads them, with their vocabulary."""

    @property
    def directory(self) -> Path:
        """Where the corpus is compiled to."""

    def estimate(self) -> int:
        """How many there will be, before they are read closely."""


@dataclass(frozen=True)
class Rows:
    """Instructions, or documents, for a fine-tuning."""

    config: RunConfig
    spec: ModelSpec
    mixture: Mixture

    @cached_property
    def directory(self) -> Path:
        """Where the corpus is compiled to; its name hashes the data's files, so it is found once."""
        directory = None if self.spec.fresh else registry.local_directory(self.spec, weights=False)
        return corpus_directory(self.config, self.mixture, tokenizer.identify(directory, self.spec.vocab))

    def estimate(self) -> int:
        """One sample a row."""
        return self.mixture.estimate()


@dataclass(frozen=True)
class Stories:
    """Text for a pretraining."""

    config: PretrainConfig
    spec: ModelSpec
    source: Source

    @cached_property
    def directory(self) -> Path:
        """Where the corpus is compiled to; its name hashes the data's files, so it is found once."""
        scorer = registry.scorer(self.config.perplexity) if self.config.perplexity else None
        return documents.corpus_directory(self.config, self.source, scorer)

    def estimate(self) -> int:
        """As many as the text is long."""
        return documents.estimate(self.config, self.source)


def samples_of(config: RunConfig, spec: ModelSpec) -> Samples:
    """What a run reads.

    Raises
    ------
    UserError
        When the data cannot be found, or its vocabulary is not that of the model.
    """
    data = config.data or ""
    if not isinstance(config, PretrainConfig):
        return Rows(config, spec, sets.find(data))
    words = documents.words(config)
    spec = registry.pretrained(spec, words, config)
    if words != spec.vocab:
        raise UserError(
            f"--vocab {config.vocab}: has {words:,} pieces, {spec.name} {spec.vocab:,} words; leave it out for the "
            "model's own"
        )
    return Stories(config, spec, sets.stories(data))
