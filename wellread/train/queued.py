"""A step that the host has queued, and what the record needs of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.batch import fetched
from wellread.train import evidence

if TYPE_CHECKING:
    import torch

    from wellread.corpus.batch import Batch, FlatBatch


@dataclass(kw_only=True)
class QueuedStep:
    """A step on this rank: its copies on the host are complete once the device has computed it."""

    step: int
    lr: float
    began: float
    """When the host began to queue it, seconds."""
    slots: list[NDArray[np.int64]]
    """Slots of this rank, by micro-batch."""
    losses: list[torch.Tensor] = field(default_factory=list)
    """On the device: summed loss of each sample, by micro-batch."""
    warm_up: bool = False
    """The device warmed up, or layers were compiled."""
    _read: list[tuple[Batch | FlatBatch, torch.Tensor]] = field(default_factory=list)
    _outcome: torch.Tensor | None = None
    _event: torch.cuda.Event | None = None

    def note(self, batch: Batch | FlatBatch, losses: torch.Tensor) -> None:
        """Copy the very tensors that entered the model, and their losses, behind the pass that read them."""
        self._read.append((batch.fetched(), fetched(losses)))
        self.losses.append(losses)

    def updated(self, outcome: torch.Tensor) -> None:
        """Copy what `wellread.train.ahead.Ahead.update` returned."""
        self._outcome = fetched(outcome)

    def end(self) -> None:
        """Nothing more is queued for this step."""
        import torch

        if self.losses[-1].is_cuda:
            self._event = torch.cuda.current_stream().record_event()
        self.losses.clear()

    def samples(self) -> NDArray[np.void]:
        """Wait for the device; return the `evidence.SAMPLE` of each sample of this rank."""
        if self._event:
            self._event.synchronize()
        micro_batches = zip(self.slots, self._read, strict=True)
        return np.concatenate([evidence.of_micro_batch(slots, *read) for slots, read in micro_batches])

    @property
    def is_updated(self) -> bool:
        """Whether the update of the weights is queued, too."""
        return self._outcome is not None

    @property
    def outcome(self) -> tuple[float, bool]:
        """The norm of the gradient, and whether the device found the loss bad; after `samples`."""
        assert self._outcome is not None
        norm, bad = self._outcome.numpy().tolist()
        return norm, bool(bad)
