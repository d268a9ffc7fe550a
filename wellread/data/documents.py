"""Documents for pretraining: reading them one by one, their vocabulary, and the settings that identify their corpus."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wellread.config import TextConfig
from wellread.corpus import sentencepiece
from wellread.data import reading
from wellread.data.rows.instruct import SCHEMAS
from wellread.data.rows.unused import Unused
from wellread.data.sources import raw, text
from wellread.data.sources.raw import TEXT, Raw
from wellread.data.sources.source import Source
from wellread.errors import UserError
from wellread.files import sha256_file

VERSION = 2
"""Raise it when the same settings produce a different corpus; existing corpora are then compiled again."""
LISTED = 5
"""Most files that a line names."""
LLAMA2 = "llama2"
SEARCH_PATH = "WELLREAD_MODELS"
"""Environment variable with the directories to search for models."""


def read(source: Source, unused: Unused | None = None) -> Iterator[tuple[int, Raw | str]]:
    """Yield the number of each document, and the document without surrounding whitespace or a line with its error.

    A document without text is malformed. Whitespace before the first or after the last separator of a file is not a
    document.

    Parameters
    ----------
    unused : Unused, optional
        Counts columns of the rows that are not read.

    Raises
    ------
    UserError
        When a file contains tokens or is damaged, or the hub cannot be reached.
    """
    for number, where, content in raw.located(source, keep_empty=True):
        if unused and not isinstance(content, str):
            unused.add_document(number, content.columns, not content.is_full)
        if isinstance(content, str):
            yield number, f"{where}: {content}"
        elif content.tokens is not None:
            raise UserError(
                f"{source.where}: contains tokens, but stories must be text; choose a .txt, .json or .parquet file"
            )
        elif body := content.text.strip():
            yield number, Raw(body, category=content.category)
        else:
            yield number, f"{where}: empty story"


def unseparated(source: Source) -> list[Path]:
    """The text file without a separator between documents, if it is the only one: it is read as a single text."""
    files = _text_files(source)
    return [path for path in files if not text.is_separated(path)] if len(files) == 1 else []


def split_files(source: Source) -> str:
    """One line about a folder of text files, each of which is a document; empty if no file is split at separators."""
    files = _text_files(source)
    separated = [path for path in files if text.is_separated(path)] if len(files) > 1 else []
    if not separated:
        return ""
    names = ", ".join(path.name for path in separated[:LISTED]) + ", …" * (len(separated) > LISTED)
    return (
        f"{source.where}: {len(separated)} of {len(files)} text files contain {text.SEPARATOR} and are split there "
        f"into several documents ({names}); each of the others is one document"
    )


def _text_files(source: Source) -> list[Path]:
    return [path for path in source.paths if ".txt" in path.suffixes[-2:]]


def vocabulary(config: TextConfig) -> int | bytes:
    """Resolve ``--vocab``: the size of a vocabulary to train, or the content of a SentencePiece model file.

    Raises
    ------
    UserError
        When it is neither of them, or the file cannot be read.
    """
    name = config.vocab or ""
    if name.isdecimal():
        return sentencepiece.check_size(int(name))
    if name == LLAMA2 and not Path(name).exists():
        folders = [folder for folder in os.environ.get(SEARCH_PATH, "").split(os.pathsep) if folder]
        models = [path for folder in folders if (path := Path(folder) / LLAMA2 / "tokenizer.model").is_file()]
        if not models:
            raise UserError(
                f"--vocab {LLAMA2}: no {LLAMA2}/tokenizer.model in the directories of {SEARCH_PATH}; "
                "copy Llama 2's tokenizer to one of them, or pass the path of the .model file"
            )
        return sentencepiece.load(models[0])
    if not Path(name).expanduser().is_file():
        raise UserError(f"--vocab {name}: not a size, {LLAMA2} or a file; e.g. 4096 or tok4096.model")
    return sentencepiece.load(Path(name).expanduser())


def words(config: TextConfig) -> int:
    """Size of the vocabulary that ``--vocab`` names."""
    vocab = vocabulary(config)
    return vocab if isinstance(vocab, int) else sentencepiece.Pieces(vocab).size


BYTES_PER_TOKEN = 3.8
TOKENS_PER_DOCUMENT = 220
"""Both measured on TinyStories with a vocabulary of 4,096 tokens."""
TOKENS_PER_GENERATED = 150
"""Measured on stories that are generated here, with the same size of the vocabulary."""


def estimate(config: TextConfig, source: Source) -> int:
    """Estimate the number of samples before the documents are read.

    Raises
    ------
    UserError
        When the size of a hub data set is not known before it is downloaded.
    """
    if config.packing == "story":
        return min(raw.count(source), source.limit or sys.maxsize)
    if source.paths and not source.limit:
        tokens = sum(path.stat().st_size for path in source.paths) / BYTES_PER_TOKEN
    else:
        each = TOKENS_PER_GENERATED if source.generated else TOKENS_PER_DOCUMENT
        tokens = each * (source.limit or raw.count(source))
    return max(1, round(tokens / ((config.seq_len or 2) - 1)))


def corpus_settings(config: TextConfig, source: Source, scorer: str | None = None) -> dict[str, Any]:
    """All settings that determine the content of a corpus of documents; their hash identifies the corpus.

    Parameters
    ----------
    scorer : str, optional
        Fingerprint of the model given with ``--perplexity``.
    """
    vocab = vocabulary(config)
    tokenizer = f"spm-{vocab}" if isinstance(vocab, int) else hashlib.sha256(vocab).hexdigest()
    measured = config.metrics or config.word_list or scorer
    words = sha256_file(Path(config.word_list).expanduser()) if config.word_list else None
    return {
        "version": VERSION,
        "sets": [
            {"name": source.name, "content": raw.fingerprint(source), "schema": TEXT, "columns": source.columns}
            | {"limit": source.limit}
            | reading.settings(source, SCHEMAS[TEXT])
        ],
        "tokenizer": tokenizer,
        "seq_len": config.seq_len,
        "packing": config.packing,
        "long_stories": config.long_stories if config.packing == "story" else None,
        "holdout": config.holdout,
        "holdout_seed": config.holdout_seed,
        "max_bad_rows": config.max_bad_rows,
        "metrics": {"word_list": words, "perplexity": scorer} if measured else None,
    }
