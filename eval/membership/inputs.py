"""Computes what scores need for samples of a checkpoint, each once, and keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.kept import How, by_part, token_file, tokens_of, tokens_under
from eval.membership.gradients import norms_of
from eval.membership.recall import Prefix
from eval.membership.scores import Column, Inputs, needs
from eval.membership.texts import LowerCase, zlib_bytes
from eval.separation import Floats, Ints
from eval.token_store import SampleFile, TokenFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from eval.progress import Reporter
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.decoder import Decoder
    from wellread.corpus.read import Corpus
    from wellread.corpus.segments import Segments
    from wellread.run import RunDirectory


@dataclass(frozen=True)
class Source:
    """Samples of a run, and what their scores are computed from."""

    run: RunDirectory
    samples: Corpus | Segments
    scores: Sequence[Column]
    how: How
    reference: Checkpoint | Path | None = None
    """Checkpoint of the run or directory of a model."""
    prefix: Prefix | None = None
    """What is in front of samples for recall."""

    @cached_property
    def _decoder(self) -> Decoder:
        from wellread.corpus.decoder import Decoder

        return Decoder.load(self.samples.path / "tokenizer")

    @cached_property
    def _lowercase(self) -> LowerCase:
        from wellread.corpus.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(self.samples.path / "tokenizer")
        return LowerCase(self.samples, self.samples.longest, tokenizer=tokenizer)

    def files(self, checkpoint: Checkpoint, ids: Ints, reporter: Reporter) -> dict[str, SampleFile[Any]]:
        """Field of `Inputs` -> file with its columns; what is missing is computed."""
        kinds: dict[str, Callable[[], SampleFile[Any]]] = {
            "prefixed": lambda: self._prefixed_file(checkpoint, ids, reporter),  # first: it may be refused
            "tokens": lambda: tokens_of(self.run, checkpoint, self.samples, ids, reporter, self.how),
            "lowercase": lambda: self._lowercase_file(checkpoint, ids, reporter),
            "reference": lambda: self._reference_file(ids, reporter),
            "gradients": lambda: norms_of(self.run, checkpoint, self.samples, ids, reporter, self.how),
        }
        required = {"tokens", *needs(self.scores)}
        return {name: file() for name, file in kinds.items() if name in required}

    def _prefixed_file(self, checkpoint: Checkpoint, ids: Ints, reporter: Reporter) -> TokenFile:
        """Opens the model's configuration only if samples are missing."""
        assert self.prefix
        how = replace(self.how, variant=self.prefix.variant)
        if np.isin(ids, token_file(self.run, checkpoint, how).sample_id).all():
            return tokens_of(self.run, checkpoint, self.samples, ids, reporter, how)
        samples = self.prefix.before(self.samples, self.samples.longest, checkpoint.model)
        return tokens_of(self.run, checkpoint, samples, ids, reporter, how)

    def _lowercase_file(self, checkpoint: Checkpoint, ids: Ints, reporter: Reporter) -> TokenFile:
        """Loads the tokenizer, which takes seconds, only if samples are missing."""
        how = replace(self.how, variant="lowercase")
        file = token_file(self.run, checkpoint, how)
        if np.isin(ids, file.sample_id).all():
            reporter.move_to(reporter.scored + ids.size)
            return file
        return tokens_of(self.run, checkpoint, self._lowercase, ids, reporter, how)

    def _reference_file(self, ids: Ints, reporter: Reporter) -> TokenFile:
        from wellread.checkpoint import Checkpoint

        if isinstance(self.reference, Checkpoint):
            return tokens_of(self.run, self.reference, self.samples, ids, reporter, self.how)
        assert self.reference
        return tokens_under(self.run, self.reference, self.samples, ids, reporter, self.how)

    def values(self, files: dict[str, SampleFile[Any]], ids: Ints) -> dict[str, Floats]:
        """Name of each score -> its values, float64[n]; NaN where it is not defined."""
        tokens_file = files["tokens"]
        assert isinstance(tokens_file, TokenFile)
        more_files = {name: file for name, file in files.items() if name != "tokens"}
        parts: dict[str, list[Floats]] = {column.name: [] for column in self.scores}
        for tokens in by_part(tokens_file, self.samples, ids):
            more: dict[str, Any] = {name: file.read(tokens.sample_id) for name, file in more_files.items()}
            if "zlib" in needs(self.scores):
                more["zlib"] = zlib_bytes(self.samples, tokens.sample_id, self._decoder)
            inputs = Inputs(tokens=tokens, **more)
            for column in self.scores:
                parts[column.name].append(column.values(inputs))
        return {name: np.concatenate([np.zeros(0), *values]) for name, values in parts.items()}
