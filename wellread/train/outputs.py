"""What rank 0 writes and displays during training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from wellread.checkpoint import Checkpoint
from wellread.config import RunConfig
from wellread.corpus.read import Corpus
from wellread.order.permutation import Order
from wellread.planning.fallback import Failure
from wellread.planning.plan import Plan
from wellread.recipes.registry import model_of_run
from wellread.record.chain import genesis
from wellread.record.writer import RecordWriter
from wellread.run import RunDirectory
from wellread.train.engines.base import Engine
from wellread.train.watch import throughput, trackers
from wellread.train.watch.monitor import Monitor, Speedometer


@dataclass(frozen=True)
class Outputs:
    """The record, and the monitor that displays the run."""

    record: RecordWriter
    monitor: Monitor


def open_record(run: RunDirectory, corpus: Corpus, order: Order, checkpoint: Checkpoint | None) -> RecordWriter:
    """The record of a run that starts, or resumes from `checkpoint`."""
    start = genesis(corpus.hash, order.identity())
    if checkpoint is None:
        return RecordWriter(run.record, start=start)
    return RecordWriter(run.record, start=start, step=checkpoint.step, head=checkpoint.head)


def open_monitor(run: RunDirectory, config: RunConfig, plan: Plan, engine: Engine, step: int, log: Path) -> Monitor:
    """The monitor of a run from `step` on; prints which strategies ran out of memory before this attempt."""
    monitor = Monitor(
        run=run,
        trackers=trackers.open_trackers(config, run.path, step),
        log=log,
        plan=plan,
        start=step,
        log_every=config.watch.log_every,
        speedometer=_speedometer(run, config, plan, engine),
    )
    for values in plan.failures:
        monitor.moved(f"{Failure.of(values)}; this attempt: {plan.strategy}", step)
    return monitor


def _speedometer(run: RunDirectory, config: RunConfig, plan: Plan, engine: Engine) -> Speedometer:
    peak = config.watch.peak_tflops * 1e12 if config.watch.peak_tflops else None
    if peak is None and engine.device.type == "cuda":
        kind = "tf32" if config.model.tf32 else plan.dtype
        peak = throughput.peak_flops(torch.cuda.get_device_name(engine.device), kind)
    peak = peak and peak * plan.ranks
    return Speedometer(spec=model_of_run(run), parameters=engine.parameters, trained=engine.trained, peak=peak)
