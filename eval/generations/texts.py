"""Texts that a checkpoint has written, kept in `eval/generations/step-N.parquet`, batch by batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from eval.generations.prompts import Batch, Prompt
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.tokenizer import Tokenizer
    from wellread.run import RunDirectory

GREEDY, SAMPLED = "greedy", "sampled"
METHODS = (GREEDY, SAMPLED)
TOP_P = 0.9
"""Sampled texts: temperature 1, drawn from the most likely tokens with this total probability."""
SETTINGS = b"settings"
"""Key of the metadata that says to what the texts belong."""


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

    path: Path
    settings: dict[str, Any]
    """To what they belong: weights, prompts and how they are written."""

    @classmethod
    def at(cls, run: RunDirectory, checkpoint: Checkpoint, settings: dict[str, Any]) -> Written:
        """The file of a checkpoint; it may be missing."""
        from eval.kept import binding_of

        return cls(path(run, checkpoint), settings | binding_of(checkpoint))

    def read(self) -> list[Text]:
        """Texts that belong to `settings`; none if the file is missing or belongs to others."""
        from wellread.results import read_table

        if not self.path.is_file():
            return []
        table = read_table(self.path)
        if (table.schema.metadata or {}).get(SETTINGS) != metadata_of(self.settings)[SETTINGS]:
            return []
        return [Text(**row) for row in table.to_pylist()]

    def write(self, texts: list[Text]) -> None:
        """Replace the file; the same texts give the same bytes, in whatever order they were written."""
        import pyarrow as pa

        from wellread.results import write_table

        rows = sorted(texts, key=lambda text: (METHODS.index(text.method), text.batch, text.prompt_id))
        table = pa.Table.from_pylist([vars(row) for row in rows], schema=schema())
        write_table(self.path, table.replace_schema_metadata(metadata_of(self.settings)))

    def complete(self, prompts: Sequence[Prompt]) -> bool:
        """Whether each prompt has a text of each method."""
        return len(self.read()) == len(METHODS) * len(prompts)

    def missing(self, batches: list[Batch]) -> Iterator[tuple[str, Batch]]:
        """Method and batch of the texts that are not on disk yet."""
        present = {(text.method, text.batch) for text in self.read()}
        yield from ((method, batch) for method in METHODS for batch in batches if (method, batch.number) not in present)


def metadata_of(settings: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Metadata of a kept file that `settings_in` reads."""
    return {SETTINGS: json.dumps(settings, sort_keys=True).encode()}


def settings_in(file: Path) -> dict[str, Any]:
    """The settings to which the content of a kept file belongs; empty if there is no file or it states none."""
    import pyarrow.parquet as pq

    from wellread.results import unreadable_named

    if not file.is_file():
        return {}
    with unreadable_named(file):
        metadata = pq.read_schema(file).metadata or {}
    settings = json.loads(metadata.get(SETTINGS, b"{}"))
    return settings if isinstance(settings, dict) else {}


def plain(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """Text of tokens without special tokens."""
    return tokenizer.decode(without_special(tokenizer, tokens))


def without_special(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[int]:
    """Tokens without special ones."""
    return [token for token in tokens if token not in tokenizer.special_ids]


def path(run: RunDirectory, checkpoint: Checkpoint) -> Path:
    """File of the texts of a checkpoint."""
    return run.eval / "generations" / f"{checkpoint.path.name}.parquet"
