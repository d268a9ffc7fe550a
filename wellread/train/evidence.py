"""What the ranks tell one another of each step: which samples entered forward, and how each rank is.

Both travel in one collective, as bytes: of each rank `RANK`, then `SAMPLE` for each of its samples. Their layout is
the same on every machine: little-endian, nothing between the fields.
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

    from wellread.corpus.batch import Batch
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
"""One sample, from the tensors that entered forward."""

RANK = np.dtype(
    [
        ("stop_signal", "<i8"),  # that it was sent, 0 for none
        ("host_peak", "<i8"),  # bytes that it has held at most, of host memory
        ("gpu_peak", "<i8"),  # and of its GPU
    ]
)
"""One rank."""


@dataclass(frozen=True)
class Evidence:
    """What all ranks told of one step."""

    samples: NDArray[np.void]
    """(batch_size,) `SAMPLE`, in slot order."""
    ranks: NDArray[np.void]
    """(ranks,) `RANK`, in order of rank."""

    @property
    def stop_signal(self) -> int:
        """The signal that asks the run to stop, 0 for none; all ranks see the same."""
        return int(self.ranks["stop_signal"].max())

    def reading(self, batch_id: int, order: Order) -> RecordedBatch:
        """The batch as the record keeps it."""
        samples = self.samples
        return RecordedBatch(
            batch_id=batch_id,
            sample_ids=samples["sample_id"].astype(np.int64),
            epochs=order.epochs(batch_id * len(samples) + samples["slot"].astype(np.int64)),
            n_targets=samples["n_targets"].astype(np.int64),
            losses=samples["loss"].astype(np.float32),
            digests=[digest.tobytes() for digest in samples["digest"]],
        )


def of_micro_batch(slots: NDArray[np.int64], batch: Batch, losses: torch.Tensor) -> NDArray[np.void]:
    """What a rank tells of one micro-batch. Waits for the device.

    Parameters
    ----------
    slots : (samples,)
    losses : (samples,) float, summed over the target tokens

    Returns
    -------
    (samples,) `SAMPLE`
    """
    n_targets = batch.targets.sum(1)
    told = np.empty(len(slots), SAMPLE)
    told["slot"] = slots
    told["sample_id"] = batch.sample_ids.cpu().numpy()
    told["n_tokens"] = batch.lengths.cpu().numpy()
    told["n_targets"] = n_targets.cpu().numpy()
    told["width"] = batch.tokens.shape[1]
    told["loss"] = (losses.float() / n_targets).cpu().numpy()
    told["digest"] = np.frombuffer(b"".join(batch.digests()), np.uint8).reshape(-1, DIGEST_BYTES)
    return told


def of_rank(stop_signal: int, peaks: tuple[int, int]) -> NDArray[np.void]:
    """What a rank tells of itself: () `RANK`, its `peaks` as of `wellread.train.watch.throughput.memory_peaks`."""
    return np.array((stop_signal, *peaks), RANK)


def gather(rank: NDArray[np.void], samples: NDArray[np.void], *, batch_size: int) -> Evidence:
    """Tell the others, and hear of them. Collective.

    Parameters
    ----------
    rank : () `RANK`
    samples : (batch_size / ranks,) `SAMPLE`
    """
    import torch

    share = batch_size // ranks.world_size()
    if len(samples) != share:  # the others would wait for its bytes, or take them for something else
        raise AssertionError(f"rank {ranks.rank()} read {len(samples)} samples, its share of the batch is {share}")
    told = torch.from_numpy(encode(rank, samples)[None])
    return decode(ranks.gather(told).numpy())


def encode(rank: NDArray[np.void], samples: NDArray[np.void]) -> NDArray[np.uint8]:
    """One rank's message: the bytes of `rank`, then those of `samples`."""
    message = np.empty((), _message(len(samples)))
    message["rank"], message["samples"] = rank, samples
    return message.reshape(1).view(np.uint8)


def decode(messages: NDArray[np.uint8]) -> Evidence:
    """The messages of all ranks, (ranks, bytes), in order of rank."""
    share, rest = divmod(messages.shape[1] - RANK.itemsize, SAMPLE.itemsize)
    assert rest == 0, f"messages of {messages.shape[1]} bytes"
    told = messages.view(_message(share))[:, 0]
    samples = told["samples"].ravel()
    return Evidence(samples[np.argsort(samples["slot"])], told["rank"])


def _message(samples: int) -> np.dtype[Any]:
    return np.dtype([("rank", RANK), ("samples", SAMPLE, (samples,))])
