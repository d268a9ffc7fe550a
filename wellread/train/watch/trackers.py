"""Trackers, which log the numbers and texts of a run: TensorBoard files and, through accelerate, Weights & Biases."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from wellread.config import RunConfig, WatchConfig, packages, to_dict


class Tracker(Protocol):
    """A destination for numbers and texts of a run."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers of a step; steps may come out of order."""

    def text(self, name: str, text: str, step: int) -> None:
        """Log a text, in Markdown."""

    def close(self) -> None:
        """Write what is buffered, and close."""


class TensorBoard:
    """Event files in the run directory."""

    def __init__(self, directory: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=start + 1 if start else None)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, name: str, text: str, step: int) -> None:
        """See `Tracker`."""
        self._writer.add_text(name, text, step)

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class WandB:
    """Weights & Biases; its environment variables apply (WANDB_MODE=offline, WANDB_PROJECT, ...)."""

    def __init__(self, directory: Path, config: RunConfig) -> None:
        from accelerate import PartialState
        from accelerate.tracking import WandBTracker

        PartialState()  # accelerate's trackers need it; it uses the existing process group
        name = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
        where = {"dir": str(directory), "name": directory.resolve().name}
        self._tracker: Any = WandBTracker("wellread", id=name, resume="allow", **where)
        self._tracker.start()
        self._tracker.store_init_configuration(to_dict(config))
        # W&B's step counter only increases, but the duration of a save is logged some steps late.
        self._tracker.tracker.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._tracker.log({**values, "step": step})

    def text(self, name: str, text: str, step: int) -> None:
        """See `Tracker`."""
        self._tracker.log({name: text, "step": step})

    def close(self) -> None:
        """See `Tracker`."""
        self._tracker.finish()


def check(config: WatchConfig) -> None:
    """Check that the packages of the trackers are installed.

    Raises
    ------
    UserError
        When one is not; says how to install it.
    """
    if "wandb" in config.trackers:
        packages.require("wandb", "--tracker wandb")


def open_trackers(config: RunConfig, directory: Path, start: int) -> list[Tracker]:
    """The trackers of a run that starts or resumes at step `start`."""
    trackers: list[Tracker] = []
    if "tensorboard" in config.watch.trackers:
        trackers.append(TensorBoard(directory / "tb", start))
    if "wandb" in config.watch.trackers:
        trackers.append(WandB(directory, config))
    return trackers
