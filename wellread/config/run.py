"""One training run: all sections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from wellread.config.cluster import ClusterConfig
from wellread.config.data import DataConfig, TextConfig
from wellread.config.flat import SECTION, flat, from_dict, keys_of
from wellread.config.model import LoraConfig, ModelConfig, SmallLlama
from wellread.config.save import EarlySaves, SaveConfig
from wellread.config.schedule import OptimConfig, ScheduleConfig
from wellread.config.watch import WatchConfig
from wellread.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run; a fine-tuning, if it is of no further kind.

    On the command line and in YAML the fields of all sections are side by side; optim and lora are nested.
    """

    program: ClassVar[str] = "finetune"
    """Which program prepares and trains it: the name of its recipe."""
    model: ModelConfig = field(default_factory=ModelConfig, metadata=SECTION)
    data: DataConfig = field(default_factory=DataConfig, metadata=SECTION)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig, metadata=SECTION)
    save: SaveConfig = field(default_factory=SaveConfig, metadata=SECTION)
    watch: WatchConfig = field(default_factory=WatchConfig, metadata=SECTION)
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=SECTION)
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and learning-rate schedule."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters, trained instead of all weights."""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Settings by the names that they have on the command line, the others at their defaults."""
        config: Self = from_dict(cls, values)
        return config

    def replace(self, **values: Any) -> Self:
        """The same with other values, by the names that they have on the command line."""
        return self.of(**flat(self) | values)

    def __post_init__(self) -> None:
        model, lora = self.model, self.lora
        if model.freeze is not None and lora.rank:
            raise UserError("--freeze: LoRA freezes all weights of the model already; leave one of both out")
        if model.load_in_4bit and not lora.rank:
            raise UserError("--load_in_4bit: weights of 4 bits cannot be trained; add adapters with --lora.rank")
        if model.load_in_4bit and not self.cluster.may_be_ddp:
            raise UserError(
                "--load_in_4bit: ZeRO does not divide weights of 4 bits; leave --strategy and --ds_config out"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """One pretraining on raw text."""

    program: ClassVar[str] = "pretrain"
    model: SmallLlama = field(default_factory=SmallLlama, metadata=SECTION)
    data: TextConfig = field(default_factory=TextConfig, metadata=SECTION)
    save: EarlySaves = field(default_factory=EarlySaves, metadata=SECTION)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(weight_decay=0.1, min_lr=0.0))
    """Optimizer and learning-rate schedule; the defaults are llama2.c's."""


KINDS: tuple[type[RunConfig], ...] = (RunConfig, PretrainConfig)
"""Settings of every recipe; those with fewer keys first."""


def kind_of(values: dict[str, Any]) -> type[RunConfig]:
    """Whose settings these are, of `config.yaml`: the first kind that has all these keys, or else most of them."""
    return min(KINDS, key=lambda kind: len(values.keys() - keys_of(kind).keys()))
