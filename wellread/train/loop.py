"""The training loop: read a batch, update the weights, record what was read, save."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wellread.checkpoint import Checkpoint
from wellread.config import RunConfig
from wellread.corpus.batch import collate
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.models.load import Source
from wellread.order.permutation import Order
from wellread.order.store import open_order
from wellread.planning.plan import Plan
from wellread.planning.rate import planned_rate
from wellread.record.writer import RecordedBatch
from wellread.run import RunDirectory
from wellread.terminal import plural
from wellread.train import evidence, gate, kernels, nvme, ranks, resume, sealed
from wellread.train import guard as guards
from wellread.train.ahead import Ahead
from wellread.train.engines.base import Engine
from wellread.train.engines.choose import make_engine
from wellread.train.engines.compiling import compiled_graphs
from wellread.train.engines.torch_engine import TorchEngine
from wellread.train.guard import Guard
from wellread.train.micro_batches import divide
from wellread.train.outputs import Outputs, open_monitor, open_record
from wellread.train.queued import QueuedStep
from wellread.train.saver import Saver
from wellread.train.stop import STOP_CODE, StopRequest, stopped
from wellread.train.watch import throughput, trackers
from wellread.train.watch.monitor import StepStats
from wellread.train.watch.throughput import Cost


def train(run: RunDirectory, initial: Callable[[], Source], log: Path) -> int:
    """Train until the last step or a request to stop. Every rank calls it.

    Parameters
    ----------
    initial : callable
        Returns the causal language model of transformers that training starts from.
    log : Path
        This rank's log file.

    Returns
    -------
    int
        Exit code: 0 when the run is finished, 128 + S when signal S stopped it (after saving).
    """
    config, corpus = nvme.with_own_folder(run), Corpus.open(run.corpus)
    plan, order = Plan.open(run.plan_file), open_order(run)
    newest, damaged = resume.newest_checkpoint(run)
    gate.check(run, config.cluster, plan)
    trackers.check(config.watch)
    engine = make_engine(Source.of(newest.model) if newest else initial(), config, plan)
    saver = Saver(run.checkpoints, engine, corpus.tokenizer, config.save.keep_states, damaged)
    loop = TrainingLoop(
        run, config, plan, corpus, order, engine, saver, StopRequest(), Guard(config.watch.spike_factor)
    )
    if ranks.rank() == 0:
        record = open_record(run, corpus, order, newest)
        loop.meter.values = record.sealed_values
        monitor = open_monitor(run, config, plan, engine, newest.step if newest else 0, log)
        loop.outputs = Outputs(record, monitor)
    for line in damaged.values():
        loop.say(f"skipped a damaged checkpoint: {line}")
    part = f" ({engine.trained:,} of them trained)" * (engine.trained < engine.parameters)
    loop.say(f"{plan.model}: {engine.parameters:,} parameters{part}, {plural(corpus.n_trainable, 'trainable sample')}")
    if newest:
        loop.continue_from(newest)
    else:
        loop.save()
    stop = loop.train()
    engine.close()
    finished = loop.step == plan.steps
    if loop.outputs:
        loop.say(f"finished at step {loop.step}" if finished else stopped(loop.step, stop))
        loop.outputs.monitor.close()
    return STOP_CODE + stop if stop and not finished else 0


@dataclass
class TrainingLoop:
    """Training on one rank, and its progress."""

    run: RunDirectory
    config: RunConfig
    plan: Plan
    corpus: Corpus
    order: Order
    engine: Engine
    saver: Saver
    stop: StopRequest
    guard: Guard
    outputs: Outputs | None = None
    """Only on rank 0."""
    step: int = 0
    skipped: int = 0
    """Number of batches that were read but not trained on; the optimizer has taken ``step - skipped`` steps."""
    tokens: int = 0
    saved_step: int = 0
    _warm: bool = False
    """Whether this attempt has taken a step: the first one also loads the kernels of a GPU."""
    _pending: QueuedStep | None = None
    """The step that is queued, but not recorded yet: only on the path `ahead`."""
    _recorded: float = 0.0
    """When the last step was recorded, seconds."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus."""
        return Tokenizer.load(self.corpus.tokenizer)

    @cached_property
    def meter(self) -> sealed.SealedMeter:
        """Measures losses of sealed samples."""
        return sealed.SealedMeter(self.corpus, self.plan, self.config.watch, self.config.schedule.seed)

    def train(self) -> int:
        """Read batches until the last step or a request to stop; return the stop signal, 0 for none."""
        try:
            stop = self._train()
        except FloatingPointError:  # a bad batch does not make the checkpoint bad that is still being written
            self.saver.finish(self.say)
            raise
        self.saver.wait()
        return stop

    def _train(self) -> int:
        stop, start = 0, self.step
        while self.step < self.plan.steps and not stop:
            if self.step == start + kernels.AFTER:
                kernels.compile_ahead(self.engine, self.corpus, self.order, self.plan, start)
            stop = self.take_step()
            saves, evaluates = self.step in self.plan.save_steps, self.step in self.meter.steps
            if saves or evaluates or stop:
                stop = self.drain() or stop
            if saves or stop:
                self.save()
            elif evaluates:
                self.evaluate(at_checkpoint=False)
        return stop

    def take_step(self) -> int:
        """Read one batch, train on it unless it is bad, record it; return the stop signal, 0 for none.

        On the path `ahead`, the batch before is recorded instead, and the signal is the one of its step.

        Raises
        ------
        FloatingPointError
            When the batch is bad and bad batches are not skipped, or when too many consecutive batches were skipped.
        """
        self.saver.check()
        queued = self._queue()
        self.step += 1
        self._warm = True
        if not queued.is_updated:
            return self._record(queued)
        before, self._pending = self._pending, queued
        return self._record(before) if before else 0

    def drain(self) -> int:
        """Record the step that is queued, if there is one; return the stop signal, 0 for none. Collective."""
        queued, self._pending = self._pending, None
        return self._record(queued) if queued else 0

    def _queue(self) -> QueuedStep:
        """Run the next batch forward and backward, and on the path `ahead` update the weights. Collective."""
        began, compiled, plan, ahead = time.perf_counter(), compiled_graphs(), self.plan, "ahead" in self.plan.fast
        sample_ids, lr = self.order.batch(self.step), planned_rate(self.step, plan, self.config.optim)
        n_targets = self.corpus.n_targets(sample_ids)
        total_targets = int(n_targets.sum())
        _seed(self.config.schedule.seed, self.step)
        micro_slots = divide(self.corpus.lengths(sample_ids), plan, ranks.rank())
        queued = QueuedStep(step=self.step, lr=lr, began=began, slots=micro_slots)
        for number, slots in enumerate(micro_slots):
            padded = collate(self.corpus, sample_ids[slots], plan.machine.device)
            rows = padded.flat() if "varlen" in plan.fast else padded.counted() if ahead else padded
            batch = rows.to(self.engine.device)
            # The engines average gradients over ranks; ranks / targets turns that into a mean over all target tokens.
            scale, last = plan.ranks / total_targets, number == len(micro_slots) - 1
            queued.note(batch, self.engine.forward_backward(batch, scale, last=last))
        if ahead:
            queued.updated(self._ahead.update(queued.losses, np.concatenate(micro_slots), n_targets, lr))
        queued.warm_up = compiled_graphs() > compiled or (self.engine.device.type == "cuda" and not self._warm)
        queued.end()
        return queued

    @cached_property
    def _ahead(self) -> Ahead:
        assert isinstance(self.engine, TorchEngine), "planned only for it"
        return Ahead(self.engine, self.guard, self.plan.batch_size)

    def _record(self, queued: QueuedStep) -> int:
        """Wait for a step, update the weights unless that is queued, record it; return the stop signal. Collective."""
        samples = queued.samples()
        rank = evidence.of_rank(self.stop.signal, throughput.memory_peaks())
        report = evidence.gather(rank, samples, batch_size=self.plan.batch_size, on_host=queued.is_updated)
        reading, cost = report.reading(queued.step, self.order), Cost.of(report, self.plan)
        loss = guards.mean_loss(reading.losses, reading.n_targets)
        fault, grad_norm = self._update(queued, loss)
        skipped = fault is not None
        if fault:
            self._skip(fault, reading)
        self.guard.note(loss, skipped=skipped)
        self.skipped += skipped
        self.tokens += cost.tokens
        if self.outputs:
            self.outputs.record.append(replace(reading, skipped=skipped))
        before, self._recorded = self._recorded, time.perf_counter()
        if self.outputs:
            stats = StepStats(
                step=queued.step + 1,
                loss=loss,
                lr=queued.lr,
                grad_norm=grad_norm,
                cost=cost,
                seconds=self._recorded - max(before, queued.began),
                warm_up=queued.warm_up,
                skipped=skipped,
                set_losses=_set_losses(self.corpus, reading),
            )
            self.outputs.monitor.step(stats)
        return report.stop_signal

    def _update(self, queued: QueuedStep, loss: float) -> tuple[str | None, float]:
        """Update the weights, unless the batch is bad or the device has done it; return what is wrong with the batch,
        and its gradient norm."""
        fault, norm = self.guard.verdict(loss), float("nan")
        if queued.is_updated:
            norm, bad = queued.outcome
            # Otherwise the record would be wrong about what was learned.
            assert (fault is not None) == bad, f"batch {queued.step}: host and device do not agree on loss {loss!r}"
        elif fault is None:
            norm = self.engine.step(queued.lr)
        elif self.config.watch.on_bad_loss == "skip":
            self.engine.drop()
        if fault:
            return fault, float("nan")
        return (None if np.isfinite(norm) else f"gradient is not finite (its norm is {norm})"), norm

    def _skip(self, fault: str, reading: RecordedBatch) -> None:
        """Report the samples of a bad batch; end the run unless bad batches are skipped."""
        if self.config.watch.on_bad_loss == "stop":
            raise FloatingPointError(
                f"batch {reading.batch_id}: {fault}; the weights were not updated (--on_bad_loss skip skips such "
                f"batches); {guards.name_samples(self.corpus, reading)}"
            )
        if self.outputs:
            self.say(f"skipped batch {reading.batch_id}: {fault}; {guards.name_samples(self.corpus, reading)}")

    def evaluate(self, *, at_checkpoint: bool) -> tuple[float | None, list[dict[str, Any]]]:
        """Record losses of sealed samples; return the holdout loss and what the model generates. Collective.

        Texts are generated only at a checkpoint.
        """
        assert self._pending is None, "drain first"
        began = time.perf_counter()
        holdout = at_checkpoint or self.meter.has_holdout_loss(self.step)
        measured = self.meter.measure(self.engine, self.step, holdout=holdout)
        seconds = time.perf_counter() - began
        count = self.config.watch.generations if at_checkpoint else 0
        rows = sealed.generations(self.engine, self.corpus, self.tokenizer, self.plan, count)
        if self.outputs:
            if measured.losses is not None:
                self.outputs.record.measured(measured.losses)
            written = time.perf_counter() - began - seconds if rows else None
            self.outputs.monitor.evaluated(self.step, measured.holdout, seconds, rows, written)
        return measured.holdout, rows

    def save(self) -> None:
        """Save a checkpoint; the record is on disk before the checkpoint that refers to it. Collective."""
        step, outputs = self.step, self.outputs
        holdout, rows = self.evaluate(at_checkpoint=True)
        manifest: dict[str, Any] = {}
        if outputs:
            outputs.record.flush()
            manifest = self._manifest(outputs.record.head, holdout)

        def committed(stall: float, seconds: float) -> None:
            if outputs:
                outputs.monitor.saved(step, holdout, stall, seconds)

        def saving() -> None:
            if outputs:
                outputs.monitor.note(f"saving step-{step:08d}")

        texts = {sealed.GENERATIONS: sealed.as_jsonl(rows)} if rows else {}
        self.saver.save(step, manifest, texts, saving, committed)
        self.saved_step = step

    def _manifest(self, head: str, holdout: float | None) -> dict[str, Any]:
        return {
            "step": self.step,
            "tokens": self.tokens,
            "skipped": self.skipped,
            "record": {"head": head, "batches": [self.saved_step, self.step]},
            "corpus": self.corpus.hash,
            "identity": self.run.manifest()["identity"],
            "strategy": self.plan.strategy,
            "ranks": self.plan.ranks,
            "dtype": self.plan.dtype,
            "grad_accum_dtype": self.plan.grad_accum_dtype,
            "fast": list(self.plan.fast),
            "holdout_loss": holdout,
        }

    def continue_from(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint that any strategy saved on any number of ranks. Collective."""
        self.step = self.saved_step = checkpoint.step
        self.tokens = checkpoint.tokens
        self.skipped = checkpoint.manifest.get("skipped", 0)  # not in checkpoints of older versions
        self.guard = resume.restored_guard(self.run, checkpoint.step, self.config.watch.spike_factor)
        self.say(f"resuming from {checkpoint.path.name}")
        updates = checkpoint.step - self.skipped
        if updates > 0:  # an optimizer has no state before its first step
            resume.restore(self.engine, checkpoint, updates, self.plan, self.say)

    def say(self, line: str) -> None:
        """Print a line on rank 0."""
        if self.outputs:
            self.outputs.monitor.line(line)


def _seed(seed: int, batch_id: int) -> None:
    """Seed torch from (seed, step, rank), so that resuming needs no saved generator state."""
    state = np.random.SeedSequence((seed, batch_id, ranks.rank())).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))


def _set_losses(corpus: Corpus, reading: RecordedBatch) -> dict[str, float]:
    """Mean loss per target token of each data set in the batch; empty if the corpus has a single data set."""
    if len(corpus.set_names) < 2:
        return {}
    number, size = corpus.sets(reading.sample_ids), len(corpus.set_names)
    sums = np.bincount(number, reading.losses.astype(np.float64) * reading.n_targets, minlength=size)
    targets = np.bincount(number, reading.n_targets, minlength=size)
    return {name: float(sums[k] / targets[k]) for k, name in enumerate(corpus.set_names) if targets[k]}
