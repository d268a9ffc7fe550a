"""The data sets of a run: how each is read, how many rows are taken from each, and the settings of their corpus."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.config import DataConfig
from wellread.data import reading
from wellread.data.rows import instruct, templates
from wellread.data.rows.instruct import Example, Schema
from wellread.data.rows.templates import Template
from wellread.data.rows.unused import Unused, consumed
from wellread.data.sources import raw, tables
from wellread.data.sources.raw import TEXT, Raw
from wellread.data.sources.source import Row, Source
from wellread.errors import UserError
from wellread.order.permutation import Order

VERSION = 4
"""Raise it when the same settings produce a different corpus; existing corpora are then compiled again."""
CHAT_VERSION = 3
"""The same for data sets with the chat template."""
ROWS_VERSION = 2
"""The same for data sets of rows, which are not raw text."""
LOOKED_AT = 100
"""Number of rows that are read to recognize the schema of a data set."""


@dataclass(frozen=True)
class Mixture:
    """The data sets of a run, in the order of ``--data``; samples refer to their data set by its index here."""

    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        """Names of all data sets, joined for the name of a folder."""
        return "+".join(source.name for source in self.sources)

    @property
    def names(self) -> list[str]:
        """Name of each data set."""
        return [source.name for source in self.sources]

    def estimate(self) -> int:
        """Estimate the number of rows taken from all data sets, before the rows are parsed.

        Raises
        ------
        UserError
            When the size of a hub data set is not known before it is downloaded.
        """
        sizes = [_rows(source) for source in self.sources]
        if self.sources[0].weight is None:
            return sum(min(n, source.limit or n) for n, source in zip(sizes, self.sources, strict=True))
        return sum(shares(sizes, [source.weight or 0.0 for source in self.sources]))

    def choose(self, samples: Sequence[NDArray[np.int64]]) -> list[NDArray[np.bool_] | None]:
        """Choose the rows to take: the first of a shuffle with a fixed seed, independent of the other data sets.

        Parameters
        ----------
        samples : sequence of int64[rows]
            For each data set, the number of samples that each of its rows produces.

        Returns
        -------
        list of bool[rows] or None
            For each data set, which rows to take; None means all rows.

        Raises
        ------
        UserError
            When more rows are requested than a data set has.
        """
        totals = [int(count.sum()) for count in samples]
        weights = [source.weight for source in self.sources if source.weight is not None]
        targets = shares(totals, weights) if weights else totals
        return [
            _first(source, count, target) for source, count, target in zip(self.sources, samples, targets, strict=True)
        ]


def shares(totals: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Number of samples to take from each data set: as many as the weights allow without repeating a sample."""
    weight_sum = sum(weights)
    most = min(total * weight_sum / weight for total, weight in zip(totals, weights, strict=True))
    return [min(total, round(most * weight / weight_sum)) for total, weight in zip(totals, weights, strict=True)]


def _first(source: Source, samples: NDArray[np.int64], target: int) -> NDArray[np.bool_] | None:
    usable = np.flatnonzero(samples)
    if source.limit is not None and source.limit > len(usable):
        raise UserError(
            f"--data {source.name}:{source.limit}: {source.where} has {len(usable):,} rows; request at most that many"
        )
    if source.limit is None and source.weight is None:
        return None
    if not len(usable):
        raise UserError(f"{source.where}: has no usable row, so no share of it can be taken; leave it out of --data")
    order = usable[Order(kind="shuffle", seed=0, n=len(usable), batch_size=len(usable)).batch(0)]
    n_rows = source.limit or int(np.searchsorted(np.cumsum(samples[order]), target)) + 1
    mask = np.zeros(len(samples), dtype=np.bool_)
    mask[order[:n_rows]] = True
    return mask


def _rows(source: Source) -> int:
    if source.paths and TEXT not in source.schemas:
        return sum(1 for _ in tables.rows(source))
    return raw.count(source)


# --- how a data set is read ------------------------------------------------------------------------------------------


ParsedRow = tuple[int, Sequence[Example | Raw] | str]
"""Number of a row, and either its samples or, if it is malformed, a line with its location and error."""
SMALL = 32 << 20
"""Data sets with files up to this many bytes are kept in memory, where they take about five times as much."""
MOST_CHARACTERS = 4 * SMALL
"""Most characters of samples that are kept in memory."""


@dataclass(frozen=True)
class Reader:
    """A data set with its schema and its template."""

    source: Source
    schema: Schema
    template: Template
    unused: Unused = field(repr=False, compare=False)
    """Columns with content that are not read; counted while rows are read."""
    cached: list[ParsedRow] | None = field(default=None, repr=False)
    """All its rows, if `kept_if_small` has read them."""

    def kept_if_small(self) -> Reader:
        """Return a reader with its rows in memory if the files are small: rows are read several times."""
        # Raw text may be large when decompressed; hub data has no file yet.
        if self.schema.name == TEXT or not self.source.paths:
            return self
        if sum(path.stat().st_size for path in self.source.paths) > SMALL:
            return self
        cached, length = list[ParsedRow](), 0
        for number, samples in self.rows():
            cached.append((number, samples))
            length += sum(len(each.text) for each in samples if not isinstance(each, str))
            if length > MOST_CHARACTERS:  # a small file of compressed text
                return self
        return replace(self, cached=cached)

    def rows(self) -> Iterator[ParsedRow]:
        """Yield the number of each row, and either its samples or a line with its location and error."""
        if self.cached is not None:
            yield from self.cached
            return
        if self.schema.name == TEXT:
            for number, documents in raw.documents(self.source):
                for document in documents if not isinstance(documents, str) else ():
                    self.unused.add_document(number, document.columns, not document.is_full)
                yield number, documents
            return
        for row in tables.rows(self.source):
            examples = self._read(row)
            yield row.number, f"{row.where(self.source)}: {examples}" if isinstance(examples, str) else examples

    def _read(self, row: Row) -> list[Example] | str:
        dialogues = instruct.dialogues(row, self.schema, self.source)
        if isinstance(dialogues, str):
            self.unused.add(row)
            return dialogues
        self.unused.add(row, (key for dialogue in dialogues for key in dialogue.ignored))
        examples = []
        for dialogue in dialogues:
            example = instruct.example(dialogue, self.template)
            if isinstance(example, str):
                return example
            examples.append(example)
        return examples


def readers(config: DataConfig, mixture: Mixture) -> list[Reader]:
    """Determine schema and template of each data set from the first rows of local files; nothing is downloaded.

    Raises
    ------
    UserError
        When the columns match no schema, or do not match the declared one; when a template cannot be used; when a data
        set does not support packing.
    """
    result = [_reader(config, source) for source in mixture.sources]
    if config.template and all(reader.schema.name == TEXT for reader in result):
        raise UserError(f"--template {config.template}: raw text has no template; remove the flag")
    return result


def _reader(config: DataConfig, source: Source) -> Reader:
    if TEXT in source.schemas:
        if config.pack and any(raw.is_megatron(path) for path in source.paths):
            raise UserError(
                f"--pack: {source.where} is a Megatron data set; its sequences already have one length; remove the flag"
            )
        return Reader(source, instruct.SCHEMAS[TEXT], Template(TEXT, ()), Unused((), source.ignore))
    looked_at = list(itertools.islice(tables.rows(source), LOOKED_AT)) if source.paths else []
    schema = _schema(source, {column for row in looked_at for column in row.fields or ()})
    name = config.template or source.template or schema.template
    if name == templates.CHAT and not (config.template or source.template):
        parsed = [instruct.dialogues(row, schema, source) for row in looked_at]
        if any(dialogue.prefixed for dialogues in parsed if not isinstance(dialogues, str) for dialogue in dialogues):
            name = "alpaca"  # its rows contain Alpaca's prompts
    template = templates.load(name, schema.fields, source.where)
    return Reader(source, schema, template, Unused(consumed(schema, source, template), source.ignore))


def _schema(source: Source, columns: set[str]) -> Schema:
    if source.columns:
        candidates = [instruct.with_columns(source.columns)]
    else:
        candidates = [instruct.SCHEMAS[name] for name in source.schemas]
        if not candidates and columns:
            return instruct.recognize(columns, source.where)
    if not columns:  # not downloaded yet, or no row can be read, which the check of rows reports
        return candidates[0] if candidates else instruct.SCHEMAS["dolly"]
    for schema in candidates:
        if set(schema.required_columns) <= columns:
            return schema
    missing = [column for column in candidates[0].required_columns if column not in columns]
    raise UserError(
        f"{source.where}: no column {' and no '.join(map(repr, missing))}, which {source.name} needs; "
        f"its columns are {', '.join(sorted(columns))}"
    )


# --- the corpus compiled from them -----------------------------------------------------------------------------------


def corpus_settings(config: DataConfig, mixture: Mixture, tokenizer: str) -> dict[str, Any]:
    """All settings that determine the content of a corpus; their hash identifies the corpus.

    Parameters
    ----------
    config : DataConfig
        Resolved.
    tokenizer : str
        Fingerprint of the tokenizer, or the settings with which one is trained.
    """
    data_sets = readers(config, mixture)
    chat = {"version": CHAT_VERSION, "date": config.template_date}
    return {
        "version": VERSION,
        "sets": [_settings(reader) for reader in data_sets],
        "tokenizer": tokenizer,
        "seq_len": config.seq_len,
        "loss_on": config.loss_on,
        "holdout": config.holdout,
        "holdout_seed": config.holdout_seed,
        "max_bad_rows": config.max_bad_rows,
        **({"rows": ROWS_VERSION} if any(reader.schema.name != TEXT for reader in data_sets) else {}),
        **({"pack": True} if config.pack else {}),
        **({"chat": chat} if any(reader.template.is_chat for reader in data_sets) else {}),
    }


def _settings(reader: Reader) -> dict[str, Any]:
    source = reader.source
    return {
        "name": source.name,
        "content": raw.fingerprint(source) if reader.schema.name == TEXT else tables.fingerprint(source),
        "schema": reader.schema.name,
        "columns": reader.schema.columns | source.columns,
        "template": [reader.template.name, *reader.template.texts],
        "answers": source.answers,
        "subsets": sorted(source.subsets),
        **({"ignore": sorted(source.ignore)} if source.ignore else {}),
        "limit": source.limit,
        "weight": source.weight,
        **reading.settings(source, reader.schema, reader.template),
    }
