"""Instruction fine-tuning: rows of one or several data sets, or raw text, for a model with a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from wellread.config import RunConfig
from wellread.errors import UserError
from wellread.recipes.base import LONGEST_NAME, Recipe, Samples
from wellread.units import MIB

if TYPE_CHECKING:
    from wellread.data.mixture import Mixture
    from wellread.models.spec import ModelSpec


@dataclass(frozen=True)
class Rows(Samples):
    """Instructions or documents for a fine-tuning."""

    config: RunConfig
    model: ModelSpec
    mixture: Mixture

    @classmethod
    def of(cls, config: RunConfig, spec: ModelSpec) -> Rows:
        """The rows that resolved settings name."""
        from wellread.data import sets

        return cls(config, spec, sets.find(config.data.name or "", config.data.max_document * MIB))

    @property
    def spec(self) -> ModelSpec:
        """The model itself: the samples have its vocabulary."""
        return self.model

    @property
    def name(self) -> str:
        """Names of the data sets."""
        return self.mixture.name if len(self.mixture.name) <= LONGEST_NAME else "mixture"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings that determine the content of the corpus."""
        from wellread.corpus import tokenizer
        from wellread.data import canaries, marks
        from wellread.data.mixture import corpus_settings
        from wellread.models.directories import local_directory

        directory = None if self.model.fresh else local_directory(self.model, weights=False)
        backend = tokenizer.identify(directory, self.model.vocab)
        settings = corpus_settings(self.config.data, self.mixture, backend) | canaries.settings(self.config)
        return settings | marks.settings(self.config.data)

    def estimate(self) -> int:
        """One sample per row."""
        return self.mixture.estimate()


class Finetune(Recipe[RunConfig]):
    """Instruction fine-tuning."""

    name = RunConfig.program
    config = RunConfig
    most_used_to_compile = (
        "model",
        "data",
        "show",
        "seq_len",
        "holdout",
        "template",
        "pack",
        "loss_on",
        "metrics",
        "corpora",
    )
    usage = "prepare the corpus, train; the same command again resumes"
    description = "Fine-tune a model."
    examples = """examples:
  wellread {command} finetune --model tiny --data sample
  wellread {command} finetune --data my.jsonl --steps 200 --save_schedule log --out runs/mine
  wellread {command} finetune --cluster my-cluster.yaml --nodes 2 --time 8:00:00
  wellread {command} finetune --config run.yaml --optim.lr 1e-5       YAML first, then flags
"""

    def resolve(self, config: RunConfig, spec: ModelSpec) -> RunConfig:
        """As `Recipe.resolve`; also refuse ``--pack`` for a model that cannot isolate packed samples."""
        from wellread.models.families import PACKED_FAMILIES

        if config.data.pack and spec.family not in PACKED_FAMILIES:
            raise UserError(
                f"--pack: {spec.name} is a {spec.family}; samples of one sequence are isolated only in "
                f"{', '.join(PACKED_FAMILIES)}; leave --pack out"
            )
        return super().resolve(config, spec)

    def usual_data(self, spec: ModelSpec) -> str:
        """sample for tiny, otherwise dolly."""
        return "sample" if spec.name == "tiny" else "dolly"

    def samples(self, config: RunConfig, spec: ModelSpec) -> Rows:
        """The rows of a run."""
        return Rows.of(config, spec)

    def identity(self, config: RunConfig) -> dict[str, Any]:
        """Also packing, which determines what a batch is."""
        return super().identity(config) | ({"pack": True} if config.data.pack else {})
