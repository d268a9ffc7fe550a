"""Members and samples not read yet, of a model that was trained on a corpus in a known order, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.membership.checks import Checks
from eval.membership.checks import Samples as Unscored
from eval.membership.compared import Compared, positions_of, without_shots
from eval.membership.texts import zlib_bytes
from eval.related import Related
from eval.separation import Ints
from wellread.corpus.decoder import Decoder
from wellread.corpus.read import Corpus, SampleReader
from wellread.errors import UserError

if TYPE_CHECKING:
    from wellread.corpus.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sequences:
    """Samples of a corpus as one model reads them, numbered from 0 (`compared.ModelSamples`)."""

    reader: SampleReader
    sample_ids: Ints
    """Id of each sample in the corpus."""
    folder: Path
    """Directory of the tokenizer."""
    longest: int
    """Most tokens that the model reads; one more is predicted."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus, or of the model for a corpus without one."""
        from wellread.corpus.tokenizer import Tokenizer

        return Tokenizer.load(self.folder)

    @cached_property
    def decoder(self) -> Decoder:
        """The same, only to decode."""
        return Decoder.load(self.folder)

    @property
    def truncated(self) -> int:
        """Number of samples that are longer than what the model reads and predicts."""
        return int((self.reader.lengths(self.sample_ids) > self.longest + 1).sum())

    def tokens(self, number: int, /) -> NDArray[Any]:
        """Tokens of one sample, (length,)."""
        return self.reader.tokens(int(self.sample_ids[number]))[: self.longest + 1]

    def targets(self, number: int, /) -> NDArray[np.bool_]:
        """Loss mask of one sample, (length,)."""
        return self.reader.targets(int(self.sample_ids[number]))[: self.longest + 1]

    def starts(self, number: int, /) -> NDArray[np.int64]:
        """First token of each segment of one sample."""
        if not isinstance(self.reader, Corpus):
            return np.zeros(1, dtype=np.int64)
        starts = self.reader.starts(int(self.sample_ids[number]))
        return starts[starts <= self.longest]

    def lengths(self, numbers: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Number of tokens of each sample."""
        return np.minimum(self.reader.lengths(self.sample_ids[numbers]), self.longest + 1)

    def texts(self, numbers: Ints) -> list[str]:
        """Text of each sample."""
        return [self.decoder.decode(self.tokens(i).tolist()) for i in numbers.tolist()]

    def zlib(self) -> Ints:
        """Bytes of the scored text of each sample, compressed; (n,)."""
        return zlib_bytes(self, np.arange(self.sample_ids.size), self.decoder)


@dataclass(frozen=True)
class Sequential:
    """A corpus in the order of training: a Megatron data set or a compiled corpus."""

    name: str
    """Directory of a corpus, or path of PREFIX.idx without the suffix."""
    order: str
    batch_size: int | None
    """Samples per batch; a published model has its own."""
    max_samples: int
    """Samples of each side."""
    max_tokens: int
    seed: int
    recall: bool
    """Whether some non-members are for the prefix of recall."""
    _compared: dict[tuple[int, str], Compared] = field(default_factory=dict)

    @cached_property
    def reader(self) -> SampleReader:
        """Its samples, in the order of training."""
        from wellread.data.sources.megatron import PYTHIA_BATCH
        from wellread.record.opened import open_samples

        return open_samples(self.name, self.order, PYTHIA_BATCH)[0]

    def n_read(self, model: str) -> int:
        """Number of samples that a model has read, from its name.

        Raises
        ------
        UserError
            When the name says no step, the corpus cannot be that of the model, or nothing is read or unread.
        """
        from wellread.models.registry import published_step, revision_step

        run = Path(model) if Path(model).exists() else Path(model.rpartition("@")[0] or model)
        if (run / "config.yaml").is_file():
            raise UserError(f"--model {model}: a run has a record of what it read; use wellread membership {run}")
        published, step, size = published_step(Path(model).name), revision_step(model), self.batch_size
        if published:
            self._refuse_unlike_pythia(model)
            if size not in (None, published.batch_size):
                raise UserError(
                    f"--batch_size {size}: {model} was trained with {published.batch_size:,} samples per batch; leave "
                    "out --batch_size"
                )
            step, size = published.step, published.batch_size
        elif "@step" not in model:
            raise UserError(f"--model {model}: the name says no step; with --corpus, write NAME@stepN")
        if size is None or size < 1:
            raise UserError(f"--batch_size: give the samples per batch of the training of {model}, at least 1")
        count, n = step * size, self._n
        if not count:
            raise UserError(f"--model {model}: has read nothing at step 0; choose a later step")
        if count > n - 2:
            raise UserError(
                f"--model {model}: has read {count:,} samples, and {self.name} has {n:,}, so nothing is unread; choose "
                "an earlier step"
            )
        return count

    @property
    def _n(self) -> int:
        """Number of samples that an order reads: canaries of a compiled corpus are not of the others' kind."""
        return self.reader.n_ordinary if isinstance(self.reader, Corpus) else self.reader.n_trainable

    def _refuse_unlike_pythia(self, model: str) -> None:
        """Refuse a corpus that cannot be what a published model was trained on, in its order."""
        from wellread.data.sources.megatron import PYTHIA_BATCH, PYTHIA_TOKENS, Megatron

        if isinstance(self.reader, Megatron):
            self.reader.check_pythia_order(PYTHIA_BATCH)
        if isinstance(self.reader, Corpus):
            unlike = self.reader.lengths(np.arange(self.reader.n)) != PYTHIA_TOKENS
            if unlike.any() or self.reader.n > self.reader.n_trainable:
                raise UserError(
                    f"--corpus {self.name}: not what {model} was trained on: "
                    + (
                        f"sample {unlike.argmax()} does not have {PYTHIA_TOKENS:,} tokens"
                        if unlike.any()
                        else "some of its samples are sealed"
                    )
                )

    def compared(self, model: str, directory: Path) -> Compared:
        """Members and non-members of a model: samples of batches before its step, and of later ones.

        Documents of which a part was read are not among the non-members.

        Parameters
        ----------
        directory
            The files of the model.

        Raises
        ------
        UserError
            When the corpus has tokens that the model does not have.
        """
        count, folder = self.n_read(model), self._tokenizer(directory)
        if (count, str(folder)) not in self._compared:
            self._compared[count, str(folder)] = self._draw(count, folder)
        compared = self._compared[count, str(folder)]
        self._refuse_other_vocabulary(model, directory, compared)
        return compared

    def _tokenizer(self, directory: Path) -> Path:
        return self.reader.tokenizer if isinstance(self.reader, Corpus) else directory

    @cached_property
    def _documents(self) -> Ints | None:
        """Document of each sample that an order reads; None where each sample counts as one."""
        if not isinstance(self.reader, Corpus):
            return None
        return np.asarray(self.reader.samples().column("document").to_numpy()[: self._n])

    def _draw(self, count: int, folder: Path) -> Compared:
        rng, n, every = np.random.default_rng(self.seed), self._n, self._documents
        unread: Ints | int = n - count
        if every is not None:
            first_read = (np.arange(n) >= count).astype(np.int64)
            unread = np.flatnonzero(Related.of(self.reader, every).earliest(first_read)[count:])
        members, nonmembers = (_draw_from(pool, self.max_samples, rng) for pool in (count, unread))
        nonmembers += count
        if min(members.size, nonmembers.size) < 2:
            raise UserError(f"--corpus {self.name}: fewer than two members or non-members; there is nothing to compare")
        ids = np.concatenate([members, nonmembers])
        documents, numbers = ids if every is None else every[ids], np.arange(ids.size)
        shots, compared = np.zeros(0, np.int64), numbers[members.size :]
        if self.recall:
            shots, compared = without_shots(compared, documents, self.seed)
        samples = Sequences(self.reader, ids, folder, self.max_tokens)
        unscored = Unscored("corpus", samples.texts, samples.lengths, self._labels(ids), documents)
        return Compared(
            members=numbers[: members.size],
            nonmembers=compared,
            unlabeled=numbers[:0],
            documents=documents,
            shots=shots,
            read=lambda directory: Sequences(self.reader, ids, folder, positions_of(directory, self.max_tokens)),
            checks=Checks(unscored, self.seed),
        )

    def _labels(self, ids: Ints) -> Sequence[Sequence[object]]:
        """Data set and category of each sample, where the corpus has them."""
        if not isinstance(self.reader, Corpus):
            return []
        table = self.reader.samples().select(["source", "category"]).take(ids)
        return [column.to_pylist() for column in table.columns]

    def _refuse_other_vocabulary(self, model: str, directory: Path, compared: Compared) -> None:
        from wellread.models.pretrained import configuration_in

        samples, size = compared.read(directory), int(configuration_in(directory).get_text_config().vocab_size)
        if isinstance(self.reader, Corpus):
            from wellread.corpus.tokenizer import Tokenizer

            if Tokenizer.load(directory).backend.get_vocab() != samples.tokenizer.backend.get_vocab():
                raise UserError(
                    f"--corpus {self.name}: has another vocabulary than {model}; give the model's own corpus"
                )
        highest = max(int(samples.tokens(i).max(initial=0)) for i in range(compared.n))
        if highest >= size:
            raise UserError(f"--corpus {self.name}: has token {highest:,}, but {model} has {size:,} tokens")


def _draw_from(pool: Ints | int, most: int, rng: np.random.Generator) -> Ints:
    """At most so many values of an array, or of 0 … pool - 1 without making them, ascending."""
    size = pool if isinstance(pool, int) else pool.size
    return np.sort(rng.choice(pool, min(size, most), replace=False, shuffle=False))
