"""What the ranks exchange in each step: which samples entered the forward pass, and each rank's status.

One collective carries both, as bytes. A rank's message is one `RANK`, then one `SAMPLE` for each of its samples. The
layout is the same on every machine: little-endian, without padding between the fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.digest import DIGEST_BYTES
from wellread.record.writer import RecordedBatch
from wellread.train import ranks

if TYPE_CHECKING:
    import torch

    from wellread.corpus.batch import Batch, FlatBatch
    from wellread.order.permutation import Order

SAMPLE = np.dtype(
    [
        ("slot", "<i8"),
        ("sample_id", "<i8"),
        ("n_tokens", "<i8"),  # without padding
        ("n_targets", "<i8"),
        ("width", "<i8"),  # tokens with padding
        ("loss", "<f4"),  # mean over the target tokens
        ("digest", "u1", DIGEST_BYTES),
    ]
)
"""One sample, measured on the tensors that entered the forward pass."""

RANK = np.dtype(
    [
        ("stop_signal", "<i8"),  # number of the signal that it received, 0 for none
        ("host_peak", "<i8"),  # its peak host memory, bytes
        ("gpu_peak", "<i8"),  # its peak GPU memory, bytes
    ]
)
"""Status of one rank."""


@dataclass(frozen=True)
class Evidence:
    """What all ranks reported about one step."""

    samples: NDArray[np.void]
    """(batch_size,) `SAMPLE`, in slot order."""
    ranks: NDArray[np.void]
    """(ranks,) `RANK`, in rank order."""

    @property
    def stop_signal(self) -> int:
        """The signal that asks the run to stop, 0 for none; the same on all ranks."""
        return int(self.ranks["stop_signal"].max())

    def reading(self, batch_id: int, order: Order) -> RecordedBatch:
        """The batch in the form that the record stores."""
        samples = self.samples
        return RecordedBatch(
            batch_id=batch_id,
            sample_ids=samples["sample_id"].astype(np.int64),
            epochs=order.epochs(batch_id * len(samples) + samples["slot"].astype(np.int64)),
            n_targets=samples["n_targets"].astype(np.int64),
            losses=samples["loss"].astype(np.float32),
            digests=[digest.tobytes() for digest in samples["digest"]],
        )


def of_micro_batch(slots: NDArray[np.int64], batch: Batch | FlatBatch, losses: torch.Tensor) -> NDArray[np.void]:
    """Report of one rank about one micro-batch, whose tensors are on the host.

    Parameters
    ----------
    slots : (samples,)
    losses : (samples,) float, summed over the target tokens

    Returns
    -------
    (samples,) `SAMPLE`
    """
    n_targets = batch.n_targets()
    rows = np.empty(len(slots), SAMPLE)
    rows["slot"] = slots
    rows["sample_id"] = batch.sample_ids.cpu().numpy()
    rows["n_tokens"] = batch.lengths.cpu().numpy()
    rows["n_targets"] = n_targets
    rows["width"] = batch.width
    rows["loss"] = losses.float().cpu().numpy() / n_targets
    rows["digest"] = np.frombuffer(b"".join(batch.digests()), np.uint8).reshape(-1, DIGEST_BYTES)
    return rows


def of_rank(stop_signal: int, peaks: tuple[int, int]) -> NDArray[np.void]:
    """Report of a rank about itself, () `RANK`; `peaks` come from `wellread.train.watch.throughput.memory_peaks`."""
    return np.array((stop_signal, *peaks), RANK)


def gather(rank: NDArray[np.void], samples: NDArray[np.void], *, batch_size: int, on_host: bool = False) -> Evidence:
    """Exchange the reports of all ranks. Collective.

    Parameters
    ----------
    rank : () `RANK`
    samples : (batch_size / ranks,) `SAMPLE`
    on_host : bool
        The host must not wait for the GPUs (`wellread.train.ranks.gather`).
    """
    import torch

    share = batch_size // ranks.world_size()
    if len(samples) != share:  # the other ranks would wait for missing bytes, or misread the message
        raise AssertionError(f"rank {ranks.rank()} read {len(samples)} samples, its share of the batch is {share}")
    message = torch.from_numpy(serialize(rank, samples)[None])
    return deserialize(ranks.gather(message, on_host=on_host).numpy())


def serialize(rank: NDArray[np.void], samples: NDArray[np.void]) -> NDArray[np.uint8]:
    """Message of one rank: the bytes of `rank`, then those of `samples`."""
    message = np.empty((), _message_type(len(samples)))
    message["rank"], message["samples"] = rank, samples
    return message.reshape(1).view(np.uint8)


def deserialize(messages: NDArray[np.uint8]) -> Evidence:
    """The evidence in the messages of all ranks, (ranks, bytes), in rank order."""
    share, remainder = divmod(messages.shape[1] - RANK.itemsize, SAMPLE.itemsize)
    assert remainder == 0, f"messages of {messages.shape[1]} bytes"
    fields = messages.view(_message_type(share))[:, 0]
    samples = fields["samples"].ravel()
    return Evidence(samples[np.argsort(samples["slot"])], fields["rank"])


def _message_type(samples: int) -> np.dtype[Any]:
    return np.dtype([("rank", RANK), ("samples", SAMPLE, (samples,))])
