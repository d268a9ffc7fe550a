"""Compile the corpus of a fine-tuning run: rows -> template -> tokens and loss mask -> sealed, hashed corpus."""

from __future__ import annotations

import gc
import itertools
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune import show
from finetune.marked import Item
from finetune.tokenize import refuse_unfit, tokenize
from wellread.config import DataConfig, RunConfig
from wellread.corpus import canaries as registered
from wellread.corpus import summary, tokenizer
from wellread.corpus.building import building
from wellread.corpus.merge import merge
from wellread.corpus.read import Corpus
from wellread.corpus.rendering import source_of
from wellread.corpus.shards import Shard, totals, write_shard
from wellread.corpus.workers import cores, write_chunks
from wellread.data import canaries, documents, influence, marks, sample_metrics
from wellread.data.marks import Marker
from wellread.data.mixture import Reader, readers
from wellread.data.rows import templates
from wellread.data.rows.bad_rows import BadRows
from wellread.data.rows.instruct import Example
from wellread.data.sources.raw import TEXT, Raw
from wellread.errors import UserError
from wellread.models.directories import local_directory
from wellread.models.headers import embedding_rows
from wellread.models.registry import find
from wellread.models.spec import ModelSpec
from wellread.recipes.finetune import Rows
from wellread.recipes.registry import resolve
from wellread.terminal import plural, progress

ROWS_PER_SHARD = 2000
PARALLEL = 20_000
"""Fewest rows that several processes tokenize: starting them costs about a second of one core."""
ROWS_BETWEEN_LOOKS = 1000
"""How many rows are read before the progress is shown again."""
RowMasks = list[NDArray[np.bool_] | None]
"""For each data set, a mask of the rows that are used; None: all rows."""


def prepare(config: RunConfig, n_shown: int = 0) -> Path:
    """Compile the corpus of `config` unless it exists, print a summary, and return its directory.

    Parameters
    ----------
    n_shown : int
        Number of samples of each data set to print.

    Raises
    ------
    UserError
        When the data, the model or its tokenizer cannot be used, or there are too many malformed rows.
    """
    return compile_corpus(resolve(config, find(config.model.name)), n_shown)


def compile_corpus(config: RunConfig, n_shown: int = 0) -> Path:
    """Like `prepare`, but `config` must be resolved."""
    rows = Rows.of(config, find(config.model.name))
    target = rows.directory
    with building(target) as build:
        if build is None:
            print(f"corpus {target}: already compiled", flush=True)
        else:
            _compile(build, target, rows)
    if config.data.metrics:
        sample_metrics.add(target)
    if config.data.influence:
        influence.add(target, Path(config.data.influence))
    corpus = Corpus.open(target)
    summary.summary(corpus)
    summary.metrics(corpus)
    show.samples(corpus, n_shown)
    _warn_unsealed(corpus, config.data)
    return target


def _compile(build: Path, target: Path, rows: Rows) -> None:
    config, mixture, spec, settings = rows.config, rows.mixture, rows.spec, rows.settings
    canaries.refuse_name(config, mixture.names)
    gc.freeze()  # modules stay loaded; otherwise each garbage collection would traverse all their objects
    backend = None if spec.fresh else _tokenizer_of(spec, build / "tokenizer")
    data_sets = [reader.kept_if_small() for reader in readers(config.data, mixture)]
    counts, bad = _check_rows(data_sets, config.data.max_bad_rows, spec)
    masks = mixture.choose(counts)
    n_taken = [int(np.count_nonzero(n if mask is None else mask)) for n, mask in zip(counts, masks, strict=True)]
    backend = _in_corpus(backend, spec, data_sets, masks, build)
    for reader, n, used in zip(data_sets, counts, n_taken, strict=True):
        if reader.schema.name == TEXT and (split := documents.split_files(reader.source)):
            print(split, file=sys.stderr)
        part = "" if used == np.count_nonzero(n) else f"{used:,} of "
        print(
            f"compiling {part}{len(n):,} rows of {reader.source.name}{reader.source.file_count} into {target}",
            flush=True,
        )
    items = sum(int((n if mask is None else n[mask]).sum()) for n, mask in zip(counts, masks, strict=True)) + len(bad)
    assert config.data.seq_len  # resolved
    marker = Marker.of(settings.get("marks"), config.data.seq_len)
    if marker:
        marker.check(backend.prompts)
    _write(
        build, _items(data_sets, masks), partial(tokenize, backend=backend, config=config.data, marker=marker), items
    )
    refuse_unfit(*totals(build), len(bad), config.data.max_bad_rows)
    extra = canaries.add(build, config, len(mixture.names), backend, partial(_complete, backend))
    marked = marks.add(build, settings.get("marks"), config.data.marks)
    merge(
        build,
        sets=[*mixture.names, *([registered.SET] if extra else [])],
        vocab_size=spec.vocab,
        settings=settings,
        pack=config.data.seq_len if config.data.pack else None,
        extra={
            "kind": TEXT if all(reader.schema.name == TEXT for reader in data_sets) else "instruction",
            "sets": [_described(*each) for each in zip(data_sets, counts, n_taken, settings["sets"], strict=True)],
            "tokenizer": {
                "size": backend.size,
                "eos": backend.eos,
                "sha256": tokenizer.fingerprint(build / "tokenizer"),
            },
            "bad_rows": bad,
            **extra,
            **marked,
        },
    )


def _complete(backend: tokenizer.Tokenizer, texts: list[str]) -> list[list[int]]:
    """Tokens of texts with their end, as documents have them."""
    return [[*tokens, backend.eos] for tokens in backend.prompts(texts)]


def _described(reader: Reader, counts: NDArray[np.int64], n_taken: int, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": reader.source.name,
        "schema": reader.schema.name,
        "template": reader.template.name,
        "rows": len(counts),
        "taken": n_taken,
        "usable": int(np.count_nonzero(counts)),
        **({"ignored": reader.unused.ignored} if reader.unused.ignored else {}),
        "sha256": settings["content"],
    }


def _warn_unsealed(corpus: Corpus, config: DataConfig) -> None:
    if corpus.n == corpus.n_trainable and config.holdout > 0:
        print(
            f"warning: no sample is sealed ({plural(corpus.n, 'sample')}, --holdout {config.holdout:g}), "
            "so evaluations cannot compare read samples with sealed ones",
            file=sys.stderr,
        )


def _check_rows(
    data_sets: Sequence[Reader], allowed: int, spec: ModelSpec
) -> tuple[list[NDArray[np.int64]], list[str]]:
    """Read all rows once; return the number of samples per row for each data set, and a line per malformed row."""
    counts, bad = [], BadRows(allowed)
    for reader in data_sets:
        n_samples = array("q")
        with progress(f"reading {reader.source.name}", None) as show:
            for number, samples in reader.rows():
                if reader.schema.name == TEXT:
                    _check_tokens(samples, f"{reader.source.where} row {number}", spec)
                n_samples.append(0 if isinstance(samples, str) else len(samples))
                if isinstance(samples, str):
                    bad.add(samples)
                if len(n_samples) % ROWS_BETWEEN_LOOKS == 0:
                    show(len(n_samples))
        if not n_samples:
            raise UserError(f"{reader.source.where}: contains no rows")
        reader.unused.check(reader.source.where)
        counts.append(np.array(n_samples, dtype=np.int64))
    bad.check()
    for reader, count in zip(data_sets, counts, strict=True):
        if reader.source.subsets and not count.any():
            raise UserError(f"{reader.source.where}: contains no rows of subset {' or '.join(reader.source.subsets)}")
    bad.say()
    return counts, bad.lines


def _check_tokens(samples: Sequence[Example | Raw] | str, where: str, spec: ModelSpec) -> None:
    """Raise an error for tokens of a Megatron file that are not in the model's vocabulary."""
    for tokens in (each.tokens for each in samples if isinstance(each, Raw) and each.tokens is not None):
        if spec.fresh:
            raise UserError(
                f"{where}: contains tokens, but {spec.name} has no tokenizer; choose the model they are for"
            )
        wrong = tokens[(tokens < 0) | (tokens >= spec.vocab)]
        if len(wrong):
            raise UserError(
                f"{where}: token {int(wrong[0]):,}, but {spec.name} has a vocabulary of {spec.vocab:,}; "
                "choose the model they are for"
            )


def _items(data_sets: Sequence[Reader], masks: RowMasks) -> Iterator[Item]:
    """Yield the selected rows of all data sets; malformed rows too, because they are counted."""
    for set_id, (reader, mask) in enumerate(zip(data_sets, masks, strict=True)):
        for index, (number, samples) in enumerate(reader.rows()):
            if isinstance(samples, str):
                yield Item(set_id, number, None)
            elif mask is None or mask[index]:
                for sample in samples:
                    yield Item(set_id, number, sample, reader.source.where)


def _tokenizer_of(spec: ModelSpec, copy: Path) -> tokenizer.Tokenizer:
    """The tokenizer of a model, from a copy of its files; all its ids have a row in the embedding."""
    directory = local_directory(spec, weights=False)
    tokenizer.copy_files(directory, copy)
    backend = tokenizer.Tokenizer.load(copy, directory)
    rows = spec.vocab if spec.path is None else min(spec.vocab, embedding_rows(spec.path) or spec.vocab)
    if backend.size > rows:
        raise UserError(
            f"--model {spec.name}: its tokenizer has {backend.size:,} tokens, but its embedding {rows:,} rows; "
            "use the tokenizer of this model"
        )
    return backend


def _in_corpus(
    backend: tokenizer.Tokenizer | None, spec: ModelSpec, data_sets: Sequence[Reader], masks: RowMasks, build: Path
) -> tokenizer.Tokenizer:
    """Train a tokenizer if the model has none, and add a chat template if it is needed and missing."""
    directory = build / "tokenizer"
    if backend is None and not (directory / "tokenizer.json").exists():
        texts = (item.content.text for item in _items(data_sets, masks) if isinstance(item.content, Example | Raw))
        tokenizer.train_bpe(texts, spec.vocab, directory, spec.positions)
    backend = backend or tokenizer.Tokenizer.load(directory)
    if not any(reader.template.is_chat for reader in data_sets):
        return backend
    if backend.backend.chat_template:
        try:
            source_of(backend.backend)
        except UserError as error:
            raise UserError(f"--model {spec.name}: its chat {error}") from None
    else:
        print(f"the tokenizer of {spec.name} has no chat template; using configs/templates/{templates.CHAT_FILE.name}")
        (directory / "chat_template.jinja").write_text(
            templates.CHAT_FILE.read_text(encoding="utf-8"), encoding="utf-8"
        )
        backend = tokenizer.Tokenizer.load(directory)
    return backend


def _write(build: Path, remaining: Iterator[Item], tokenized: Callable[[Sequence[Item]], Shard], items: int) -> None:
    """Tokenize and write shard by shard, on all cores if that pays, and show how far it is."""
    chunks = iter(lambda: list(itertools.islice(remaining, ROWS_PER_SHARD)), [])
    workers = cores() if items >= PARALLEL else 1
    with progress("tokenizing", items) as show:
        for n in write_chunks(build, chunks, partial(_write_shard, tokenized), workers, _length):
            show(min(items, n * ROWS_PER_SHARD))


def _write_shard(tokenized: Callable[[Sequence[Item]], Shard], path: Path, chunk: Sequence[Item]) -> None:
    write_shard(path, tokenized(chunk))


def _length(chunk: Sequence[Item]) -> int:
    """Number of characters, or tokens, of the documents."""
    return sum(_size(item.content) for item in chunk)


def _size(content: Example | Raw | None) -> int:
    if isinstance(content, Raw):
        return len(content.text if content.tokens is None else content.tokens)
    return len(content.document) if content else 0
