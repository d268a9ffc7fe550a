"""How a model's state is spread over ranks, host memory and NVMe: an entry for each strategy.

A new strategy is one entry here, its name in `wellread.config.Strategy` and, under DeepSpeed, its file in configs/ds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from wellread.planning.phases import FINE_SUB_GROUP, Phase, Sizes, plain
from wellread.planning.zero import zero3, zero12

Engine = Literal["torch", "deepspeed"]
Where = Literal["gpu", "cpu", "nvme"]


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What a strategy does, needs and costs."""

    name: str
    stage: int
    """Of ZeRO; 0: every rank holds everything (one process, or DDP)."""
    optimizer: Where = "gpu"
    """Where the optimizer's state lies; gpu: with the rank, also on a CPU."""
    parameters: Where = "gpu"
    """Where the weights lie between their uses."""
    ratios: tuple[float, ...] = ()
    """Parts of the optimizer that may be offloaded, the smallest first; none: all of it is where `optimizer` says."""
    speed: float = 0.0
    """Expected tokens per second as a part of ddp's."""
    phases: Callable[[Sizes], list[Phase]] | None = None
    """What lies in memory when; None: not predicted, so that only a DeepSpeed file of the user's asks for it."""
    state: int = 12
    """Bytes that a checkpoint's state holds of each trained weight: moments (8) and master weights (4)."""
    state_weights: bool = False
    """The state holds the weights in their own precision as well."""

    @property
    def engine(self) -> Engine:
        """Who trains: torch (one process or DDP) or deepspeed (ZeRO)."""
        return "deepspeed" if self.stage else "torch"

    @property
    def offloads(self) -> bool:
        """Whether something is left to the host or to NVMe."""
        return (self.optimizer, self.parameters) != ("gpu", "gpu")

    @property
    def on_nvme(self) -> bool:
        """Whether it needs NVMe (--nvme_path)."""
        return "nvme" in (self.optimizer, self.parameters)

    @property
    def ops(self) -> list[str]:
        """DeepSpeed's compiled ops that it needs: the optimizer of offloaded states, reading and writing NVMe."""
        return ["cpu_adam"] * self.offloads + ["async_io"] * self.on_nvme


STRATEGIES: dict[str, Strategy] = {
    entry.name: entry
    for entry in (
        Strategy(name="ddp", stage=0, speed=1.0, phases=plain, state=8),
        Strategy(name="zero1", stage=1, speed=0.98, phases=partial(zero12, stage=1), state_weights=True),
        Strategy(name="zero2", stage=2, speed=0.97, phases=partial(zero12, stage=2), state_weights=True),
        Strategy(name="zero3", stage=3, speed=0.85, phases=zero3),
        Strategy(
            name="zero2-offload",
            stage=2,
            optimizer="cpu",
            speed=0.60,
            phases=partial(zero12, stage=2),
            state_weights=True,
        ),
        Strategy(
            name="zero3-partial",
            stage=3,
            optimizer="cpu",
            ratios=tuple(step / 20 for step in range(1, 21)),
            speed=0.55,
            phases=partial(zero3, sub_group=FINE_SUB_GROUP),
        ),
        Strategy(
            name="zero3-offload",
            stage=3,
            optimizer="cpu",
            parameters="cpu",
            speed=0.40,
            phases=partial(zero3, host_weights=True),
        ),
        Strategy(
            name="zero3-nvme",
            stage=3,
            optimizer="nvme",
            parameters="nvme",
            speed=0.15,
            phases=partial(zero3, host_weights=True, nvme=True, sub_group=FINE_SUB_GROUP),
            state=8,
        ),
        Strategy(name="zero1-offload", stage=1, optimizer="cpu"),
    )
}
"""Every strategy by its name."""
LADDER: dict[str, Strategy] = {name: entry for name, entry in STRATEGIES.items() if entry.phases}
"""The strategies whose memory is predicted, which are those of --strategy, the fastest first.

Their speeds: ZeRO-1 and 2 send what DDP sends, ZeRO-3 half as much again (Rajbhandari et al. 2020, section 7). An
offloaded optimizer steps on the CPU and its gradients and weights cross the PCIe bus each step: 50 to 70% of the GPU's
rate at the batch sizes of a fine-tune (Ren et al. 2021, figures 7 and 8); offloaded weights cross it twice more in each
pass; NVMe moves 16 bytes per weight and step at a few GB/s (Rajbhandari et al. 2021, figure 6). Expected values, not
measured ones.
"""
PLAIN = "ddp"
"""The strategy that asks nothing of the model: what is taken where memory is not predicted."""
