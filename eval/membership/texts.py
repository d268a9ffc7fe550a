"""Other forms of samples: their scored text, and the samples in lower case."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.separation import Ints

if TYPE_CHECKING:
    from wellread.corpus.batch import Samples
    from wellread.corpus.decoder import Decoder
    from wellread.corpus.tokenizer import Tokenizer

Sample = tuple[NDArray[Any], NDArray[np.bool_]]
"""Tokens and loss mask, (length,) each."""


def scored_text(samples: Samples, sample_id: int, decoder: Decoder) -> str:
    """Text of the target tokens of a sample, without special tokens."""
    targets = samples.tokens(sample_id)[samples.targets(sample_id)].tolist()
    return decoder.decode(token for token in targets if token not in decoder.special_ids)


def zlib_bytes(samples: Samples, ids: Ints, decoder: Decoder) -> Ints:
    """Bytes of `scored_text` of each sample, compressed; (n,)."""
    texts = (scored_text(samples, sample_id, decoder).encode() for sample_id in ids.tolist())
    return np.array([len(zlib.compress(text)) for text in texts], dtype=np.int64)


KEPT_SAMPLES = 10_000
"""Samples in lower case that are kept in memory."""


@dataclass(frozen=True)
class LowerCase:
    """Samples in lower case, tokenized again: prompt and response separately, special tokens unchanged.

    In the form of `wellread.corpus.batch.Samples`. The number of target tokens may be another one than before.
    """

    samples: Samples
    longest: int
    """Maximum number of tokens: samples are truncated to it."""
    tokenizer: Tokenizer
    _samples: dict[int, Sample] = field(default_factory=dict)

    def _sample(self, sample_id: int) -> Sample:
        if sample_id not in self._samples:
            if len(self._samples) >= KEPT_SAMPLES:
                self._samples.clear()
            tokens, targets = self._change(sample_id)
            self._samples[sample_id] = tokens[: self.longest], targets[: self.longest]
        return self._samples[sample_id]

    def tokens(self, sample_id: int, /) -> NDArray[Any]:
        """Tokens of one sample, (length,)."""
        return self._sample(sample_id)[0]

    def targets(self, sample_id: int, /) -> NDArray[np.bool_]:
        """Loss mask of one sample, (length,)."""
        return self._sample(sample_id)[1]

    def starts(self, sample_id: int, /) -> NDArray[np.int64]:
        """A sample in lower case has one segment."""
        return np.zeros(1, dtype=np.int64)

    def lengths(self, sample_ids: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Number of tokens of each sample."""
        return np.array([self.tokens(sample_id).size for sample_id in sample_ids.tolist()], dtype=np.int64)

    def _change(self, sample_id: int) -> Sample:
        """Lower case, tokenized again."""
        tokens, targets, begins = list[int](), list[bool](), True
        for ids, scored in self._pieces(sample_id):
            if ids[0] not in self.tokenizer.special_ids:
                text = self.tokenizer.decode(ids).lower()
                ids, begins = self._encode(text, begins), False
            tokens += ids
            targets += [scored] * len(ids)
        mask = np.array(targets, dtype=np.bool_)
        mask[:1] = False  # nothing predicts the first token
        return np.array(tokens, dtype=np.int64), mask

    def _pieces(self, sample_id: int) -> Iterator[tuple[list[int], bool]]:
        """Longest ranges of tokens that are all targets or all not, and all text or all special."""
        tokens, targets = self.samples.tokens(sample_id).tolist(), self.samples.targets(sample_id).tolist()
        special = [token in self.tokenizer.special_ids for token in tokens]
        if len(targets) > 1 and not targets[0] and targets[1] and not special[0]:
            targets[0] = True  # the first token of a text has no loss, but belongs to the text
        start = 0
        for place in range(1, len(tokens) + 1):
            kinds = (targets[start], special[start])
            if place == len(tokens) or (targets[place], special[place]) != kinds:
                yield tokens[start:place], targets[start]
                start = place

    def _encode(self, text: str, begins: bool) -> list[int]:
        """Tokens of a piece of a sample, which may be its first one."""
        if not begins:
            return self.tokenizer.continuations([text])[0]
        return self.tokenizer.prompts([text])[0][len(self.tokenizer.begins) :]
