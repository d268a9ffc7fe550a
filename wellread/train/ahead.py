"""The fast path `ahead`: the host queues a step while the device still computes the one before.

Usually the host waits in each step, because it decides from the loss whether the weights are updated. With this path
the device decides (`DeviceGuard`), and what the record needs is copied to the host behind the step. The host reads the
copies, and records the batch, once it has queued the next step. The weights, the record and what is skipped are the
same, bit by bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from wellread.corpus.batch import copied_to
from wellread.train import ranks
from wellread.train.guard import LEAST, WINDOW, Guard, length_of_halves, sum_of_halves

if TYPE_CHECKING:
    from wellread.train.engines.torch_engine import TorchEngine


class DeviceGuard:
    """A `Guard` whose memory is on the device: it decides the same from the same losses, and the host does not wait."""

    def __init__(self, guard: Guard, device: torch.device) -> None:
        losses = np.full(WINDOW, np.nan)
        learned = np.zeros(WINDOW, np.bool_)
        for place, (loss, skipped) in enumerate(guard.past, WINDOW - len(guard.past)):
            losses[place], learned[place] = loss, not skipped
        self._factor = guard.factor
        self._losses = torch.from_numpy(losses).to(device)
        self._learned = torch.from_numpy(learned).to(device)

    def verdict(self, loss: torch.Tensor) -> torch.Tensor:
        """Whether a batch of this mean loss is bad; both () on the device, the loss in float64."""
        bad = ~loss.isfinite()
        if self._factor is None:
            return bad
        count = self._learned.sum()
        ranked = torch.where(self._learned, self._losses, math.inf).sort().values
        middle = torch.stack([(count - 1).clamp(min=0) // 2, count // 2])
        usual = ranked.index_select(0, middle).sum() / 2  # the median of those that were learned
        return bad | ((count >= LEAST) & (loss > self._factor * usual))

    def note(self, loss: torch.Tensor, skipped: torch.Tensor) -> None:
        """Remember a batch; both () on the device."""
        self._losses = torch.cat([self._losses[1:], loss[None]])
        self._learned = torch.cat([self._learned[1:], ~skipped[None]])


class Ahead:
    """Updates the weights as the host does when it waits for the loss, but on the device."""

    def __init__(self, engine: TorchEngine, guard: Guard, batch_size: int) -> None:
        self._engine, self._batch_size = engine, batch_size
        self._guard = DeviceGuard(guard, engine.device)

    def update(
        self, losses: list[torch.Tensor], slots: NDArray[np.int64], n_targets: NDArray[np.int64], lr: float
    ) -> torch.Tensor:
        """Queue the update of the weights, which changes nothing if the batch is bad.

        Parameters
        ----------
        losses : list of (samples,)
            Summed loss of each sample that this rank has read, by micro-batch.
        slots : (samples,)
            Their slots.
        n_targets : (batch_size,)
            Number of target tokens of each slot.

        Returns
        -------
        (2,) float64, on the device
            The norm of the gradient before clipping, and 1 if the loss is bad, otherwise 0.
        """
        loss = self._mean_loss(torch.cat(losses), slots, n_targets)
        bad = self._guard.verdict(loss)
        norm = self._engine.queue_step(lr, bad)
        self._guard.note(loss, bad | ~norm.isfinite())
        return torch.stack([norm.double(), bad.double()])

    def _mean_loss(self, losses: torch.Tensor, slots: NDArray[np.int64], n_targets: NDArray[np.int64]) -> torch.Tensor:
        """Mean loss per target token of the batch, () float64: `wellread.train.guard.mean_loss` of the record."""
        places, counts = (self._on_device(values) for values in (slots, n_targets[slots].astype(np.float64)))
        recorded = (losses.float().double() / counts).float()
        sums = torch.zeros(length_of_halves(self._batch_size), dtype=torch.float64, device=losses.device)
        sums.index_copy_(0, places, recorded.double() * counts)
        total: Any = sum_of_halves(ranks.add_up(sums))
        mean: torch.Tensor = total / float(n_targets.sum())
        return mean

    def _on_device(self, values: NDArray[Any]) -> torch.Tensor:
        return copied_to(torch.from_numpy(values), self._engine.device)
