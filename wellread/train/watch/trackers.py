"""Where numbers and texts of a run go: TensorBoard's files, and what else `--tracker` names, through accelerate."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from wellread.config import RunConfig, WatchConfig, to_dict
from wellread.errors import UserError


class Tracker(Protocol):
    """What the monitor tells."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers of a step; steps may come out of turn."""

    def text(self, name: str, text: str, step: int) -> None:
        """Log a text, in Markdown."""

    def close(self) -> None:
        """Write what is left."""


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
    """Weights & Biases, whose own variables apply (WANDB_MODE=offline, WANDB_PROJECT, ...)."""

    def __init__(self, directory: Path, config: RunConfig) -> None:
        from accelerate import PartialState
        from accelerate.tracking import WandBTracker

        PartialState()  # accelerate's trackers ask it; the process group is there already
        name = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
        where = {"dir": str(directory), "name": directory.resolve().name}
        self._tracker: Any = WandBTracker("wellread", id=name, resume="allow", **where)
        self._tracker.start()
        self._tracker.store_init_configuration(to_dict(config))
        # Its own count of steps only goes up, and what a save took is known some steps later.
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
    """Make sure that what `--tracker` names is installed.

    Raises
    ------
    UserError
        When it is not; names the extra.
    """
    if "wandb" in config.trackers and importlib.util.find_spec("wandb") is None:
        raise UserError("--tracker wandb: is not installed; run: pip install 'wellread[wandb]', or leave wandb out")


def open_trackers(config: RunConfig, directory: Path, start: int) -> list[Tracker]:
    """The trackers of a run that begins, or goes on, at step `start`."""
    found: list[Tracker] = []
    if "tensorboard" in config.watch.trackers:
        found.append(TensorBoard(directory / "tb", start))
    if "wandb" in config.watch.trackers:
        found.append(WandB(directory, config))
    return found
