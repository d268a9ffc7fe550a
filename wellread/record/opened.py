"""Open a run, or a corpus without a run, to query it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from wellread.checkpoint import Checkpoint, list_checkpoints
from wellread.corpus.read import Corpus, SampleReader
from wellread.errors import UserError
from wellread.order.permutation import Order
from wellread.order.store import open_order
from wellread.record.history import History
from wellread.record.reader import Record
from wellread.run import RunDirectory

if TYPE_CHECKING:
    from wellread.config import RunConfig
    from wellread.corpus.decoder import Decoder
    from wellread.planning.plan import Plan


@dataclass(frozen=True)
class Run:
    """A run and its parts; each part is read from disk on first access, and then cached."""

    directory: RunDirectory
    """Paths of its files."""

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run.

        Raises
        ------
        UserError
            When `path` is not a run directory.
        """
        return cls(RunDirectory.open(path))

    @property
    def path(self) -> Path:
        """Directory of the run."""
        return self.directory.path

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.directory.name

    @cached_property
    def config(self) -> RunConfig:
        """Settings of the run, from config.yaml."""
        return self.directory.config()

    @cached_property
    def plan(self) -> Plan:
        """Plan of its newest attempt, from plan.json."""
        from wellread.planning.plan import Plan

        return Plan.open(self.directory.plan_file)

    @cached_property
    def corpus(self) -> Corpus:
        """The samples, trainable and sealed.

        Raises
        ------
        UserError
            When the corpus is missing or incomplete.
        """
        return Corpus.open(self.directory.corpus)

    @cached_property
    def order(self) -> Order:
        """Which sample is read when: the function (batch, slot) -> sample."""
        return open_order(self.directory)

    @cached_property
    def record(self) -> Record:
        """What the run has read.

        Raises
        ------
        UserError
            When the run has not started yet.
        """
        return Record.open(self.directory.record)

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The committed checkpoints, by step."""
        return list_checkpoints(self.directory.checkpoints)

    @property
    def tokenizer(self) -> Decoder:
        """The tokenizer of the corpus, which decodes token ids into text."""
        tokenizer = self.history.tokenizer
        assert tokenizer is not None  # every corpus has one
        return tokenizer

    @cached_property
    def history(self) -> History:
        """What was read and what will be read, by batch and by sample."""
        return History(
            name=str(self.path),
            reader=self.corpus,
            order=self.order,
            steps=int(self.directory.manifest()["identity"]["steps"]),
            tokenizer_directory=self.corpus.tokenizer,
            record=self.record if (self.directory.record / "head.json").exists() else None,
            checkpoints=self.checkpoints,
        )


def open_corpus(prefix: str, order: str, batch_size: int | None, tokenizer: Path | None) -> History:
    """Open a Megatron data set or a compiled corpus with a named order, without a run.

    Parameters
    ----------
    prefix
        Path of PREFIX.idx without the suffix, or the directory of a compiled corpus.
    order
        ``sequential``; ``pythia``: sequential, after a check that all sizes are those of Pythia's pre-shuffled Pile; or
        ``megatron:DOC_IDX.npy,SAMPLE_IDX.npy,SHUFFLE_IDX.npy``: index maps cached by GPT-NeoX.
    batch_size
        Samples per batch; may be left out with the order ``pythia``, which has 1,024.

    Raises
    ------
    UserError
        When the files or the order are not valid.
    """
    reader, size = open_samples(prefix, order, batch_size)
    sequence = Order(kind="sequential", seed=0, n=reader.n_trainable, batch_size=size)
    directory = tokenizer or (reader.tokenizer if isinstance(reader, Corpus) else None)
    return History(name=prefix, reader=reader, order=sequence, steps=sequence.steps(1), tokenizer_directory=directory)


def open_samples(prefix: str, order: str, batch_size: int | None) -> tuple[SampleReader, int]:
    """Samples in the order of training, and the batch size; see `open_corpus`."""
    from wellread.data.sources.index_maps import IndexMaps
    from wellread.data.sources.megatron import PYTHIA_BATCH, Megatron

    if order not in ("sequential", "pythia") and not order.startswith("megatron:"):
        raise UserError(
            f"--order {order}: choose sequential, pythia (sequential, with a check of the sizes) or "
            "megatron:DOC_IDX.npy,SAMPLE_IDX.npy,SHUFFLE_IDX.npy"
        )
    if batch_size is None and order != "pythia":
        raise UserError(f"--batch_size is missing; give it, e.g. {PYTHIA_BATCH} for Pythia")
    size = PYTHIA_BATCH if batch_size is None else batch_size
    if (Path(prefix) / "corpus.json").is_file() and order == "sequential":
        return Corpus.open(prefix), size
    sequences = Megatron.open(prefix)
    if order == "pythia":
        sequences.check_pythia_order(size)
    return (IndexMaps.open(sequences, order) if order.startswith("megatron:") else sequences), size
