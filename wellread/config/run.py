"""One training run: all sections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from wellread.config.canary import CanaryConfig
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
    """One training run: a fine-tuning, unless a subclass says otherwise.

    On the command line and in YAML, the fields of all sections are at the top level; optim and lora are nested.
    """

    program: ClassVar[str] = "finetune"
    """The program that prepares and trains it: the name of its recipe."""
    model: ModelConfig = field(default_factory=ModelConfig, metadata=SECTION)
    data: DataConfig = field(default_factory=DataConfig, metadata=SECTION)
    canary: CanaryConfig = field(default_factory=CanaryConfig, metadata=SECTION)
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
        """Settings by their names on the command line; all others have their defaults."""
        config: Self = from_dict(cls, values)
        return config

    def replace(self, **values: Any) -> Self:
        """A copy with other values, by their names on the command line."""
        return self.of(**flat(self) | values)

    def __post_init__(self) -> None:
        model, lora = self.model, self.lora
        if model.freeze is not None and lora.rank:
            raise UserError("--freeze: LoRA already freezes all weights of the model; leave out one of the two")
        if model.load_in_4bit and not lora.rank:
            raise UserError("--load_in_4bit: 4-bit weights cannot be trained; add adapters with --lora.rank")
        if model.load_in_4bit and not self.cluster.may_be_ddp:
            raise UserError("--load_in_4bit: ZeRO cannot partition 4-bit weights; leave out --strategy and --ds_config")
        if model.float8 and lora.rank:
            raise UserError(
                "--float8: is for matrices that are trained, and LoRA freezes them; leave out one of the two"
            )
        if model.float8 and not self.cluster.may_be_ddp:
            raise UserError("--float8: works only with ddp; leave it out, or leave out --strategy and --ds_config")


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
"""Settings of all recipes; those with fewer keys first."""


def kind_of(values: dict[str, Any]) -> type[RunConfig]:
    """The kind of the settings in `config.yaml`: the first that has all these keys, or otherwise most of them."""
    return min(KINDS, key=lambda kind: len(values.keys() - keys_of(kind).keys()))
