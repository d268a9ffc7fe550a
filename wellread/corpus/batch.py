"""Micro-batches: the tensors of a forward pass, and their digests for the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.digest import digest
from wellread.corpus.read import Corpus
from wellread.corpus.segments import Segments

if TYPE_CHECKING:
    import torch

PAD_MULTIPLE = 8
"""Padded lengths are multiples of this: fewer shapes, aligned matrix rows."""


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

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """Inputs of the forward pass: tokens, targets, and segments where a sample has several."""
        return (self.tokens, self.targets) if self.segments is None else (self.tokens, self.targets, self.segments)

    def to(self, device: Any) -> Batch:
        """The same batch on `device`."""
        return Batch(*(t.to(device) for t in (self.sample_ids, self.lengths, *self.inputs)))

    def digests(self) -> list[bytes]:
        """Digest of each sample, computed from these tensors and not from the corpus."""
        lengths, tokens, targets = self.lengths.tolist(), self.tokens.cpu().numpy(), self.targets.cpu().numpy()
        segments = np.zeros_like(tokens) if self.segments is None else self.segments.cpu().numpy()
        begins = np.diff(segments, axis=1, prepend=-1) != 0
        return [digest(tokens[i, :n], targets[i, :n], np.flatnonzero(begins[i, :n])) for i, n in enumerate(lengths)]


def collate(corpus: Corpus | Segments, sample_ids: NDArray[np.int64]) -> Batch:
    """Read samples from the corpus into padded tensors."""
    import torch

    ids = [int(i) for i in sample_ids]
    lengths = corpus.lengths(np.asarray(ids, dtype=np.int64))
    width = -(-int(lengths.max()) // PAD_MULTIPLE) * PAD_MULTIPLE
    tokens = np.zeros((len(ids), width), dtype=np.int64)
    targets = np.zeros((len(ids), width), dtype=np.bool_)
    segments = np.zeros((len(ids), width), dtype=np.int64)
    packed = False
    for row, (sample_id, length) in enumerate(zip(ids, lengths, strict=True)):
        tokens[row, :length] = corpus.tokens(sample_id)
        targets[row, :length] = corpus.targets(sample_id)
        starts = corpus.starts(sample_id)
        packed |= len(starts) > 1
        for start in (*starts[1:], length):  # padding is a separate segment
            segments[row, start:] += 1
    return Batch(
        torch.tensor(ids, dtype=torch.int64),
        torch.from_numpy(lengths.astype(np.int64)),
        torch.from_numpy(tokens),
        torch.from_numpy(targets),
        torch.from_numpy(segments) if packed else None,
    )
