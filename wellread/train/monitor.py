"""What is shown and logged while a run trains: TensorBoard, a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellread.checkpoint import open_checkpoint
from wellread.runs import RunDirectory

if TYPE_CHECKING:
    from wellread.plan import Plan

PROGRESS_SECONDS = 1.0
"""Least time between two writes of the progress file."""


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """Numbers of one optimizer step."""

    step: int
    loss: float
    """Mean over all target tokens of the batch, nats."""
    lr: float
    grad_norm: float
    tokens: int
    """Tokens read by this step over all ranks, padding not counted."""
    seconds: float
    set_losses: dict[str, float] = field(default_factory=dict)
    """The loss of each set of a mixture that is in the batch."""


class Monitor:
    """Shows the run; rank 0 alone has one."""

    def __init__(self, *, tb: Path, log: Path, plan: Plan, start: int, log_every: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(tb), purge_step=start + 1 if start else None)
        self._log = open(log, "a", buffering=1)  # noqa: SIM115 - lives as long as the run
        self._plan, self._log_every, self._start = plan, log_every, start
        self._recent: list[StepStats] = []
        self._progress = Progress(RunDirectory(tb.parent), plan, start)
        self._bar: Any = None
        self._task: Any = None
        if sys.stdout.isatty():
            self._bar, self._task = _progress_bar(plan.steps, start)

    def note(self, text: str) -> None:
        """Write one line into the log alone."""
        self._log.write(text + "\n")

    def line(self, text: str) -> None:
        """Print one line above the progress bar, and into the log."""
        self.note(text)
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(f"{text}\n", end="", flush=True)  # in one write: a background save speaks too

    def moved(self, text: str, step: int) -> None:
        """Say that memory ran out before `step`, and what the run goes on with."""
        self.line(text)
        self._writer.add_text("ladder", text, step)

    def step(self, stats: StepStats) -> None:
        """Log one step."""
        self._recent = [*self._recent[-19:], stats]
        rate = sum(s.tokens for s in self._recent) / sum(s.seconds for s in self._recent)
        self._progress.step(stats, self._recent)
        scalars = {
            "train/loss": stats.loss,
            "train/lr": stats.lr,
            "train/grad_norm": stats.grad_norm,
            "speed/tokens_per_second": stats.tokens / stats.seconds,
            "speed/step_seconds": stats.seconds,
            "memory/rank0_gib": memory_bytes() / 2**30,
        }
        scalars |= {f"train/loss_of/{name}": loss for name, loss in stats.set_losses.items()}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, stats.step)
        if self._bar is not None:
            self._bar.update(self._task, completed=stats.step, loss=stats.loss, rate=rate)
        if stats.step % self._log_every == 0 or stats.step == self._plan.steps or len(self._recent) == 1:
            self._step_line(stats, rate)

    def _step_line(self, stats: StepStats, rate: float) -> None:
        per_step = sum(s.seconds for s in self._recent) / len(self._recent)
        left = time.strftime("%H:%M:%S", time.gmtime(per_step * (self._plan.steps - stats.step)))
        width = len(str(self._plan.steps))
        text = (
            f"step {stats.step:>{width}}/{self._plan.steps}  loss {stats.loss:.4f}  lr {stats.lr:.2e}  "
            f"grad {stats.grad_norm:.3f}  {rate:,.0f} tokens/s  {per_step:.2f} s/step  left {left}"
        )
        if self._bar is None:
            print(f"{text}\n", end="", flush=True)  # in one write: a background save speaks too
        self.note(text)

    def saved(self, step: int, holdout: float | None, stall: float, seconds: float) -> None:
        """Say that a checkpoint is committed, how long training stood still for it and how long writing took."""
        shown = "" if holdout is None else f"  holdout loss {holdout:.4f}"
        self.line(f"saved step-{step:08d}{shown}  ({stall:.2f} s standing still, {seconds:.2f} s in all)")
        self._progress.saved = step
        self._writer.add_scalar("save/stall_seconds", stall, step)
        self._writer.add_scalar("save/write_seconds", seconds, step)
        if holdout is not None:
            self._writer.add_scalar("holdout/loss", holdout, step)

    def close(self) -> None:
        """Flush everything."""
        if self._bar is not None:
            self._bar.stop()
        self._progress.write()
        self._writer.close()
        self._log.close()


class Progress:
    """How far the run is, in RUN/log/progress.json: what ``launch status`` shows. It is no evidence of anything."""

    def __init__(self, run: RunDirectory, plan: Plan, start: int) -> None:
        self._path = run.log / "progress.json"
        self._attempt = int(os.environ.get("WELLREAD_ATTEMPT", 1))
        self._steps = plan.steps
        self._tokens = open_checkpoint(run.checkpoints, start).tokens if start else 0
        self.saved: int | None = start or None
        """Last saved step."""
        self._now: dict[str, Any] = {}
        self._written = float("-inf")

    def step(self, stats: StepStats, recent: list[StepStats]) -> None:
        """Note a step; write at the first one, then at most once a second."""
        seconds = sum(s.seconds for s in recent)
        self._tokens += stats.tokens
        self._now = {
            "step": stats.step,
            "tokens": self._tokens,
            "loss": stats.loss,
            "seconds_per_step": seconds / len(recent),
            "tokens_per_second": sum(s.tokens for s in recent) / seconds,
            "time": time.time(),
        }
        if time.monotonic() - self._written >= PROGRESS_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the last step that was noted, if any was."""
        if not self._now:
            return
        about = {"attempt": self._attempt, "steps": self._steps, "last_saved": self.saved}
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with suppress(OSError):  # a run goes on without it; a full disk is reported by what has to be written
            temporary.write_text(json.dumps(about | self._now))
            os.replace(temporary, self._path)
        self._written = time.monotonic()


def _progress_bar(steps: int, start: int) -> tuple[Any, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[rate]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    bar.start()
    return bar, bar.add_task("training", total=steps, completed=start, loss=float("nan"), rate=0.0)


def memory_bytes() -> int:
    """Peak GPU memory of this rank, or its resident host memory where it has no GPU, in bytes."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return int(psutil.Process(os.getpid()).memory_info().rss)
