"""Files with what models say about samples without a run, below `--out`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.kept import How, Progress, fill, run_directory
from eval.membership.compared import Compared, ModelSamples
from eval.membership.gradients import FOLDER, NormFile, Norms, run_backward
from eval.separation import Ints
from eval.token_store import TokenFile

if TYPE_CHECKING:
    from eval.progress import Reporter
    from wellread.corpus.batch import Samples
    from wellread.hashes import KeptHashes
    from wellread.tokens import Tokens


@dataclass(frozen=True)
class Stored:
    """Files of samples as one model reads them; what is missing in them is computed."""

    compared: Compared
    samples: ModelSamples
    folder: Path
    how: How
    reporter: Reporter
    hashes: KeptHashes
    """Hashes of the files of models."""

    def tokens(self, directory: Path, samples: Samples, variant: str = "") -> TokenFile:
        """The file with token columns of all samples under the model in `directory`.

        Parameters
        ----------
        variant
            Name of the change that `samples` have; each has its own file.
        """

        def compute(missing: Ints, progress: Progress) -> Iterator[Tokens]:
            return run_directory(directory, samples, missing, self.how, progress)

        path, key = self._place(directory, "tokens", samples, variant)
        return fill(TokenFile(path, key), np.arange(self.compared.n), self.reporter, compute)

    def norms(self, directory: Path) -> NormFile:
        """The file with norms of the gradients of all samples under the model in `directory`."""

        def compute(missing: Ints, progress: Progress) -> Iterator[Norms]:
            return run_backward(directory, self.samples, missing, self.how, progress)

        path, key = self._place(directory, FOLDER, self.samples)
        return fill(NormFile(path, key), np.arange(self.compared.n), self.reporter, compute)

    def _place(self, directory: Path, folder: str, samples: Samples, variant: str = "") -> tuple[Path, dict[str, str]]:
        """Path of a file, and the metadata that bind it to the weights, to what is scored and how.

        Tokens and loss masks are hashed as this model scores them: a tokenizer may have changed, and a reference model
        scores the tokens of the model that it is compared with.
        """
        from wellread.corpus.digest import digest
        from wellread.models.directories import weights_hash

        scored = hashlib.sha256()
        for i in range(self.compared.n):
            scored.update(digest(samples.tokens(i), samples.targets(i), samples.starts(i)))
        key = {
            "model": weights_hash(directory, self.hashes),
            "scored": scored.hexdigest(),
            "dtype": self.how.dtype,
            "variant": variant,
        }
        name = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:12]
        return self.folder / folder / f"{name}.parquet", key
