"""Compile the corpus of a pretraining: documents -> tokens -> windows -> sealed, hashed corpus."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pretrain import perplexity
from pretrain.tokenize import Text, Tokenizing, write
from wellread.config import PretrainConfig, TextConfig
from wellread.corpus import sentencepiece, summary, tokenizer
from wellread.corpus.building import building
from wellread.corpus.merge import merge
from wellread.corpus.read import Corpus
from wellread.corpus.sentencepiece import Pieces
from wellread.corpus.shards import shard_path
from wellread.data import documents, text_metrics
from wellread.data.mixture import Mixture
from wellread.data.rows.bad_rows import BadRows
from wellread.data.sources.raw import TEXT
from wellread.data.sources.source import Source
from wellread.errors import UserError
from wellread.models.registry import find
from wellread.processes import die_with
from wellread.recipes.pretrain import Documents
from wellread.recipes.registry import resolve

DOCUMENTS_PER_SHARD = 2000
T = TypeVar("T")


def prepare(config: PretrainConfig) -> Path:
    """Compile the corpus of `config`, or find it compiled; say what it holds; return its directory.

    Raises
    ------
    UserError
        When the documents, the vocabulary, the list of words or the model cannot be used.
    """
    return compile_corpus(resolve(config, find(config.model.name)))


def compile_corpus(config: PretrainConfig) -> Path:
    """Do what `prepare` does, of resolved settings."""
    asked = Documents.of(config, find(config.model.name))
    if config.data.packing == "story":
        _check_separators(asked.source)
    words = tuple(text_metrics.read_words(Path(config.data.word_list).expanduser())) if config.data.word_list else ()
    target = asked.directory
    with building(target) as build:
        if build is None:
            print(f"corpus {target}: already compiled", flush=True)
        else:
            _compile(build, target, asked, words)
    corpus = Corpus.open(target)
    summary.summary(corpus)
    summary.metrics(corpus)
    print(f"corpus: {target}", flush=True)
    return target


def _seq_len(config: TextConfig) -> int:
    """Longest sample, of resolved settings."""
    assert config.seq_len
    return config.seq_len


def _compile(build: Path, target: Path, asked: Documents, words: tuple[str, ...]) -> None:
    config, source, settings = asked.config, asked.source, asked.settings
    found = _look_through(source, config.data)
    model = _model(build, config.data, found)
    taken = Mixture((source,)).chosen([found.usable])[0]
    total = int(found.usable.sum() if taken is None else taken.sum())
    print(f"compiling {total:,} stories of {source.name} into {target}", flush=True)
    how = Tokenizing(
        model=model,
        seq_len=_seq_len(config.data),
        packing=config.data.packing,
        long_stories=config.data.long_stories,
        holdout=config.data.holdout,
        holdout_seed=config.data.holdout_seed,
        metrics=settings["metrics"] is not None,
        words=words,
    )
    _write_shards(build, _texts(source, taken), how, total)
    cut = Pieces(model)
    names = (*text_metrics.NAMES, *([text_metrics.WORD_LIST_RATE] if words else []))
    merge(
        build,
        sets=[source.name],
        vocab_size=cut.size,
        settings=settings,
        metrics=names if how.metrics else (),
        extra={
            "kind": TEXT,
            "packing": config.data.packing,
            "sets": [
                {"name": source.name, "schema": TEXT, "template": TEXT, "rows": found.rows, "taken": total}
                | {"sha256": settings["sets"][0]["content"]}
            ],
            "tokenizer": {
                "size": cut.size,
                "bos": cut.bos,
                "eos": tokenizer.Tokenizer.load(build / "tokenizer").eos,
                "sha256": tokenizer.fingerprint(build / "tokenizer"),
            },
            "metrics": list(names) if how.metrics else [],
            "bad_rows": found.bad.lines,
        },
    )
    if config.data.perplexity:
        perplexity.add(build, config.data.perplexity)


# --- what the source holds -------------------------------------------------------------------------------------------


@dataclass
class _Found:
    """What a look through all documents found."""

    usable: NDArray[np.int64]
    """(rows,) 1 for a document, 0 for a broken row."""
    bad: BadRows
    words: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        return len(self.usable)


def _check_separators(source: Source) -> None:
    for path in documents.unseparated(source):
        raise UserError(
            f"{path}: holds no <|endoftext|>, so its stories cannot be told apart; put one between them, "
            "or choose --packing stream"
        )


def _look_through(source: Source, config: TextConfig) -> _Found:
    """Read every document once: which can be used, and their words where a vocabulary is trained."""
    for path in documents.unseparated(source):
        print(f"{path}: holds no <|endoftext|>, so it is one text, on one side of the seal", file=sys.stderr)
    usable, words, bad = bytearray(), Counter[str](), BadRows(config.max_bad_rows)
    counted = isinstance(documents.vocabulary(config), int)
    for _, found in _shown("reading", documents.read(source), source.generated or source.published_rows):
        usable.append(not isinstance(found, str))
        if isinstance(found, str):
            bad.add(found)
        elif counted:
            sentencepiece.count_words(words, found.text)
    bad.check()
    if not usable:
        raise UserError(f"{source.where}: holds no stories")
    bad.say()
    return _Found(np.frombuffer(usable, dtype=np.uint8).astype(np.int64), bad, words)


def _texts(source: Source, taken: NDArray[np.bool_] | None) -> Iterator[Text]:
    for place, (number, found) in enumerate(documents.read(source)):
        if not isinstance(found, str) and (taken is None or taken[place]):
            yield number, found.text, found.category


def _model(build: Path, config: TextConfig, found: _Found) -> bytes:
    """The SentencePiece model, put into the corpus; trained where none is given.

    It is trained on every document, sealed ones too: then read and sealed texts stay exchangeable.
    """
    directory = build / "tokenizer"
    if not directory.exists():
        vocabulary = documents.vocabulary(config)
        model = sentencepiece.train(found.words, vocabulary) if isinstance(vocabulary, int) else vocabulary
        Pieces(model).save(directory, _seq_len(config))
    found.words.clear()
    return (directory / "tokenizer.model").read_bytes()


# --- shards, in parallel ---------------------------------------------------------------------------------------------


def _write_shards(build: Path, texts: Iterator[Text], how: Tokenizing, total: int) -> None:
    """Write the shards that are not there yet, on all cores; as many stretches as there are cores wait, twice."""
    workers = min(len(os.sched_getaffinity(0)), -(-total // DOCUMENTS_PER_SHARD))
    waiting: deque[Future[None]] = deque()
    stretches = iter(lambda: list(itertools.islice(texts, DOCUMENTS_PER_SHARD)), [])
    with _pool(workers, how) as submit:
        for index, stretch in enumerate(_shown("tokenizing", stretches, -(-total // DOCUMENTS_PER_SHARD))):
            path = shard_path(build, index)
            if not path.exists():
                waiting.append(submit(path, stretch))
            while len(waiting) > 2 * workers:
                waiting.popleft().result()
        for future in waiting:
            future.result()


@contextmanager
def _pool(workers: int, how: Tokenizing) -> Iterator[Callable[[Path, list[Text]], Future[None]]]:
    """Give a function that has a shard written: at once where one worker is enough, else in other processes."""
    if workers <= 1:
        yield lambda path, stretch: _written(path, stretch, how)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (os.getpid(),)) as pool:
        yield lambda path, stretch: pool.submit(write, path, stretch, how)


def _begin(parent: int) -> None:
    """Leave Ctrl-C to the process that waits for this one, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)


def _written(path: Path, stretch: list[Text], how: Tokenizing) -> Future[None]:
    write(path, stretch, how)
    future: Future[None] = Future()
    future.set_result(None)
    return future


def _shown(label: str, items: Iterator[T], total: int | None) -> Iterator[T]:
    """The same items, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(label, total=total)
        for item in items:
            yield item
            bar.advance(task)
