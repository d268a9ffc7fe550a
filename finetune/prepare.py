"""Compile the corpus of a fine-tuning run: rows -> template -> tokens and loss mask -> sealed, hashed corpus."""

from __future__ import annotations

import gc
import itertools
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune import show
from finetune.tokenize import Item, tokenize
from wellread.config import DataConfig, RunConfig
from wellread.corpus import summary, tokenizer
from wellread.corpus.building import building
from wellread.corpus.merge import merge
from wellread.corpus.read import Corpus
from wellread.corpus.shards import Shard, write_shards
from wellread.data.mixture import Reader, readers
from wellread.data.rows import templates
from wellread.data.rows.bad_rows import BadRows
from wellread.data.rows.instruct import Example
from wellread.data.sources.raw import TEXT, Raw
from wellread.errors import UserError
from wellread.models.directories import local_directory
from wellread.models.registry import find
from wellread.models.spec import ModelSpec
from wellread.recipes.finetune import Rows
from wellread.recipes.registry import resolve

ROWS_PER_SHARD = 2000
Chosen = list[NDArray[np.bool_] | None]
"""For each set, which of its rows are taken; None: all."""


def prepare(config: RunConfig, shown: int = 0) -> Path:
    """Compile the corpus of `config`, or find it compiled; say what it holds; return its directory.

    Parameters
    ----------
    shown : int
        How many samples of each set are printed.

    Raises
    ------
    UserError
        When the data, the model or its tokenizer cannot be used, or too many rows are broken.
    """
    return compile_corpus(resolve(config, find(config.model.name)), shown)


def compile_corpus(config: RunConfig, shown: int = 0) -> Path:
    """Do what `prepare` does, of resolved settings."""
    rows = Rows.of(config, find(config.model.name))
    target = rows.directory
    with building(target) as build:
        if build is None:
            print(f"corpus {target}: already compiled", flush=True)
        else:
            _compile(build, target, rows)
    corpus = Corpus.open(target)
    summary.summary(corpus)
    show.samples(corpus, shown)
    _warn_unsealed(corpus, config.data)
    return target


def _compile(build: Path, target: Path, rows: Rows) -> None:
    config, mixture, spec, settings = rows.config, rows.mixture, rows.spec, rows.settings
    gc.freeze()  # what is loaded stays: the collector would go through all of it again and again
    found = [reader.kept_if_small() for reader in readers(config.data, mixture)]
    counts, bad = _check_rows(found, config.data.max_bad_rows, spec)
    chosen = mixture.chosen(counts)
    taken = [int(np.count_nonzero(n if of is None else of)) for n, of in zip(counts, chosen, strict=True)]
    backend = _tokenizer(spec, found, chosen, build)
    for reader, n, of in zip(found, counts, taken, strict=True):
        part = "" if of == np.count_nonzero(n) else f"{of:,} of "
        print(f"compiling {part}{len(n):,} rows of {reader.source.name} into {target}", flush=True)
    items = sum(int(n.sum() if of is None else n[of].sum()) for n, of in zip(counts, chosen, strict=True)) + len(bad)
    _write(build, _items(found, chosen), backend, config.data, items)
    merge(
        build,
        sets=mixture.names,
        vocab_size=spec.vocab,
        settings=settings,
        pack=config.data.seq_len if config.data.pack else None,
        extra={
            "kind": TEXT if all(reader.schema.name == TEXT for reader in found) else "instruction",
            "sets": [_described(*of) for of in zip(found, counts, taken, settings["sets"], strict=True)],
            "tokenizer": {
                "size": backend.size,
                "eos": backend.eos,
                "sha256": tokenizer.fingerprint(build / "tokenizer"),
            },
            "bad_rows": bad,
        },
    )


def _described(reader: Reader, counts: NDArray[np.int64], taken: int, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": reader.source.name,
        "schema": reader.schema.name,
        "template": reader.template.name,
        "rows": len(counts),
        "taken": taken,
        "sha256": settings["content"],
    }


def _warn_unsealed(corpus: Corpus, config: DataConfig) -> None:
    if corpus.n == corpus.n_trainable and config.holdout > 0:
        print(
            f"warning: none of the {corpus.n:,} samples is sealed (--holdout {config.holdout:g}): "
            "what the model has read cannot be told from what it has not",
            file=sys.stderr,
        )


def _check_rows(found: Sequence[Reader], allowed: int, spec: ModelSpec) -> tuple[list[NDArray[np.int64]], list[str]]:
    """Read every row once; return how many samples each row of each set makes, and a line for each broken one."""
    counts, bad = [], BadRows(allowed)
    for reader in found:
        made = array("q")
        for number, samples in reader.rows():
            if reader.schema.name == TEXT:
                _check_tokens(samples, f"{reader.source.where} row {number}", spec)
            made.append(0 if isinstance(samples, str) else len(samples))
            if isinstance(samples, str):
                bad.add(samples)
        if not made:
            raise UserError(f"{reader.source.where}: holds no rows")
        counts.append(np.array(made, dtype=np.int64))
    bad.check()
    for reader, count in zip(found, counts, strict=True):
        if reader.source.subsets and not count.any():
            raise UserError(f"{reader.source.where}: no row is of {' or '.join(reader.source.subsets)}")
    bad.say()
    return counts, bad.lines


def _check_tokens(samples: Sequence[Example | Raw] | str, where: str, spec: ModelSpec) -> None:
    """Refuse tokens of a Megatron file that are none of the model's."""
    for tokens in (each.tokens for each in samples if isinstance(each, Raw) and each.tokens is not None):
        if spec.fresh:
            raise UserError(f"{where}: holds tokens, and {spec.name} has no tokenizer of its own; choose its model")
        if len(tokens) and int(tokens.max()) >= spec.vocab:
            raise UserError(
                f"{where}: token {int(tokens.max()):,}, but {spec.name} has a vocabulary of {spec.vocab:,}; "
                "they do not belong together"
            )


def _items(found: Sequence[Reader], chosen: Chosen) -> Iterator[Item]:
    """What becomes samples, set after set; broken rows too, to be counted."""
    for set_id, (reader, taken) in enumerate(zip(found, chosen, strict=True)):
        for place, (number, samples) in enumerate(reader.rows()):
            if isinstance(samples, str):
                yield Item(set_id, number, None)
            elif taken is None or taken[place]:
                for sample in samples:
                    yield Item(set_id, number, sample, reader.source.where)


def _tokenizer(spec: ModelSpec, found: Sequence[Reader], chosen: Chosen, build: Path) -> tokenizer.Tokenizer:
    """Put the tokenizer's files into the corpus; train one where the model has none."""
    directory = build / "tokenizer"
    if spec.fresh and not (directory / "tokenizer.json").exists():
        texts = (item.found.text for item in _items(found, chosen) if isinstance(item.found, Example | Raw))
        tokenizer.train_bpe(texts, spec.vocab, directory, spec.positions)
    elif not spec.fresh:
        tokenizer.copy_files(local_directory(spec, weights=False), directory)
    backend = tokenizer.Tokenizer.load(directory)
    if backend.size > spec.vocab:
        raise UserError(
            f"--model {spec.name}: its tokenizer has {backend.size:,} tokens but its embedding {spec.vocab:,} rows; "
            "they do not belong together"
        )
    if any(reader.template.is_chat for reader in found) and not backend.backend.chat_template:
        print(
            f"the tokenizer of {spec.name} has no chat template: it gets configs/templates/{templates.CHAT_FILE.name}"
        )
        (directory / "chat_template.jinja").write_text(templates.CHAT_FILE.read_text())
        backend = tokenizer.Tokenizer.load(directory)
    return backend


def _write(build: Path, found: Iterator[Item], backend: tokenizer.Tokenizer, config: DataConfig, items: int) -> None:
    """Tokenize stretch by stretch, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    consumed = 0
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("tokenizing", total=items)

        def make(index: int) -> Shard:
            nonlocal consumed
            skipped = index * ROWS_PER_SHARD - consumed  # shards that an interrupted build left behind
            stretch = list(itertools.islice(found, skipped, skipped + ROWS_PER_SHARD))
            consumed = (index + 1) * ROWS_PER_SHARD
            return tokenize(stretch, backend, config)

        count = -(-items // ROWS_PER_SHARD)
        write_shards(build, count, make, lambda done: bar.update(task, completed=min(items, done * ROWS_PER_SHARD)))
