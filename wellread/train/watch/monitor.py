"""Display and log training: TensorBoard, a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellread.checkpoint import open_checkpoint
from wellread.files import open_unlinked
from wellread.processes import ATTEMPT_NUMBER
from wellread.run import RunDirectory
from wellread.terminal import console, visible
from wellread.train.watch.throughput import Cost, training_flops
from wellread.train.watch.trackers import Tracker
from wellread.units import GIB, clock

if TYPE_CHECKING:
    from wellread.models.spec import ModelSpec
    from wellread.planning.plan import Plan

PROGRESS_SECONDS = 1.0
"""Minimum time between two writes of the progress file."""


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """Numbers of one optimizer step."""

    step: int
    loss: float
    """Mean over all target tokens of the batch, nats."""
    lr: float
    grad_norm: float
    """2-norm before clipping; nan if a batch was skipped before it was computed."""
    cost: Cost
    seconds: float
    warm_up: bool = False
    """The device warmed up, or layers were compiled: the time says nothing about later steps."""
    skipped: bool = False
    """The batch was read but not trained on."""
    set_losses: dict[str, float] = field(default_factory=dict)
    """Mean loss of each data set of a mixture in this batch."""

    @property
    def tokens(self) -> int:
        """Tokens read by this step over all ranks, without padding."""
        return self.cost.tokens


@dataclass(frozen=True, kw_only=True)
class Speedometer:
    """Computes model FLOPs utilization (MFU) from the cost of a step."""

    spec: ModelSpec
    parameters: int
    trained: int
    """Number of parameters that are trained."""
    peak: float | None
    """Peak floating-point operations per second of all ranks together; None if unknown."""

    def utilization(self, stats: StepStats) -> float | None:
        """Share of the peak that the batch's arithmetic used; None if the peak is unknown."""
        if self.peak is None:
            return None
        share = self.trained / self.parameters
        return training_flops(self.spec, self.parameters, stats.cost, share) / stats.seconds / self.peak


RECENT = 20
"""Number of steps over which the rate and the time per step are averaged."""


def averaged(recent: list[StepStats], stats: StepStats) -> list[StepStats]:
    """The steps that rate and time left are computed from, after one more: warm-up only while there is nothing else."""
    if stats.warm_up and recent and not recent[-1].warm_up:
        return recent
    return [*(s for s in recent[1 - RECENT :] if s.warm_up == stats.warm_up), stats]


class Monitor:
    """Displays and logs the run; exists only on rank 0."""

    def __init__(
        self,
        *,
        run: RunDirectory,
        trackers: list[Tracker],
        log: Path,
        plan: Plan,
        start: int,
        log_every: int,
        speedometer: Speedometer,
    ) -> None:
        self._trackers, self._speedometer = trackers, speedometer
        self._log = open_unlinked(log, "a", buffering=1)
        self._plan, self._log_every, self._start = plan, log_every, start
        self._recent: list[StepStats] = []
        self._started = False
        self._progress = Progress(run, plan, start)
        self._bar: Any = None
        self._task: Any = None
        if sys.stdout.isatty():
            self._bar, self._task = _progress_bar(plan.steps, start)

    def note(self, text: str) -> None:
        """Write one line only to the log."""
        self._log.write(text + "\n")

    def line(self, text: str) -> None:
        """Print one line above the progress bar, and write it to the log."""
        self.note(text)
        if self._bar is not None:
            self._bar.console.print(visible(text), highlight=False, markup=False)
        else:
            print(f"{text}\n", end="", flush=True)  # one write, because the thread that saves also prints

    def moved(self, text: str, step: int) -> None:
        """Log that memory ran out before `step`, and which strategy the run continues with."""
        self.line(text)
        self._text("ladder", text, step)

    def step(self, stats: StepStats) -> None:
        """Log one step."""
        self._recent = averaged(self._recent, stats)
        rate = sum(s.tokens for s in self._recent) / sum(s.seconds for s in self._recent)
        self._progress.step(stats, self._recent)
        scalars = {
            "train/loss": stats.loss,
            "train/lr": stats.lr,
            "train/grad_norm": stats.grad_norm,
            "speed/tokens_per_second": stats.tokens / stats.seconds,
            "speed/step_seconds": stats.seconds,
            "speed/padding": 1 - stats.cost.tokens / stats.cost.padded,
            "memory/host_gib": stats.cost.host_bytes / GIB,
        }
        if stats.cost.gpu_bytes:
            scalars["memory/gpu_gib"] = stats.cost.gpu_bytes / GIB
        if (utilization := self._speedometer.utilization(stats)) is not None:
            scalars["speed/mfu"] = utilization
        if stats.skipped:
            scalars["train/skipped"] = 1
        scalars |= {f"train/loss_of/{name}": loss for name, loss in stats.set_losses.items()}
        self._scalars(scalars, stats.step)
        if self._bar is not None:
            self._bar.update(
                self._task, completed=stats.step, loss=f"loss {stats.loss:.4f}", rate=f"{rate:,.0f} tokens/s"
            )
        is_first, self._started = not self._started, True
        if stats.step % self._log_every == 0 or stats.step == self._plan.steps or is_first:
            self._step_line(stats, rate)

    def _step_line(self, stats: StepStats, rate: float) -> None:
        per_step = sum(s.seconds for s in self._recent) / len(self._recent)
        remaining = clock(per_step * (self._plan.steps - stats.step))
        width = len(str(self._plan.steps))
        text = (
            f"step {stats.step:>{width}}/{self._plan.steps}  loss {stats.loss:.4f}  lr {stats.lr:.2e}  "
            f"grad {stats.grad_norm:.3f}  {rate:,.0f} tokens/s  {per_step:.2f} s/step  left {remaining}"
        )
        if self._bar is None:
            print(f"{text}\n", end="", flush=True)  # one write, because the thread that saves also prints
        self.note(text)

    def _scalars(self, values: Mapping[str, float | None], step: int) -> None:
        """Log the values that are finite numbers."""
        numbers = {name: value for name, value in values.items() if value is not None and isfinite(value)}
        for tracker in self._trackers:
            tracker.scalars(numbers, step)

    def _text(self, name: str, text: str, step: int) -> None:
        for tracker in self._trackers:
            tracker.text(name, text, step)

    def evaluated(
        self, step: int, holdout: float | None, seconds: float, rows: list[dict[str, Any]], writing: float | None
    ) -> None:
        """Log the holdout loss and generated texts; `seconds` is the time for the loss, `writing` for the texts."""
        self._scalars({"holdout/loss": holdout, "speed/holdout_seconds": seconds}, step)
        if not rows:
            if holdout is not None:
                self.note(f"step {step}  holdout loss {holdout:.4f}  ({seconds:.2f} s)")
            return
        self._scalars({"speed/generation_seconds": writing}, step)
        for number, row in enumerate(rows):
            self._text(f"generations/{number}", as_markdown(row), step)

    def saved(self, step: int, holdout: float | None, stall: float, seconds: float) -> None:
        """Report that a checkpoint is committed, with the time that training was paused and the time for writing."""
        loss = "" if holdout is None else f"  holdout loss {holdout:.4f}"
        self.line(f"saved step-{step:08d}{loss}  (training paused for {stall:.2f} s, {seconds:.2f} s in total)")
        self._progress.saved = step
        self._scalars({"save/stall_seconds": stall, "save/write_seconds": seconds}, step)

    def close(self) -> None:
        """Flush everything."""
        if self._bar is not None:
            self._bar.stop()
        self._progress.write()
        for tracker in self._trackers:
            tracker.close()
        self._log.close()


class Progress:
    """Progress of the run in RUN/log/progress.json, for ``wellread status``; not part of the record."""

    def __init__(self, run: RunDirectory, plan: Plan, start: int) -> None:
        self._path = run.log / "progress.json"
        self._attempt = int(os.environ.get(ATTEMPT_NUMBER, 1))
        self._steps = plan.steps
        self._tokens = open_checkpoint(run.checkpoints, start).tokens if start else 0
        self.saved: int | None = start or None
        """Last saved step."""
        self._now: dict[str, Any] = {}
        self._written = float("-inf")

    def step(self, stats: StepStats, recent: list[StepStats]) -> None:
        """Take note of a step; write the file at the first one, then at most once a second."""
        seconds = sum(s.seconds for s in recent)
        self._tokens += stats.tokens
        self._now = {
            "step": stats.step,
            "tokens": self._tokens,
            "loss": stats.loss if isfinite(stats.loss) else self._now.get("loss"),
            "seconds_per_step": seconds / len(recent),
            "tokens_per_second": sum(s.tokens for s in recent) / seconds,
            "time": time.time(),
        }
        if time.monotonic() - self._written >= PROGRESS_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the last noted step, if there is one."""
        if not self._now:
            return
        about = {"attempt": self._attempt, "steps": self._steps, "last_saved": self.saved}
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with suppress(OSError):  # a run continues without it; a full disk fails the next checkpoint or record
            temporary.unlink(missing_ok=True)
            with open(temporary, "x", encoding="utf-8") as file:
                file.write(json.dumps(about | self._now))
            os.replace(temporary, self._path)
        self._written = time.monotonic()


def _progress_bar(steps: int, start: int) -> tuple[Any, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console(),
    )
    bar.start()
    return bar, bar.add_task("training", total=steps, completed=start, loss="first step", rate="")


def as_markdown(row: dict[str, Any]) -> str:
    """Generated text as Markdown for TensorBoard; indented, so that it is shown unchanged."""
    parts = [(name, str(row[name])) for name in ("prompt", "generated", "reference")]
    return "\n\n".join(
        f"**{name}**\n\n" + "\n".join(f"    {line}" for line in text.split("\n")) for name, text in parts
    )
