"""The one training loop: read a batch, step, record what was read, save."""

from __future__ import annotations

import hashlib
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wellread import checkpoint as checkpoints
from wellread.checkpoint import Checkpoint
from wellread.config import RunConfig
from wellread.corpus.batch import Batch, collate
from wellread.corpus.digest import DIGEST_BYTES
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.models.load import Source
from wellread.models.registry import of_run
from wellread.order.permutation import Order
from wellread.order.store import open_order
from wellread.planning.deepspeed_file import check_nvme
from wellread.planning.fallback import Failure
from wellread.planning.plan import Plan
from wellread.record.chain import genesis
from wellread.record.reader import Record
from wellread.record.writer import RecordedBatch, RecordWriter
from wellread.run import RunDirectory
from wellread.train import gate, ranks, sealed
from wellread.train import guard as guards
from wellread.train.engines import moments
from wellread.train.engines.base import Engine, make_engine
from wellread.train.engines.optim import learning_rate
from wellread.train.guard import Guard
from wellread.train.saver import Saver
from wellread.train.watch import throughput, trackers
from wellread.train.watch.monitor import Monitor, Speedometer, StepStats
from wellread.train.watch.throughput import Cost

GENERATIONS = "generations.jsonl"
"""In a checkpoint: what its model writes after the prompts of some sealed samples."""
STOP_CODE = 128
"""Exit code of a run that stopped on signal S: 128 + S, as a shell reports it."""


@dataclass
class Loop:
    """State of one training process."""

    run: RunDirectory
    config: RunConfig
    plan: Plan
    corpus: Corpus
    order: Order
    engine: Engine
    saver: Saver
    stop: ranks.StopRequest
    guard: Guard
    step: int = 0
    skipped: int = 0
    """Batches that were read and not learned from; the optimizer has taken ``step - skipped`` steps."""
    tokens: int = 0
    saved_step: int = 0
    writer: RecordWriter | None = None
    """On rank 0 alone, like the monitor."""
    monitor: Monitor | None = None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """That of the corpus."""
        return Tokenizer.load(self.corpus.tokenizer)


def train(run: RunDirectory, initial: Callable[[], Source], log: Path) -> int:
    """Train until the last step or a request to stop; every rank calls it.

    Parameters
    ----------
    initial : callable
        Finds the transformers causal language model that training starts from.
    log : Path
        This rank's log file.

    Returns
    -------
    int
        Exit code: 0 when the run is finished, 128 + S when signal S stopped it (after a save).
    """
    config, corpus = _with_own_nvme(run), Corpus.open(run.corpus)
    plan = Plan.from_json(run.plan_file.read_text())
    order = open_order(run)
    found, passed_over = _newest_checkpoint(run)
    gate.check(run, config, plan)
    trackers.check(config)
    engine = make_engine(Source.of(found.model) if found else initial(), config, plan)
    saver = Saver(run.checkpoints, engine, corpus.tokenizer, config.keep_states)
    loop = Loop(run, config, plan, corpus, order, engine, saver, ranks.StopRequest(), Guard(config.spike_factor))
    _open_outputs(loop, found, passed_over, log)
    part = f" ({engine.trained:,} of them trained)" * (engine.trained < engine.parameters)
    _say(loop, f"{plan.model}: {engine.parameters:,} parameters{part}, {corpus.n_trainable:,} trainable samples")
    if found:
        _resume(loop, found)
    else:
        _save(loop)
    stop = 0
    while loop.step < plan.steps and not stop:
        stop = _step(loop)
        if loop.step in plan.save_steps or stop:
            _save(loop)
        elif config.eval_every and loop.step % config.eval_every == 0:
            _evaluate(loop, texts=False)
    loop.saver.wait()
    loop.engine.close()
    if loop.monitor:
        finished = loop.step == plan.steps
        loop.monitor.line(f"finished at step {loop.step}" if finished else _stopped(loop.step, stop))
        loop.monitor.close()
    return STOP_CODE + stop if stop and loop.step < plan.steps else 0


def _with_own_nvme(run: RunDirectory) -> RunConfig:
    """The run's settings, with a folder of its own in what it was given of the NVMe disk."""
    config = run.config()
    if config.nvme_path is None:
        return config
    check_nvme(config.nvme_path)
    name = hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:16]
    own = Path(config.nvme_path).resolve() / f"wellread-{name}"
    if ranks.local_rank() == 0:  # what an attempt with another strategy left there
        shutil.rmtree(own, ignore_errors=True)
    return replace(config, nvme_path=str(own))


def _stopped(step: int, number: int) -> str:
    return f"stopped by {signal.Signals(number).name} at step {step}, saved; the same command continues"


def _newest_checkpoint(run: RunDirectory) -> tuple[Checkpoint | None, list[str]]:
    """Newest valid checkpoint, found by rank 0, which clears up after interrupted saves; the others are told."""
    found: Checkpoint | None = None
    passed_over: list[str] = []
    if ranks.rank() == 0:
        run.checkpoints.mkdir(exist_ok=True)
        checkpoints.clear_staging(run.checkpoints)
        found, passed_over = checkpoints.newest_valid(run.checkpoints)
    step = ranks.from_rank0(found.step if found else -1)
    return (checkpoints.open_checkpoint(run.checkpoints, step) if step >= 0 else None), passed_over


def _open_outputs(loop: Loop, found: Checkpoint | None, passed_over: list[str], log: Path) -> None:
    if ranks.rank() > 0:
        return
    run, step = loop.run, found.step if found else 0
    start = genesis(loop.corpus.hash, loop.order.identity())
    loop.writer = RecordWriter(run.record, start=start, step=step, head=found.head if found else None)
    loop.monitor = Monitor(
        run=run,
        trackers=trackers.open_trackers(loop.config, run.path, step),
        log=log,
        plan=loop.plan,
        start=step,
        log_every=loop.config.log_every,
        speedometer=_speedometer(loop),
    )
    for values in loop.plan.failures:
        loop.monitor.moved(f"{Failure.of(values)}; this attempt: {loop.plan.strategy}", step)
    for line in passed_over:
        loop.monitor.line(f"passed over a damaged checkpoint: {line}")


def _speedometer(loop: Loop) -> Speedometer:
    spec, device = of_run(loop.run), loop.engine.device
    peak = loop.config.peak_tflops * 1e12 if loop.config.peak_tflops else None
    if peak is None and device.type == "cuda":
        peak = throughput.peak_flops(torch.cuda.get_device_name(device), loop.plan.dtype)
    peak = peak and peak * loop.plan.ranks
    return Speedometer(spec=spec, parameters=loop.engine.parameters, trained=loop.engine.trained, peak=peak)


def _resume(loop: Loop, found: Checkpoint) -> None:
    """Continue from a checkpoint, whichever strategy and however many ranks saved it."""
    loop.step = loop.saved_step = found.step
    loop.tokens = found.tokens
    loop.skipped = found.manifest.get("skipped", 0)  # older ones know of none
    past = guards.past_of(Record.open(loop.run.record), found.step) if loop.writer else []
    loop.guard = Guard(loop.config.spike_factor, ranks.gather_objects(past)[0])
    _say(loop, f"continuing from {found.path.name}")
    updates = found.step - loop.skipped
    if updates == 0:
        return  # no optimizer has a state before its first step
    if loop.engine.fits(found.state):
        loop.engine.load(found.state, updates)
        return
    saved_by = f"{found.manifest['strategy']} on {found.manifest['ranks']} ranks"
    _say(loop, f"its state was saved by {saved_by}: converting it for {loop.plan.strategy} on {loop.plan.ranks}")
    converted = loop.run.checkpoints / f".{found.path.name}.converted"
    if ranks.rank() == 0 and (found.state / moments.ZERO).is_dir():
        moments.convert(found.state, converted)
    ranks.barrier()
    loop.engine.adopt(found.model, moments.read(found.state, converted), updates)
    ranks.barrier()
    if ranks.rank() == 0:
        checkpoints.clear_staging(loop.run.checkpoints)


def _say(loop: Loop, line: str) -> None:
    if loop.monitor:
        loop.monitor.line(line)


def divide(lengths: NDArray[np.int64], plan: Plan, rank: int) -> list[NDArray[np.int64]]:
    """Slots of a batch that `rank` reads, one array per micro-batch.

    Samples of similar length share a micro-batch, and ranks that work at the same time get similar lengths, so
    little is padding and nobody waits. What is read by the batch as a whole does not depend on it.

    Parameters
    ----------
    lengths : (batch_size,) tokens of the sample in each slot
    """
    slots = np.argsort(-lengths, kind="stable").reshape(plan.accumulation, plan.ranks, plan.micro_batch_size)
    return list(slots[:, rank])


def _step(loop: Loop) -> int:
    """Read one batch; return the signal that asks to stop, 0 for none."""
    loop.saver.check()
    began = time.perf_counter()
    batch_id, plan = loop.step, loop.plan
    sample_ids = loop.order.batch(batch_id)
    total_targets = int(loop.corpus.n_targets(sample_ids).sum())
    _seed(loop.config.seed, batch_id)
    micro_slots = divide(loop.corpus.lengths(sample_ids), plan, ranks.rank())
    read: list[tuple[NDArray[np.int64], Batch, torch.Tensor]] = []
    for number, slots in enumerate(micro_slots):
        batch = collate(loop.corpus, sample_ids[slots]).to(loop.engine.device)
        # The engines average gradients over ranks; times ranks / targets, that is the mean over all target tokens.
        losses = loop.engine.forward_backward(batch, plan.ranks / total_targets, last=number == len(micro_slots) - 1)
        read.append((slots, batch, losses))
    reading, cost, stop = _gather(loop, read)
    loss = guards.mean_loss(reading.losses, reading.n_targets)
    optim = loop.config.optim
    lr = learning_rate(batch_id, peak=optim.lr or 0.0, warmup=plan.warmup_steps, steps=plan.steps, floor=optim.min_lr)
    fault, grad_norm = loop.guard.verdict(loss), float("nan")
    if fault is None:
        grad_norm = loop.engine.step(lr)
        fault = None if np.isfinite(grad_norm) else f"gradient is not finite (its norm is {grad_norm})"
    elif loop.config.on_bad_loss == "skip":
        loop.engine.drop()
    if fault:
        _skip(loop, fault, reading)
    loop.guard.note(loss, skipped=bool(fault))
    loop.step += 1
    loop.skipped += bool(fault)
    loop.tokens += cost.tokens
    if loop.writer and loop.monitor:
        loop.writer.append(replace(reading, skipped=bool(fault)))
        seconds = time.perf_counter() - began
        loop.monitor.step(
            StepStats(
                step=loop.step,
                loss=loss,
                lr=lr,
                grad_norm=grad_norm,
                cost=cost,
                seconds=seconds,
                skipped=bool(fault),
                set_losses=_set_losses(loop.corpus, reading),
            )
        )
    return stop


def _skip(loop: Loop, fault: str, reading: RecordedBatch) -> None:
    """Say whose samples a bad batch holds; end the run unless such batches are to be passed over."""
    if loop.config.on_bad_loss == "stop":
        raise FloatingPointError(
            f"batch {reading.batch_id}: {fault}; the step was not taken (--on_bad_loss skip would pass over it); "
            + guards.named(loop.corpus, reading)
        )
    if loop.monitor:
        loop.monitor.line(f"skipped batch {reading.batch_id}: {fault}; {guards.named(loop.corpus, reading)}")


def _set_losses(corpus: Corpus, reading: RecordedBatch) -> dict[str, float]:
    """Mean loss per target token of each set in the batch; nothing where all samples are of one set."""
    if len(corpus.set_names) < 2:
        return {}
    number, size = corpus.sets(reading.sample_ids), len(corpus.set_names)
    sums = np.bincount(number, reading.losses.astype(np.float64) * reading.n_targets, minlength=size)
    targets = np.bincount(number, reading.n_targets, minlength=size)
    return {name: float(sums[k] / targets[k]) for k, name in enumerate(corpus.set_names) if targets[k]}


def _seed(seed: int, batch_id: int) -> None:
    """Randomness of a step derives from (seed, step, rank): there is no generator state to lose."""
    state = np.random.SeedSequence((seed, batch_id, ranks.rank())).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))


def _gather(loop: Loop, read: list[tuple[NDArray[np.int64], Batch, torch.Tensor]]) -> tuple[RecordedBatch, Cost, int]:
    """Collect from all ranks what entered forward: the reading in slot order, what it cost, signal to stop."""
    columns = []
    for slots, batch, losses in read:
        digests = np.frombuffer(b"".join(batch.digests()), dtype=np.int64).reshape(-1, DIGEST_BYTES // 8)
        n_targets = batch.targets.sum(1)
        means = (losses.float() / n_targets).cpu().numpy().astype(np.float32)
        columns.append(
            np.column_stack(
                [
                    slots,
                    batch.sample_ids.cpu().numpy(),
                    batch.lengths.cpu().numpy(),
                    n_targets.cpu().numpy(),
                    means.view(np.int32).astype(np.int64),
                    digests,
                    np.full((len(slots), 4), (loop.stop.signal, batch.tokens.shape[1], *throughput.memory_peaks())),
                ]
            )
        )
    rows = ranks.gather(torch.from_numpy(np.concatenate(columns))).numpy()
    cost = Cost.of(rows[:, 2], rows[:, 3], rows[:, 8], rows[:, 9:], loop.plan)
    rows = rows[np.argsort(rows[:, 0])]
    positions = loop.step * loop.plan.batch_size + rows[:, 0]
    reading = RecordedBatch(
        batch_id=loop.step,
        sample_ids=rows[:, 1],
        epochs=loop.order.epochs(positions),
        n_targets=rows[:, 3],
        losses=rows[:, 4].astype(np.int32).view(np.float32),
        digests=[row.tobytes() for row in np.ascontiguousarray(rows[:, 5:7])],
    )
    return reading, cost, int(rows[:, 7].max())


def _evaluate(loop: Loop, *, texts: bool) -> tuple[float | None, list[dict[str, Any]]]:
    """Loss on sealed samples and, with `texts`, what the model writes after some of their prompts. Collective."""
    began = time.perf_counter()
    holdout = sealed.holdout_loss(loop.engine, loop.corpus, loop.plan)
    measured = time.perf_counter()
    count = loop.config.generations if texts else 0
    rows = sealed.generations(loop.engine, loop.corpus, loop.tokenizer, loop.plan, count)
    if loop.monitor:
        written = time.perf_counter() - measured if rows else None
        loop.monitor.evaluated(loop.step, holdout, measured - began, rows, written)
    return holdout, rows


def _save(loop: Loop) -> None:
    """Save a checkpoint; the record is durable before the checkpoint that names it."""
    holdout, rows = _evaluate(loop, texts=True)
    manifest: dict[str, Any] = {}
    if loop.writer:
        loop.writer.flush()
        manifest = _manifest(loop, loop.writer, holdout)
    step = loop.step

    def done(stall: float, seconds: float) -> None:
        if loop.monitor:
            loop.monitor.saved(step, holdout, stall, seconds)

    def saving() -> None:
        if loop.monitor:
            loop.monitor.note(f"saving step-{step:08d}")

    loop.saver.save(step, manifest, {GENERATIONS: sealed.as_jsonl(rows)} if rows else {}, saving, done)
    loop.saved_step = step


def _manifest(loop: Loop, writer: RecordWriter, holdout: float | None) -> dict[str, Any]:
    return {
        "step": loop.step,
        "tokens": loop.tokens,
        "skipped": loop.skipped,
        "record": {"head": writer.head, "batches": [loop.saved_step, loop.step]},
        "corpus": loop.corpus.hash,
        "identity": loop.run.manifest()["identity"],
        "strategy": loop.plan.strategy,
        "ranks": loop.plan.ranks,
        "dtype": loop.plan.dtype,
        "holdout_loss": holdout,
    }
