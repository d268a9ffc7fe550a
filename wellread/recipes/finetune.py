"""Instruction fine-tuning: rows of several sets, or raw text, for a model with a tokenizer of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from wellread.config import RunConfig
from wellread.errors import UserError
from wellread.recipes.base import LONGEST_NAME, Recipe, Samples

if TYPE_CHECKING:
    from wellread.data.mixture import Mixture
    from wellread.models.spec import ModelSpec


@dataclass(frozen=True)
class Rows(Samples):
    """Instructions, or documents, for a fine-tuning."""

    config: RunConfig
    model: ModelSpec
    mixture: Mixture

    @classmethod
    def of(cls, config: RunConfig, spec: ModelSpec) -> Rows:
        """What resolved settings name."""
        from wellread.data import sets

        return cls(config, spec, sets.find(config.data.name or ""))

    @property
    def spec(self) -> ModelSpec:
        """The model as it is: its vocabulary is that of the samples."""
        return self.model

    @property
    def name(self) -> str:
        """Names of the sets."""
        return self.mixture.name if len(self.mixture.name) <= LONGEST_NAME else "mixture"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what the corpus holds."""
        from wellread.corpus import tokenizer
        from wellread.data.mixture import corpus_settings
        from wellread.models.directories import local_directory

        directory = None if self.model.fresh else local_directory(self.model, weights=False)
        return corpus_settings(self.config.data, self.mixture, tokenizer.identify(directory, self.model.vocab))

    def estimate(self) -> int:
        """One sample a row."""
        return self.mixture.estimate()


class Finetune(Recipe[RunConfig]):
    """Instruction fine-tuning."""

    name = RunConfig.program
    config = RunConfig
    usage = "prepare the corpus, train, return the job's exit code; again: continue"
    description = "Fine-tune a model."
    examples = """examples:
  python -m launch {command} finetune --model tiny --data sample
  python -m launch {command} finetune --data my.jsonl --steps 200 --save_schedule log --out runs/mine
  python -m launch {command} finetune --cluster my-cluster.yaml --nodes 2 --time 8:00:00
  python -m launch {command} finetune --config run.yaml --optim.lr 1e-5       YAML first, then flags
"""

    def resolve(self, config: RunConfig, spec: ModelSpec) -> RunConfig:
        """As `Recipe.resolve`; also refuse a model that cannot read packed samples."""
        from wellread.models.families import PACKED_FAMILIES

        if config.data.pack and spec.family not in PACKED_FAMILIES:
            raise UserError(
                f"--pack: {spec.name} is a {spec.family}, in which rows of one sequence are not known to be unseen by "
                f"one another; that is known of {', '.join(PACKED_FAMILIES)}; leave --pack out"
            )
        return super().resolve(config, spec)

    def usual_data(self, spec: ModelSpec) -> str:
        """The sample for tiny, else dolly."""
        return "sample" if spec.name == "tiny" else "dolly"

    def samples(self, config: RunConfig, spec: ModelSpec) -> Rows:
        """The rows of a run."""
        return Rows.of(config, spec)

    def identity(self, config: RunConfig) -> dict[str, Any]:
        """Packing too: what a batch is of."""
        return super().identity(config) | ({"pack": True} if config.data.pack else {})
