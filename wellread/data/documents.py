"""The documents of a pretraining: read one by one, cut by one vocabulary, and what the corpus that they make is of."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wellread.config import TextConfig
from wellread.corpus import sentencepiece
from wellread.data.sources import raw, text
from wellread.data.sources.raw import TEXT, Raw
from wellread.data.sources.source import Source
from wellread.errors import UserError
from wellread.files import sha256_file

VERSION = 1
"""Raise it when equal settings begin to give another corpus: then corpora are compiled anew."""
LLAMA2 = "llama2"
SEARCH_PATH = "WELLREAD_MODELS"
"""Variable that names directories of models."""


def read(source: Source) -> Iterator[tuple[int, Raw | str]]:
    """Yield the number of each document and the document, stripped, or a line that says where it is broken.

    A document without text is broken. Blank text before the first separator of a file, or after its last, is none.

    Raises
    ------
    UserError
        When a file holds tokens, is damaged, or the hub cannot be reached.
    """
    for number, where, found in raw.located(source, blank=True):
        if isinstance(found, str):
            yield number, f"{where}: {found}"
        elif found.tokens is not None:
            raise UserError(
                f"{source.where}: holds tokens, and stories are text; choose a .txt, .json or .parquet file"
            )
        elif body := found.text.strip():
            yield number, Raw(body, category=found.category)
        else:
            yield number, f"{where}: empty story"


def unseparated(source: Source) -> list[Path]:
    """Text files that have no separator between documents: each of them is one text."""
    files = [path for path in source.paths if ".txt" in path.suffixes[-2:]]
    return [path for path in files if not text.is_separated(path)]


def vocabulary(config: TextConfig) -> int | bytes:
    """What ``--vocab`` names: the size of a vocabulary to be trained, or a SentencePiece model.

    Raises
    ------
    UserError
        When it is neither, or cannot be read.
    """
    name = config.vocab or ""
    if name.isdecimal():
        return sentencepiece.check_size(int(name))
    if name == LLAMA2 and not Path(name).exists():
        folders = [folder for folder in os.environ.get(SEARCH_PATH, "").split(os.pathsep) if folder]
        found = [path for folder in folders if (path := Path(folder) / LLAMA2 / "tokenizer.model").is_file()]
        if not found:
            raise UserError(
                f"--vocab {LLAMA2}: no {LLAMA2}/tokenizer.model in the directories of {SEARCH_PATH}; "
                "put Llama 2's there, or name the .model file itself"
            )
        return sentencepiece.load(found[0])
    if not Path(name).expanduser().is_file():
        raise UserError(f"--vocab {name}: neither a size, nor {LLAMA2}, nor a file; e.g. 4096 or tok4096.model")
    return sentencepiece.load(Path(name).expanduser())


def words(config: TextConfig) -> int:
    """Size of the vocabulary that ``--vocab`` names."""
    found = vocabulary(config)
    return found if isinstance(found, int) else sentencepiece.Pieces(found).size


BYTES_PER_TOKEN = 3.8
TOKENS_PER_DOCUMENT = 220
"""Both as in TinyStories with 4,096 pieces."""


def estimate(config: TextConfig, source: Source) -> int:
    """Samples that the documents will make, roughly, before they are read.

    Raises
    ------
    UserError
        When the size of a hub set is not known before it is downloaded.
    """
    if config.packing == "story":
        return min(raw.count(source), source.limit or sys.maxsize)
    if source.paths and not source.limit:
        tokens = sum(path.stat().st_size for path in source.paths) / BYTES_PER_TOKEN
    else:
        tokens = TOKENS_PER_DOCUMENT * (source.limit or raw.count(source))
    return max(1, round(tokens / ((config.seq_len or 2) - 1)))


def corpus_settings(config: TextConfig, source: Source, scorer: str | None = None) -> dict[str, Any]:
    """Everything that decides what a corpus of documents holds; its key names the corpus.

    Parameters
    ----------
    scorer : str, optional
        Fingerprint of the model of ``--perplexity``.
    """
    found = vocabulary(config)
    tokenizer = f"spm-{found}" if isinstance(found, int) else hashlib.sha256(found).hexdigest()
    measured = config.metrics or config.word_list or scorer
    words = sha256_file(Path(config.word_list).expanduser()) if config.word_list else None
    return {
        "version": VERSION,
        "sets": [
            {"name": source.name, "content": raw.fingerprint(source), "schema": TEXT, "columns": source.columns}
            | {"limit": source.limit}
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
