"""Table of strategies: how the training state is partitioned over ranks, host memory and NVMe.

To add a strategy, add an entry here, its name in `wellread.config.Strategy` and, for DeepSpeed, its file in configs/ds.
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
    """ZeRO stage; 0: every rank has the full state (one process, or DDP)."""
    optimizer: Where = "gpu"
    """Location of the optimizer state; gpu means the device of the rank, which may be a CPU."""
    parameters: Where = "gpu"
    """Location of the weights while they are not in use."""
    ratios: tuple[float, ...] = ()
    """Fractions of the optimizer that may be offloaded, smallest first; empty: `optimizer` applies to all of it."""
    speed: float = 0.0
    """Expected tokens per second, relative to ddp."""
    phases: Callable[[Sizes], list[Phase]] | None = None
    """Lists what is in memory in each phase; None: memory is not predicted, and only a DeepSpeed file selects this
    strategy."""
    state: int = 12
    """Bytes per trained weight in a checkpoint's state: moments (8) and master weights (4)."""
    state_weights: bool = False
    """Whether the state also contains the weights in the training precision."""
    fp32_gradients: bool = False
    """Whether it can add up the gradients of micro-batches in fp32 while it trains in bf16. For zero1, DeepSpeed would
    take another optimizer; zero2-offload adds them up in bf16 in host memory in any case."""

    @property
    def engine(self) -> Engine:
        """torch (one process or DDP) or deepspeed (ZeRO)."""
        return "deepspeed" if self.stage else "torch"

    @property
    def offloads(self) -> bool:
        """Whether state is offloaded to host memory or NVMe."""
        return (self.optimizer, self.parameters) != ("gpu", "gpu")

    @property
    def on_nvme(self) -> bool:
        """Whether it needs NVMe (--nvme_path)."""
        return "nvme" in (self.optimizer, self.parameters)

    @property
    def ops(self) -> list[str]:
        """DeepSpeed ops that must be compiled: the CPU optimizer for offloaded state, and asynchronous I/O for NVMe."""
        return ["cpu_adam"] * self.offloads + ["async_io"] * self.on_nvme


STRATEGIES: dict[str, Strategy] = {
    entry.name: entry
    for entry in (
        Strategy(name="ddp", stage=0, speed=1.0, phases=plain, state=8, fp32_gradients=True),
        Strategy(name="zero1", stage=1, speed=0.98, phases=partial(zero12, stage=1), state_weights=True),
        Strategy(
            name="zero2",
            stage=2,
            speed=0.97,
            phases=partial(zero12, stage=2),
            state_weights=True,
            fp32_gradients=True,
        ),
        Strategy(name="zero3", stage=3, speed=0.85, phases=zero3, fp32_gradients=True),
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
            fp32_gradients=True,
        ),
        Strategy(
            name="zero3-offload",
            stage=3,
            optimizer="cpu",
            parameters="cpu",
            speed=0.40,
            phases=partial(zero3, host_weights=True),
            fp32_gradients=True,
        ),
        Strategy(
            name="zero3-nvme",
            stage=3,
            optimizer="nvme",
            parameters="nvme",
            speed=0.15,
            phases=partial(zero3, host_weights=True, nvme=True, sub_group=FINE_SUB_GROUP),
            state=8,
            fp32_gradients=True,
        ),
        Strategy(name="zero1-offload", stage=1, optimizer="cpu"),
    )
}
"""Name -> strategy."""
LADDER: dict[str, Strategy] = {name: entry for name, entry in STRATEGIES.items() if entry.phases}
"""The strategies whose memory is predicted, fastest first; these are the values of --strategy.

Sources of the speeds, which are expected, not measured: ZeRO-1 and 2 communicate as much as DDP, ZeRO-3 1.5 times as
much (Rajbhandari et al. 2020, section 7). An offloaded optimizer steps on the CPU, and its gradients and weights cross
the PCIe bus in each step: 50 to 70% of the GPU's rate at the batch sizes of fine-tuning (Ren et al. 2021, figures 7 and
8). Offloaded weights cross the bus two more times in each pass. NVMe moves 16 bytes per weight and step at a few GB/s
(Rajbhandari et al. 2021, figure 6).
"""
PLAIN = "ddp"
"""The strategy that works with every model: used when memory is not predicted."""
