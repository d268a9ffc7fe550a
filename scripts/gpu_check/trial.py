"""Train a trial with the real loop, without saving (in a worker process).

The loop reads a corpus, records what it read and watches the losses as in any run. Only the weights are random, nothing
is saved, and the steps are watched: timed, profiled, or searched for waits of the host.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.gpu_check.synthetic import WAITING_STEPS, Trial, make_run, model_of
from scripts.gpu_check.weights import RandomSource
from wellread.planning.plan import Plan
from wellread.units import GIB

if TYPE_CHECKING:
    from wellread.record.writer import RecordedBatch
    from wellread.train.watch.monitor import StepStats


class Enough(BaseException):
    """The time for the measured steps is over."""


@dataclass
class Watch:
    """Watches the steps of the loop."""

    trial: Trial
    began: float = 0.0
    """Start of the warm-up, seconds."""
    phase: Callable[[str], None] = print
    readings: list[RecordedBatch] = field(default_factory=list)
    stats: list[StepStats] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    """What was measured, as keys of a row."""
    monitor: Any = None
    count: int = 0
    """Number of steps so far."""
    timed_from: float = 0.0
    first_timed: int = 0

    def take_step(self, step: Callable[[], int]) -> int:
        """Run the loop's next step with what is measured there."""
        trial, number = self.trial, self.count
        timed_end = trial.warm + trial.steps
        if number == trial.warm:
            synchronize()
            self.numbers["warm_seconds"] = time.perf_counter() - self.began
            self.phase("timed steps")
            self.timed_from, self.first_timed = time.perf_counter(), number
        if trial.waits and timed_end <= number < timed_end + WAITING_STEPS:
            code = self._counting(step)
        elif trial.profile and number == trial.total - 1:
            code = self._profiled(step)
        else:
            code = step()
        self.count += 1
        late = self.timed_from and time.perf_counter() - self.timed_from > trial.seconds
        if self.count == timed_end or (late and self.count < timed_end):
            synchronize()
            self._time(time.perf_counter() - self.timed_from)
            if late:
                raise Enough
        return code

    def _time(self, seconds: float) -> None:
        steps = self.count - self.first_timed
        self.numbers |= {"seconds_per_step": seconds / steps, "steps": steps, "memory": memory()}

    def _counting(self, step: Callable[[], int]) -> int:
        from scripts.gpu_check.waits import counted

        self.phase("counting waits")
        code, places = counted(step)
        self.numbers.setdefault("waits", []).append(len(places))
        self.numbers["stacks"] = places[:8]
        return code

    def _profiled(self, step: Callable[[], int]) -> int:
        from scripts.gpu_check.profile import profiled

        self.phase("profiling")
        code, kernels = profiled(step)
        self.numbers |= kernels
        return code


def run_trial(trial: Trial, folder: Path, phase: Callable[[str], None]) -> dict[str, Any]:
    """Train the trial; return the keys of its row. An error leaves with what it says.

    Parameters
    ----------
    phase : callable
        Called with the name of each phase that begins.
    """
    from wellread.train import loop

    phase("plan")
    run = make_run(trial, folder)
    config, plan = run.config(), Plan.open(run.plan_file)
    watch = Watch(trial, phase=phase)
    spec = replace(model_of(run), fresh=False)
    phase("load")
    reset_memory()
    with watched(watch), suppress(Enough):
        loop.train(run, lambda: _started(watch, RandomSource.of_spec(spec, config.lora)), run.log / "rank-0.log")
    return _row(watch, plan)


def _started(watch: Watch, source: RandomSource) -> RandomSource:
    watch.began = time.perf_counter()
    return source


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Let `watch` see the steps of the loop and what it records and shows; nothing is saved."""
    from wellread.record.writer import RecordWriter
    from wellread.train.loop import TrainingLoop
    from wellread.train.watch.monitor import Monitor

    take_step, append, step = TrainingLoop.take_step, RecordWriter.append, Monitor.step

    def recorded(writer: RecordWriter, batch: RecordedBatch) -> Any:
        watch.readings.append(batch)
        return append(writer, batch)

    def displayed(monitor: Monitor, stats: StepStats) -> Any:
        watch.monitor = monitor
        watch.stats.append(stats)
        return step(monitor, stats)

    changed: list[tuple[Any, str, Any]] = [
        (TrainingLoop, "take_step", lambda self: watch.take_step(lambda: take_step(self))),
        (TrainingLoop, "save", lambda self: None),
        (RecordWriter, "append", recorded),
        (Monitor, "step", displayed),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changed]
    for owner, name, value in changed:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _row(watch: Watch, plan: Plan) -> dict[str, Any]:
    """The keys of the row: speed and memory, the losses of each step, and what was profiled."""
    numbers, on_gpu = dict(watch.numbers), plan.machine.device == "cuda"
    memory_used = numbers.pop("memory", None)
    seconds = numbers.get("seconds_per_step")
    row: dict[str, Any] = {"trained": bool(seconds)}
    if seconds and watch.stats:
        last = watch.stats[min(len(watch.stats), watch.first_timed + 1) - 1]
        speed = watch.monitor._speedometer.utilization(replace(last, seconds=seconds))
        row |= {"tokens_per_second": last.tokens / seconds, "mfu": speed}
    if on_gpu and plan.needs:
        row["gib_predicted"] = plan.needs["gpu_bytes"] / GIB
    if memory_used:
        row |= {"gib_measured": memory_used["process"] / GIB, "gib_tensors": memory_used["allocated"] / GIB}
    losses = [batch.losses.tolist() for batch in watch.readings]
    row |= {
        **({"paths": list(paths)} if (paths := getattr(plan, "fast", None)) else {}),
        "micro_batch": f"{plan.accumulation} x {plan.micro_batch_size} x {plan.seq_len}",
        **numbers,
        "losses": [float(np.mean(step)) for step in losses],
        "sample_losses": losses,
        "norms": [float(stats.grad_norm) for stats in watch.stats],
        "digests": [digest.hex() for batch in watch.readings for digest in batch.digests],
    }
    if losses:
        row |= {"first_loss": row["losses"][0], "last_loss": row["losses"][-1]}
    return row


# --- the device ------------------------------------------------------------------------------------------------------


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory() -> dict[str, int] | None:
    """Peak GPU memory since `reset_memory`; None on a CPU."""
    from scripts.gpu_check.rank import gpu_memory

    return gpu_memory([])


def reset_memory() -> None:
    """Free what earlier trials of this process used, and start a new peak."""
    import torch

    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def leftover() -> int:
    """Bytes of tensors on the GPU that outlive a trial."""
    import torch

    reset_memory()
    return int(torch.cuda.memory_allocated()) if torch.cuda.is_available() else 0
