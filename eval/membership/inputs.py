"""Computes what scores need for samples of a checkpoint, each once, and keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.kept import How, by_part, token_file, tokens_of, tokens_under
from eval.membership.scores import Column, Inputs, needs
from eval.membership.texts import LowerCase, zlib_bytes
from eval.separation import Floats, Ints

if TYPE_CHECKING:
    from pathlib import Path

    from eval.progress import Reporter
    from eval.token_store import TokenFile
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

    @property
    def passes(self) -> int:
        """How often each sample is scored."""
        return 1 + sum(need in ("lowercase", "reference") for need in needs(self.scores))

    @cached_property
    def _decoder(self) -> Decoder:
        from wellread.corpus.decoder import Decoder

        return Decoder.load(self.samples.path / "tokenizer")

    @cached_property
    def _lowercase(self) -> LowerCase:
        from wellread.corpus.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(self.samples.path / "tokenizer")
        return LowerCase(self.samples, self.samples.longest, tokenizer=tokenizer)

    def files(self, checkpoint: Checkpoint, ids: Ints, reporter: Reporter) -> dict[str, TokenFile]:
        """Field of `Inputs` -> file with its token columns; what is missing is computed."""
        files = {"tokens": tokens_of(self.run, checkpoint, self.samples, ids, reporter, self.how)}
        required = needs(self.scores)
        if "lowercase" in required:
            files["lowercase"] = self._lowercase_file(checkpoint, ids, reporter)
        if "reference" in required:
            files["reference"] = self._reference_file(ids, reporter)
        return files

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

    def values(self, files: dict[str, TokenFile], ids: Ints) -> dict[str, Floats]:
        """Name of each score -> its values, float64[n]; NaN where it is not defined."""
        more_files = {name: file for name, file in files.items() if name != "tokens"}
        parts: dict[str, list[Floats]] = {column.name: [] for column in self.scores}
        for tokens in by_part(files["tokens"], self.samples, ids):
            more: dict[str, Any] = {name: file.read(tokens.sample_id) for name, file in more_files.items()}
            if "zlib" in needs(self.scores):
                more["zlib"] = zlib_bytes(self.samples, tokens.sample_id, self._decoder)
            inputs = Inputs(tokens=tokens, **more)
            for column in self.scores:
                parts[column.name].append(column.score.values(inputs, column.k))
        return {name: np.concatenate([np.zeros(0), *values]) for name, values in parts.items()}
