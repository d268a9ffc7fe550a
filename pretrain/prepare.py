"""Compile the corpus of a pretraining run: documents -> tokens -> windows -> sealed, hashed corpus."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pretrain import perplexity
from pretrain.tokenize import Text, Tokenizing, measured, write
from wellread.config import PretrainConfig, TextConfig
from wellread.corpus import canaries as registered
from wellread.corpus import sentencepiece, summary, tokenizer
from wellread.corpus.building import building
from wellread.corpus.merge import merge
from wellread.corpus.read import Corpus
from wellread.corpus.sentencepiece import Pieces
from wellread.corpus.workers import cores, write_chunks
from wellread.data import canaries, documents, influence, marks, text_metrics
from wellread.data.marks import Marker
from wellread.data.mixture import Mixture
from wellread.data.rows.bad_rows import BadRows
from wellread.data.rows.unused import Unused
from wellread.data.sources.raw import TEXT
from wellread.data.sources.source import Source
from wellread.errors import UserError
from wellread.models.registry import find
from wellread.recipes.pretrain import Documents
from wellread.recipes.registry import resolve
from wellread.terminal import plural, progress

DOCUMENTS_PER_SHARD = 2000
LISTED = 10
"""Most characters that a line lists."""
T = TypeVar("T")


def prepare(config: PretrainConfig) -> Path:
    """Compile the corpus of `config` unless it exists, print a summary, and return its directory.

    Raises
    ------
    UserError
        When the documents, the vocabulary, the word list or the model cannot be used.
    """
    return compile_corpus(resolve(config, find(config.model.name)))


def compile_corpus(config: PretrainConfig) -> Path:
    """Like `prepare`, but `config` must be resolved."""
    inputs = Documents.of(config, find(config.model.name))
    if config.data.packing == "story":
        _check_separators(inputs.source)
    words = tuple(text_metrics.read_words(Path(config.data.word_list))) if config.data.word_list else ()
    target = inputs.directory
    with building(target) as build:
        if build is None:
            print(f"corpus {target}: already compiled", flush=True)
        else:
            _compile(build, target, inputs, words)
    if config.data.influence:
        influence.add(target, Path(config.data.influence))
    corpus = Corpus.open(target)
    summary.summary(corpus)
    summary.metrics(corpus)
    print(f"corpus: {target}", flush=True)
    return target


def _seq_len(config: TextConfig) -> int:
    """Maximum length of a sample; `config` must be resolved."""
    assert config.seq_len
    return config.seq_len


def _compile(build: Path, target: Path, inputs: Documents, words: tuple[str, ...]) -> None:
    config, source, settings = inputs.config, inputs.source, inputs.settings
    if config.data.perplexity:
        perplexity.check(config.data.perplexity, _seq_len(config.data))
    canaries.refuse_name(config, [source.name])
    scan = _scan(source, config.data)
    model = _model(build, config.data, scan)
    mask = Mixture((source,)).choose([scan.usable])[0]
    total = int(scan.usable.sum() if mask is None else mask.sum())
    print(f"compiling {total:,} stories of {source.name}{source.file_count} into {target}", flush=True)
    tokenizing = Tokenizing(
        model=model,
        seq_len=_seq_len(config.data),
        packing=config.data.packing,
        long_stories=config.data.long_stories,
        holdout=config.data.holdout,
        holdout_seed=config.data.holdout_seed,
        metrics=settings["metrics"] is not None,
        words=words,
        marker=Marker.of(settings.get("marks"), _seq_len(config.data)),
    )
    pieces = Pieces(model)
    if tokenizing.marker:
        tokenizing.marker.check(partial(_complete, pieces))
    _write_shards(build, _texts(source, mask), tokenizing, total)
    backend = tokenizer.Tokenizer.load(build / "tokenizer")
    measure = partial(measured, pieces=pieces, words=words) if tokenizing.metrics else None
    extra = canaries.add(build, config, 1, backend, partial(_complete, pieces), measure)
    marked = marks.add(build, settings.get("marks"), config.data.marks)
    names = (*text_metrics.NAMES, *([text_metrics.WORD_LIST_RATE] if words else []))
    merge(
        build,
        sets=[source.name, *([registered.SET] if extra else [])],
        vocab_size=pieces.size,
        settings=settings,
        metrics=names if tokenizing.metrics else (),
        extra={
            "kind": TEXT,
            "packing": config.data.packing,
            "sets": [
                {"name": source.name, "schema": TEXT, "template": TEXT, "rows": scan.rows, "taken": total}
                | {"usable": int(scan.usable.sum())}
                | ({"ignored": scan.unused.ignored} if scan.unused.ignored else {})
                | {"sha256": settings["sets"][0]["content"]}
            ],
            "tokenizer": {
                "size": pieces.size,
                "bos": pieces.bos,
                "eos": backend.eos,
                "sha256": tokenizer.fingerprint(build / "tokenizer"),
            },
            "metrics": list(names) if tokenizing.metrics else [],
            "bad_rows": scan.bad.lines,
            **extra,
            **marked,
        },
    )
    if config.data.perplexity:
        perplexity.add(build, config.data.perplexity)


def _complete(pieces: Pieces, texts: list[str]) -> list[list[int]]:
    """Tokens of texts with their beginning and end, as stories have them."""
    return [[pieces.bos, *pieces.encode(text).tolist(), pieces.bos] for text in texts]


# --- checking the source ---------------------------------------------------------------------------------------------


@dataclass
class _Scan:
    """Result of reading all documents once."""

    usable: NDArray[np.int64]
    """(rows,) 1 for a document, 0 for a malformed row."""
    bad: BadRows
    unused: Unused
    words: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        return len(self.usable)


def _check_separators(source: Source) -> None:
    for path in documents.unseparated(source):
        raise UserError(
            f"{path}: contains no <|endoftext|>, so its stories cannot be separated; insert one between stories, "
            "or choose --packing stream"
        )


def _scan(source: Source, config: TextConfig) -> _Scan:
    """Read all documents once: find malformed ones, and count words if a vocabulary is trained."""
    for path in documents.unseparated(source):
        print(
            f"{path}: contains no <|endoftext|>, so it is a single document, either sealed or trainable",
            file=sys.stderr,
        )
    if split := documents.split_files(source):
        print(split, file=sys.stderr)
    usable, words, bad = bytearray(), Counter[str](), BadRows(config.max_bad_rows)
    unused = Unused((), source.ignore)
    counted = isinstance(documents.vocabulary(config), int)
    for _, document in _with_progress(
        "reading", documents.read(source, unused), source.generated or source.published_rows
    ):
        usable.append(not isinstance(document, str))
        if isinstance(document, str):
            bad.add(document)
        elif counted:
            sentencepiece.count_words(words, document.text)
    unused.check(source.where)
    bad.check()
    if not usable:
        raise UserError(f"{source.where}: contains no stories")
    bad.say()
    return _Scan(np.frombuffer(usable, dtype=np.uint8).astype(np.int64), bad, unused, words)


def _texts(source: Source, mask: NDArray[np.bool_] | None) -> Iterator[Text]:
    for index, (number, document) in enumerate(documents.read(source)):
        if not isinstance(document, str) and (mask is None or mask[index]):
            yield number, document.text, document.category


def _model(build: Path, config: TextConfig, scan: _Scan) -> bytes:
    """Copy the SentencePiece model into the corpus, or train it; return its content.

    It is trained on all documents, including sealed ones, so that read and sealed texts stay exchangeable.
    """
    directory = build / "tokenizer"
    if not directory.exists():
        vocabulary = documents.vocabulary(config)
        model = sentencepiece.train(scan.words, vocabulary) if isinstance(vocabulary, int) else vocabulary
        if missing := sentencepiece.without_piece(scan.words, model):
            print(
                f"vocabulary: {plural(len(missing), 'character')} of the text have no piece and are encoded as bytes: "
                f"{', '.join(map(ascii, missing[:LISTED]))}{', …' * (len(missing) > LISTED)}",
                file=sys.stderr,
            )
        Pieces(model).save(directory, _seq_len(config))
    scan.words.clear()
    return (directory / "tokenizer.model").read_bytes()


# --- shards ----------------------------------------------------------------------------------------------------------


def _write_shards(build: Path, texts: Iterator[Text], tokenizing: Tokenizing, total: int) -> None:
    """Write the missing shards on all cores."""
    count = -(-total // DOCUMENTS_PER_SHARD)
    chunks = iter(lambda: list(itertools.islice(texts, DOCUMENTS_PER_SHARD)), [])
    written = write_chunks(
        build,
        chunks,
        partial(write, settings=tokenizing),
        min(cores(), count),
        lambda chunk: sum(len(t) for _, t, _ in chunk),
    )
    for _ in _with_progress("tokenizing", written, count):
        pass


def _with_progress(label: str, items: Iterator[T], total: int | None) -> Iterator[T]:
    """Yield the same items, and show how far it is."""
    with progress(label, total) as show:
        for number, item in enumerate(items, 1):
            yield item
            show(number)
