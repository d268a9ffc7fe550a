"""Micro-batches: the tensors of a forward pass, and their digests for the record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.digest import digest
from wellread.corpus.padding import SMALLEST, padded

if TYPE_CHECKING:
    import torch

B = TypeVar("B", "Batch", "FlatBatch")
LONGEST_MULTIPLE = 256
"""Lengths of the longest segment are rounded up to multiples of this: fewer values for which layers are compiled."""


class Samples(Protocol):
    """What a forward pass needs to read samples: a corpus, its segments, or other texts."""

    @property
    def longest(self) -> int:
        """Maximum number of tokens of a sample."""

    def tokens(self, sample_id: int, /) -> NDArray[Any]:
        """Tokens of one sample, (length,)."""

    def targets(self, sample_id: int, /) -> NDArray[np.bool_]:
        """Loss mask of one sample, (length,)."""

    def starts(self, sample_id: int, /) -> NDArray[np.int64]:
        """First token of each segment of one sample."""

    def lengths(self, sample_ids: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Number of tokens of each sample."""


@dataclass(frozen=True)
class Batch:
    """Samples as tensors, padded on the right."""

    sample_ids: torch.Tensor
    """(samples,) int64."""
    lengths: torch.Tensor
    """(samples,) int64, number of tokens of each sample without padding."""
    tokens: torch.Tensor
    """(samples, length) int64."""
    targets: torch.Tensor
    """(samples, length) bool, True where the token carries loss."""
    segments: torch.Tensor | None = None
    """(samples, length) int64, index of each token's segment; padding has the next index. None without packing."""
    count: int | None = None
    """Number of target tokens, where the forward pass must not wait for the device to count them (`counted`)."""

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Inputs of the forward pass (`wellread.models.loss.sample_losses`), without those that are None at the end."""
        if self.count is not None:
            return (self.tokens, self.targets, self.segments, self.count)
        return (self.tokens, self.targets) if self.segments is None else (self.tokens, self.targets, self.segments)

    def counted(self) -> Batch:
        """The same batch with the number of its targets; only on a CPU."""
        return replace(self, count=int(self.targets.sum()))

    def flat(self) -> FlatBatch:
        """The same samples as one row without padding; only on a CPU."""
        return FlatBatch.of(self)

    @property
    def width(self) -> int:
        """Tokens that the forward pass computes for each sample, with padding."""
        return self.tokens.shape[1]

    def n_targets(self) -> NDArray[np.int64]:
        """(samples,), number of target tokens of each sample."""
        return np.asarray(self.targets.sum(1).cpu().numpy())

    def to(self, device: Any) -> Batch:
        """The same batch on `device`."""
        return _with(self, lambda tensor: copied_to(tensor, device))

    def fetched(self) -> Batch:
        """Copies of these tensors on the host (`fetched`)."""
        return _with(self, fetched)

    def digests(self) -> list[bytes]:
        """Digest of each sample, computed from these tensors and not from the corpus."""
        lengths, tokens, targets = self.lengths.tolist(), self.tokens.cpu().numpy(), self.targets.cpu().numpy()
        segments = np.zeros_like(tokens) if self.segments is None else self.segments.cpu().numpy()
        begins = np.diff(segments, axis=1, prepend=-1) != 0
        return [digest(tokens[i, :n], targets[i, :n], np.flatnonzero(begins[i, :n])) for i, n in enumerate(lengths)]


@dataclass(frozen=True)
class FlatBatch:
    """Samples as one row of tokens, one after the other, without padding (`wellread.models.varlen`)."""

    sample_ids: torch.Tensor
    """(samples,) int64."""
    lengths: torch.Tensor
    """(samples,) int64, number of tokens of each sample."""
    tokens: torch.Tensor
    """(tokens,) int64."""
    places: torch.Tensor
    """(targets,) int64, places in the row of the tokens that carry loss, ascending."""
    starts: torch.Tensor
    """(segments + 1,) int32, first token of each segment in the row, then the number of tokens."""
    longest: int
    """Tokens of the longest segment, rounded up to a multiple of `LONGEST_MULTIPLE`."""

    @classmethod
    def of(cls, batch: Batch) -> FlatBatch:
        """The samples of a padded batch on a CPU, without its padding."""
        import torch

        lengths, tokens, targets = (part.numpy() for part in (batch.lengths, batch.tokens, batch.targets))
        real = np.arange(tokens.shape[1]) < lengths[:, None]
        segments = np.zeros_like(tokens) if batch.segments is None else batch.segments.numpy()
        begins = np.diff(segments, axis=1, prepend=-1) != 0
        starts = np.append(np.flatnonzero(begins[real]), lengths.sum()).astype(np.int32)
        longest = -(-int(np.diff(starts).max()) // LONGEST_MULTIPLE) * LONGEST_MULTIPLE
        row, places, bounds = map(torch.from_numpy, (tokens[real], np.flatnonzero(targets[real]), starts))
        return cls(batch.sample_ids, batch.lengths, row, places, bounds, longest)

    @property
    def inputs(self) -> tuple[torch.Tensor | int, ...]:
        """Inputs of the forward pass (`wellread.models.varlen.flat_losses`)."""
        return (self.tokens, self.places, self.lengths, self.starts, self.longest)

    @property
    def width(self) -> NDArray[np.int64]:
        """(samples,), tokens that the forward pass computes for each sample."""
        return np.asarray(self.lengths.cpu().numpy())

    def n_targets(self) -> NDArray[np.int64]:
        """(samples,), number of target tokens of each sample."""
        ends = self.lengths.cpu().numpy().cumsum()
        return np.diff(np.searchsorted(self.places.cpu().numpy(), ends), prepend=0)

    def to(self, device: Any) -> FlatBatch:
        """The same batch on `device`."""
        return _with(self, lambda tensor: copied_to(tensor, device))

    def fetched(self) -> FlatBatch:
        """Copies of these tensors on the host (`fetched`)."""
        return _with(self, fetched)

    def digests(self) -> list[bytes]:
        """Digest of each sample, computed from these tensors and not from the corpus."""
        tokens, starts = self.tokens.cpu().numpy(), self.starts.cpu().numpy()
        targets, begins = np.zeros(len(tokens), dtype=np.bool_), np.zeros(len(tokens), dtype=np.bool_)
        targets[self.places.cpu().numpy()], begins[starts[:-1]] = True, True
        ends = self.lengths.cpu().numpy().cumsum().tolist()
        places = (slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True))
        return [digest(tokens[each], targets[each], np.flatnonzero(begins[each])) for each in places]


def _with(batch: B, change: Callable[[torch.Tensor], torch.Tensor]) -> B:
    """The batch with each of its tensors changed."""
    import torch

    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    tensors: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
    return replace(batch, **tensors)


def copied_to(tensor: torch.Tensor, device: Any) -> torch.Tensor:
    """The tensor on `device`; to a GPU through page-locked memory, so that the host does not wait for the copy."""
    import torch

    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetched(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the host; a copy from a GPU is queued, and complete once the host has waited for the device."""
    return tensor.to("cpu", non_blocking=True)


def collate(corpus: Samples, sample_ids: NDArray[np.int64], device: str = "cpu") -> Batch:
    """Read samples from the corpus into tensors on the host, padded as suits `device` (cpu or cuda)."""
    import torch

    ids = [int(i) for i in sample_ids]
    lengths = corpus.lengths(np.asarray(ids, dtype=np.int64))
    starts = [corpus.starts(sample_id) for sample_id in ids]
    packed = any(len(begins) > 1 for begins in starts)
    width = width_of(int(lengths.max()), corpus.longest, device, packed=packed)
    tokens = np.zeros((len(ids), width), dtype=np.int64)
    targets = np.zeros((len(ids), width), dtype=np.bool_)
    segments = np.zeros((len(ids), width), dtype=np.int64)
    for row, (sample_id, length) in enumerate(zip(ids, lengths, strict=True)):
        tokens[row, :length] = corpus.tokens(sample_id)
        targets[row, :length] = corpus.targets(sample_id)
        for start in (*starts[row][1:], length):  # padding is a separate segment
            segments[row, start:] += 1
    return Batch(
        torch.tensor(ids, dtype=torch.int64),
        torch.from_numpy(lengths.astype(np.int64)),
        torch.from_numpy(tokens),
        torch.from_numpy(targets),
        torch.from_numpy(segments) if packed else None,
    )


def width_of(length: int, longest: int, device: str, *, packed: bool) -> int:
    """Padded length of a batch with samples of up to `length` tokens, from a corpus with samples of up to `longest`.

    The forward pass reads all tokens of a packed batch (`wellread.models.loss`), otherwise all but the last one: it
    never reads more positions than a sample may have, which is all that a model with learned positions has.
    """
    if packed:
        return padded(length, -(-longest // SMALLEST) * SMALLEST, device)
    return padded(length - 1, longest, device) + 1
