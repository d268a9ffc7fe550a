"""Pretraining on raw text: documents cut into windows, with a vocabulary of their own for a model that is fresh."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from wellread.config import PretrainConfig, TextConfig
from wellread.errors import UserError
from wellread.recipes.base import LONGEST_NAME, Recipe, Samples

if TYPE_CHECKING:
    from pathlib import Path

    from jsonargparse import ArgumentParser

    from wellread.data.sources.source import Source
    from wellread.models.spec import ModelSpec

USUAL_VOCABULARY = 4096


@dataclass(frozen=True)
class Documents(Samples):
    """Text for a pretraining."""

    config: PretrainConfig
    model: ModelSpec
    source: Source

    @classmethod
    def of(cls, config: PretrainConfig, spec: ModelSpec) -> Documents:
        """What resolved settings name."""
        from wellread.data import sets

        return cls(config, spec, sets.documents(config.data.name or ""))

    @cached_property
    def spec(self) -> ModelSpec:
        """The model; one that is fresh has the vocabulary of the documents."""
        from wellread.data import documents

        words = documents.words(self.config.data)
        spec = model_of(self.model, words, self.config)
        if words != spec.vocab:
            raise UserError(
                f"--vocab {self.config.data.vocab}: has {words:,} pieces, {spec.name} {spec.vocab:,} words; leave it "
                "out for the model's own"
            )
        return spec

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source.name[:LONGEST_NAME]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what the corpus holds."""
        from wellread.data import documents

        scorer = _scorer(self.config.data.perplexity) if self.config.data.perplexity else None
        return documents.corpus_settings(self.config.data, self.source, scorer)

    def estimate(self) -> int:
        """As many as the text is long."""
        from wellread.data import documents

        return documents.estimate(self.config.data, self.source)


def model_of(spec: ModelSpec, words: int, config: PretrainConfig) -> ModelSpec:
    """The model of a pretraining: a fresh one has its corpus's vocabulary, and as many positions as a sample tokens."""
    return replace(spec, vocab=words, positions=config.data.seq_len or spec.seq_len) if spec.fresh else spec


def _scorer(model: str) -> str:
    """Identify the weights of the model of ``--perplexity``."""
    from wellread.models.directories import fingerprint
    from wellread.models.registry import find

    spec = find(model)
    if spec.fresh:
        raise UserError(f"--perplexity {model}: has random weights; name a model that was trained")
    return fingerprint(spec)


class Pretrain(Recipe[PretrainConfig]):
    """Pretraining of a small Llama."""

    name = PretrainConfig.program
    config = PretrainConfig
    hidden = TextConfig.unused
    usage = "the same for a small Llama on stories, from nothing"
    description = "Pretrain a small Llama on stories."
    examples = """examples:
  python -m launch {command} pretrain                                          15M, on stories made up here
  python -m launch {command} pretrain --size 260K --data tinystories --vocab 512 --steps 2000
  python -m launch {command} pretrain --size 128x4x4 --data stories.txt --order sorted:flesch_kincaid:asc --metrics
  python -m launch {command} pretrain --config run.yaml --cluster slurm --nodes 2
"""

    def add_flags(self, parser: ArgumentParser) -> None:
        """The settings, and ``--size``, which names a model by its sizes."""
        super().add_flags(parser)
        parser.add_argument(
            "--size", help="In place of --model: 260K, 15M, 42M or 110M of llama2.c, or WIDTHxLAYERSxHEADS, as 128x4x4."
        )

    def parse(self, parser: ArgumentParser, argv: list[str]) -> tuple[PretrainConfig, dict[str, Any]]:
        """As `Recipe.parse`; ``--size`` becomes the model."""
        config, others = super().parse(parser, argv)
        size = others.pop("size")
        if size is None:
            return config, others
        if config.model.name != self.config().model.name:
            raise UserError(f"--size {size}: --model {config.model.name} is given as well; leave one out")
        if not re.fullmatch(r"260K|15M|42M|110M|\d+(x\d+){2,3}", size, re.IGNORECASE):
            raise UserError(f"--size {size}: choose 260K, 15M, 42M, 110M, or WIDTHxLAYERSxHEADS, as 128x4x4")
        return config.replace(model=f"stories-{size.lower()}"), others

    def resolve(self, config: PretrainConfig, spec: ModelSpec) -> PretrainConfig:
        """As `Recipe.resolve`, and the vocabulary.

        Raises
        ------
        UserError
            Also when the model is in no directory, where its vocabulary would be.
        """
        resolved = super().resolve(config, spec)
        return resolved.replace(vocab=resolved.data.vocab or _usual_vocabulary(spec))

    def positions(self, spec: ModelSpec, seq_len: int) -> int:
        """A fresh model gets as many as it needs."""
        return seq_len if spec.fresh else spec.positions

    def usual_data(self, spec: ModelSpec) -> str:
        """Stories made up here."""
        return "stories"

    def samples(self, config: PretrainConfig, spec: ModelSpec) -> Documents:
        """The documents of a run."""
        return Documents.of(config, spec)

    def model(self, config: PretrainConfig, spec: ModelSpec, corpus: Path) -> ModelSpec:
        """A fresh model has the vocabulary of its corpus, and as many positions as a sample tokens."""
        from wellread.corpus.read import Corpus

        return model_of(spec, Corpus.open(corpus).words, config)


def _usual_vocabulary(spec: ModelSpec) -> str:
    """``--vocab`` where it says nothing: a new one, or that of the model."""
    if spec.fresh:
        return str(min(spec.vocab, USUAL_VOCABULARY))
    if spec.path is None:
        raise UserError(
            f"--model {spec.name}: pretraining continues models in directories; name the directory, or choose one of "
            "stories-260k, -15m, -42m and -110m, which start from nothing"
        )
    return str(spec.path / "tokenizer.model")
