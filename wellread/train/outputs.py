"""What rank 0 writes and shows while a run trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from wellread.checkpoint import Checkpoint
from wellread.config import RunConfig, WatchConfig
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
    """The record, and what shows the run."""

    record: RecordWriter
    monitor: Monitor


def open_record(run: RunDirectory, corpus: Corpus, order: Order, found: Checkpoint | None) -> RecordWriter:
    """The record of a run that begins, or goes on from the checkpoint `found`."""
    start = genesis(corpus.hash, order.identity())
    if found is None:
        return RecordWriter(run.record, start=start)
    return RecordWriter(run.record, start=start, step=found.step, head=found.head)


def open_monitor(run: RunDirectory, config: RunConfig, plan: Plan, engine: Engine, step: int, log: Path) -> Monitor:
    """What shows a run from `step` on; says which strategies it has moved on from."""
    monitor = Monitor(
        run=run,
        trackers=trackers.open_trackers(config, run.path, step),
        log=log,
        plan=plan,
        start=step,
        log_every=config.watch.log_every,
        speedometer=_speedometer(run, config.watch, plan, engine),
    )
    for values in plan.failures:
        monitor.moved(f"{Failure.of(values)}; this attempt: {plan.strategy}", step)
    return monitor


def _speedometer(run: RunDirectory, config: WatchConfig, plan: Plan, engine: Engine) -> Speedometer:
    peak = config.peak_tflops * 1e12 if config.peak_tflops else None
    if peak is None and engine.device.type == "cuda":
        peak = throughput.peak_flops(torch.cuda.get_device_name(engine.device), plan.dtype)
    peak = peak and peak * plan.ranks
    return Speedometer(spec=model_of_run(run), parameters=engine.parameters, trained=engine.trained, peak=peak)
