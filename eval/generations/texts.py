"""Texts that a checkpoint has written, kept in `eval/generations/step-N.parquet`, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.kept_table import KeptTable, settings_in

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from eval.generations.prompts import Batch, Prompt
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.decoder import Decoder
    from wellread.corpus.tokenizer import Tokenizer
    from wellread.run import RunDirectory

GREEDY, SAMPLED = "greedy", "sampled"
METHODS = (GREEDY, SAMPLED)
TOP_P = 0.9
"""Sampled texts: temperature 1, drawn from the most likely tokens with this total probability."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A continuation of a prompt."""

    prompt_id: int
    """Id of the sealed sample; in a packed corpus, of the segment."""
    method: str
    """`greedy` or `sampled`."""
    batch: int
    """Number of the batch in which it was written: the composition of a batch determines random choices."""
    seed: int | None
    """Seed of the batch; None for greedy texts."""
    tokens: list[int]
    """Tokens as written, with the token that ends a text."""
    text: str
    """The text without special tokens."""


def schema() -> pa.Schema:
    """The Arrow schema of a file of texts."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("prompt_id", pa.int64(), nullable=False),
            pa.field("method", pa.string(), nullable=False),
            pa.field("batch", pa.int32(), nullable=False),
            pa.field("seed", pa.int64()),
            pa.field("tokens", pa.list_(pa.int32()), nullable=False),
            pa.field("text", pa.string(), nullable=False),
        ]
    )


def seed_of(seed: int, step: int, batch: int) -> int:
    """Seed of a batch of sampled texts: different for each batch and checkpoint."""
    return int(np.random.SeedSequence([seed, step, batch]).generate_state(1, np.uint32)[0])


@dataclass(frozen=True)
class Written:
    """The texts of a checkpoint on disk."""

    table: KeptTable
    """Its settings: weights, prompts and how texts are written."""

    @classmethod
    def at(cls, run: RunDirectory, checkpoint: Checkpoint, settings: dict[str, Any]) -> Written:
        """The file of a checkpoint; it may be missing."""
        from eval.kept import binding_of

        return cls(KeptTable(path(run, checkpoint), settings | binding_of(checkpoint)))

    def read(self) -> list[Text]:
        """Texts that belong to the settings; none if the file is missing or belongs to others."""
        table = self.table.read()
        return [] if table is None else [Text(**row) for row in table.to_pylist()]

    def write(self, texts: list[Text]) -> None:
        """Replace the file; the same texts give the same bytes, in whatever order they were written."""
        import pyarrow as pa

        rows = sorted(texts, key=lambda text: (METHODS.index(text.method), text.batch, text.prompt_id))
        self.table.write(pa.Table.from_pylist([vars(row) for row in rows], schema=schema()))

    def missing(self, batches: list[Batch]) -> Iterator[tuple[str, Batch]]:
        """Method and batch of the texts that are not on disk yet."""
        present = {(text.method, text.batch) for text in self.read()}
        yield from ((method, batch) for method in METHODS for batch in batches if (method, batch.number) not in present)


def complete(texts: Sequence[Text], prompts: Sequence[Prompt]) -> bool:
    """Whether each prompt has a text of each method."""
    return len(texts) == len(METHODS) * len(prompts)


def kept_texts(run: RunDirectory, checkpoint: Checkpoint) -> list[Text]:
    """All kept texts of a checkpoint, whatever the settings; none if other weights have written them."""
    from eval.kept import binding_of
    from wellread.results import read_table

    file = path(run, checkpoint)
    if not binding_of(checkpoint).items() <= settings_in(file).items():
        return []
    return [Text(**row) for row in read_table(file).to_pylist()]


def plain(tokenizer: Tokenizer | Decoder, tokens: list[int]) -> str:
    """Text of tokens without special tokens."""
    return tokenizer.decode(without_special(tokenizer, tokens))


def without_special(tokenizer: Tokenizer | Decoder, tokens: Sequence[int]) -> list[int]:
    """Tokens without special ones."""
    return [token for token in tokens if token not in tokenizer.special_ids]


def path(run: RunDirectory, checkpoint: Checkpoint) -> Path:
    """File of the texts of a checkpoint."""
    return run.eval / "generations" / f"{checkpoint.path.name}.parquet"
