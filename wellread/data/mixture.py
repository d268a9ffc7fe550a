"""The sets of a run: how each is read, how many rows are taken of each, and which corpus they make."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.config import DataConfig
from wellread.data.rows import instruct, templates
from wellread.data.rows.instruct import Example, Schema
from wellread.data.rows.templates import Template
from wellread.data.sources import raw, tables
from wellread.data.sources.raw import TEXT, Raw
from wellread.data.sources.source import Row, Source
from wellread.errors import UserError
from wellread.order.permutation import Order

VERSION = 2
"""Raise it when equal settings begin to give another corpus: then corpora are compiled anew."""
LOOKED_AT = 100
"""Rows by which a set's schema is recognized."""


@dataclass(frozen=True)
class Mixture:
    """The sets of a run, in the order of ``--data``; a sample's set is its place here."""

    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        """Names of all sets, for folders."""
        return "+".join(source.name for source in self.sources)

    @property
    def names(self) -> list[str]:
        """Name of each set."""
        return [source.name for source in self.sources]

    def estimate(self) -> int:
        """Rows taken from all sets, before they are read closely.

        Raises
        ------
        UserError
            When the size of a hub set is not known before it is downloaded.
        """
        sizes = [_rows(source) for source in self.sources]
        if self.sources[0].weight is None:
            return sum(min(n, source.limit or n) for n, source in zip(sizes, self.sources, strict=True))
        return sum(shares(sizes, [source.weight or 0.0 for source in self.sources]))

    def chosen(self, samples: Sequence[NDArray[np.int64]]) -> list[NDArray[np.bool_] | None]:
        """Choose the rows that are taken: a shuffle's first ones, the same whatever else is in the mixture.

        Parameters
        ----------
        samples : sequence of int64[rows]
            How many samples each row of each set makes.

        Returns
        -------
        list of bool[rows] or None
            None where all rows are taken.

        Raises
        ------
        UserError
            When more rows are asked for than a set has.
        """
        totals = [int(count.sum()) for count in samples]
        weights = [source.weight for source in self.sources if source.weight is not None]
        targets = shares(totals, weights) if weights else totals
        return [
            _first(source, count, target) for source, count, target in zip(self.sources, samples, targets, strict=True)
        ]


def shares(totals: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Divide by weight what several sets have: as much as is possible without taking anything twice."""
    whole = sum(weights)
    most = min(total * whole / weight for total, weight in zip(totals, weights, strict=True))
    return [min(total, round(most * weight / whole)) for total, weight in zip(totals, weights, strict=True)]


def _first(source: Source, samples: NDArray[np.int64], target: int) -> NDArray[np.bool_] | None:
    usable = np.flatnonzero(samples)
    if source.limit is not None and source.limit > len(usable):
        raise UserError(
            f"--data {source.name}:{source.limit}: {source.where} has {len(usable):,} rows; ask for at most that"
        )
    if source.limit is None and source.weight is None:
        return None
    order = usable[Order(kind="shuffle", seed=0, n=len(usable), batch_size=len(usable)).batch(0)]
    taken = source.limit or int(np.searchsorted(np.cumsum(samples[order]), target)) + 1
    chosen = np.zeros(len(samples), dtype=np.bool_)
    chosen[order[:taken]] = True
    return chosen


def _rows(source: Source) -> int:
    if source.paths and TEXT not in source.schemas:
        return sum(1 for _ in tables.rows(source))
    return raw.count(source)


# --- how a set is read -----------------------------------------------------------------------------------------------


Made = tuple[int, Sequence[Example | Raw] | str]
"""The number of a row, and the samples it makes, or a line that says where it is broken."""
SMALL = 32 << 20
"""Bytes of a set's files up to which its rows are kept, in some five times as much memory."""


@dataclass(frozen=True)
class Reader:
    """A set with its schema and its template."""

    source: Source
    schema: Schema
    template: Template
    kept: list[Made] | None = field(default=None, repr=False)
    """All its rows, where `kept_if_small` has read them."""

    def kept_if_small(self) -> Reader:
        """The same with its rows in memory, unless they are many: they are gone through several times."""
        if self.schema.name == TEXT or not self.source.paths:  # packed, or not a file, or not here
            return self
        small = sum(path.stat().st_size for path in self.source.paths) <= SMALL
        return replace(self, kept=list(self.rows())) if small else self

    def rows(self) -> Iterator[Made]:
        """Yield the number of each row and the samples it makes, or a line that says where it is broken."""
        if self.kept is not None:
            yield from self.kept
            return
        if self.schema.name == TEXT:
            yield from raw.documents(self.source)
            return
        for row in tables.rows(self.source):
            found = self._read(row)
            yield row.number, f"{row.where(self.source)}: {found}" if isinstance(found, str) else found

    def _read(self, row: Row) -> list[Example] | str:
        found = instruct.dialogues(row, self.schema, self.source)
        if isinstance(found, str):
            return found
        examples = []
        for dialogue in found:
            example = instruct.example(dialogue, self.template)
            if isinstance(example, str):
                return example
            examples.append(example)
        return examples


def readers(config: DataConfig, mixture: Mixture) -> list[Reader]:
    """Settle schema and template of each set; the first rows of local files are looked at, nothing is downloaded.

    Raises
    ------
    UserError
        When the columns fit no schema, or not the one that the set has; when a template cannot be used; when a set
        cannot be packed.
    """
    found = [_reader(config, source) for source in mixture.sources]
    if config.template and all(reader.schema.name == TEXT for reader in found):
        raise UserError(f"--template {config.template}: raw text has no template; leave it out")
    return found


def _reader(config: DataConfig, source: Source) -> Reader:
    if TEXT in source.schemas:
        if config.pack and any(raw.is_megatron(path) for path in source.paths):
            raise UserError(
                f"--pack: {source.where} is a Megatron set, whose sequences are cut to one length already; leave it out"
            )
        return Reader(source, instruct.SCHEMAS[TEXT], Template(TEXT, ()))
    looked_at = list(itertools.islice(tables.rows(source), LOOKED_AT)) if source.paths else []
    schema = _schema(source, {column for row in looked_at for column in row.fields or ()})
    name = config.template or source.template or schema.template
    if name == templates.CHAT and not (config.template or source.template):
        found = [instruct.dialogues(row, schema, source) for row in looked_at]
        if any(dialogue.prefixed for of in found if not isinstance(of, str) for dialogue in of):
            name = "alpaca"  # what its rows are written in
    return Reader(source, schema, templates.load(name, schema.fields, source.where))


def _schema(source: Source, columns: set[str]) -> Schema:
    if source.columns:
        own = instruct.with_columns(source.columns)
        known = [own]
    else:
        known = [instruct.SCHEMAS[name] for name in source.schemas]
        if not known and columns:
            return instruct.recognize(columns, source.where)
    if not columns:  # not here yet, or no row can be read, which the check of rows says
        return known[0] if known else instruct.SCHEMAS["dolly"]
    for schema in known:
        if set(schema.required_columns) <= columns:
            return schema
    lacking = [column for column in known[0].required_columns if column not in columns]
    raise UserError(
        f"{source.where}: no column {' and no '.join(map(repr, lacking))}, which {source.name} needs; "
        f"its columns are {', '.join(sorted(columns))}"
    )


# --- the corpus that they make ---------------------------------------------------------------------------------------


def corpus_settings(config: DataConfig, mixture: Mixture, tokenizer: str) -> dict[str, Any]:
    """Everything that decides what a corpus holds; its key names the corpus.

    Parameters
    ----------
    config : RunConfig
        Resolved.
    tokenizer : str
        Fingerprint of the tokenizer, or what one is trained with.
    """
    return {
        "version": VERSION,
        "sets": [_settings(reader) for reader in readers(config, mixture)],
        "tokenizer": tokenizer,
        "seq_len": config.seq_len,
        "loss_on": config.loss_on,
        "holdout": config.holdout,
        "holdout_seed": config.holdout_seed,
        "max_bad_rows": config.max_bad_rows,
        **({"pack": True} if config.pack else {}),
    }


def _settings(reader: Reader) -> dict[str, Any]:
    source = reader.source
    return {
        "name": source.name,
        "content": raw.fingerprint(source) if reader.schema.name == TEXT else tables.fingerprint(source),
        "schema": reader.schema.name,
        "columns": reader.schema.columns,
        "template": [reader.template.name, *reader.template.texts],
        "answers": source.answers,
        "subsets": sorted(source.subsets),
        "limit": source.limit,
        "weight": source.weight,
    }
