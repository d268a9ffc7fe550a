"""Pretraining on raw text: documents are cut into windows; a fresh model gets a vocabulary trained on them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from wellread.config import PretrainConfig, TextConfig
from wellread.errors import UserError
from wellread.recipes.base import LONGEST_NAME, Recipe, Samples
from wellread.units import MIB

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
        """The documents that resolved settings name."""
        from wellread.data import sets

        return cls(config, spec, sets.documents(config.data.name or "", config.data.max_document * MIB))

    @cached_property
    def spec(self) -> ModelSpec:
        """The model; a fresh one has the vocabulary of the documents."""
        from wellread.data import documents

        words = documents.words(self.config.data)
        spec = model_of(self.model, words, self.config)
        if words != spec.vocab:
            raise UserError(
                f"--vocab {self.config.data.vocab}: has {words:,} tokens, but {spec.name} has {spec.vocab:,}; leave it "
                "out to use the vocabulary of the model"
            )
        return spec

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source.name[:LONGEST_NAME]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings that determine the content of the corpus."""
        from wellread.data import canaries, documents, marks

        scorer = _scorer(self.config.data.perplexity) if self.config.data.perplexity else None
        settings = documents.corpus_settings(self.config.data, self.source, scorer) | canaries.settings(self.config)
        return settings | marks.settings(self.config.data)

    def estimate(self) -> int:
        """Estimated from the length of the text."""
        from wellread.data import documents

        return documents.estimate(self.config.data, self.source)


def model_of(spec: ModelSpec, words: int, config: PretrainConfig) -> ModelSpec:
    """The model of a pretraining: a fresh one has the vocabulary of its corpus, and positions for one sample."""
    return replace(spec, vocab=words, positions=config.data.seq_len or spec.seq_len) if spec.fresh else spec


def _scorer(model: str) -> str:
    """Identity of the weights of the model of ``--perplexity``."""
    from wellread.models.directories import fingerprint
    from wellread.models.registry import find

    spec = find(model)
    if spec.fresh:
        raise UserError(f"--perplexity {model}: has random weights; name a trained model")
    return fingerprint(spec)


class Pretrain(Recipe[PretrainConfig]):
    """Pretraining of a small Llama."""

    name = PretrainConfig.program
    config = PretrainConfig
    hidden = TextConfig.unused
    most_used = (
        "size",
        "data",
        "vocab",
        "out",
        "steps",
        "batch_size",
        "seq_len",
        "optim.lr",
        "order",
        "ranks_per_node",
    )
    most_used_to_compile = (
        "data",
        "vocab",
        "seq_len",
        "size",
        "model",
        "holdout",
        "packing",
        "metrics",
        "corpora",
    )
    usage = "the same for a small Llama with random weights, on stories"
    description = "Pretrain a small Llama on stories."
    examples = """examples:
  wellread {command} pretrain                                          15M, on synthetic stories
  wellread {command} pretrain --size 260K --data tinystories --vocab 512 --steps 2000
  wellread {command} pretrain --size 128x4x4 --data stories.txt --order sorted:flesch_kincaid:asc --metrics
  wellread {command} pretrain --config run.yaml --cluster slurm --nodes 2
"""

    def add_own_flags(self, parser: ArgumentParser) -> None:
        """Add ``--size``, which names a model by its size."""
        parser.add_argument(
            "--size",
            help="Size of the model, instead of --model: 260K, 15M, 42M or 110M as in llama2.c, or WIDTHxLAYERSxHEADS, "
            "e.g. 128x4x4 (default: 15M).",
        )

    def parse(self, parser: ArgumentParser, argv: list[str]) -> tuple[PretrainConfig, dict[str, Any]]:
        """As `Recipe.parse`; ``--size`` becomes the model."""
        config, extra = super().parse(parser, argv)
        size = extra.pop("size")
        if size is None:
            return config, extra
        if config.model.name != self.config().model.name:
            raise UserError(f"--size {size}: --model {config.model.name} is also set; leave one of them out")
        if not re.fullmatch(r"260K|15M|42M|110M|\d+(x\d+){2,3}", size, re.IGNORECASE):
            raise UserError(f"--size {size}: choose 260K, 15M, 42M, 110M, or WIDTHxLAYERSxHEADS, e.g. 128x4x4")
        return config.replace(model=f"stories-{size.lower()}"), extra

    def resolve(self, config: PretrainConfig, spec: ModelSpec) -> PretrainConfig:
        """As `Recipe.resolve`; also fill in the vocabulary.

        Raises
        ------
        UserError
            Also when the model has pretrained weights but no directory with its vocabulary.
        """
        resolved = super().resolve(config, spec)
        return resolved.replace(vocab=resolved.data.vocab or _usual_vocabulary(spec))

    def positions(self, spec: ModelSpec, seq_len: int) -> int:
        """A fresh model gets as many positions as a sample has tokens."""
        return seq_len if spec.fresh else spec.positions

    def usual_data(self, spec: ModelSpec) -> str:
        """Synthetic stories."""
        return "stories"

    def samples(self, config: PretrainConfig, spec: ModelSpec) -> Documents:
        """The documents of a run."""
        return Documents.of(config, spec)

    def model(self, config: PretrainConfig, spec: ModelSpec, corpus: Path) -> ModelSpec:
        """A fresh model has the vocabulary of its corpus, and a position for each token of a sample."""
        from wellread.corpus.read import Corpus

        return model_of(spec, Corpus.open(corpus).words, config)


def _usual_vocabulary(spec: ModelSpec) -> str:
    """The default of ``--vocab``: a new vocabulary, or that of the model."""
    if spec.fresh:
        return str(min(spec.vocab, USUAL_VOCABULARY))
    if spec.path is None:
        raise UserError(
            f"--model {spec.name}: pretraining can only continue a model in a directory; name the directory, or choose "
            "stories-260k, -15m, -42m or -110m, which start from random weights"
        )
    return str(spec.path / "tokenizer.model")
