"""Raw text as a data set: documents without prompt and response; all their tokens carry loss."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.data.sources import generated, tables, text
from wellread.data.sources.megatron import Megatron
from wellread.data.sources.source import Source
from wellread.errors import UserError

TEXT = "text"
"""Name of the data set and of its schema."""
PLAIN_VERSION = 2
"""Raise it when the same .txt has other documents."""


@dataclass(frozen=True)
class Raw:
    """One document: its text, or its tokens if it comes from a Megatron file."""

    text: str = ""
    tokens: NDArray[Any] | None = None
    category: str = ""
    """Subset of The Pile, or author of the story, if the file contains it."""
    columns: dict[str, bool] = field(default_factory=dict, compare=False)
    """Other columns of its row with content, which is not read, and whether each contains text."""

    @property
    def is_full(self) -> bool:
        """Whether it has text or tokens."""
        return self.tokens is not None or bool(self.text.strip())

    @property
    def author(self) -> str:
        """Empty: unknown for raw text."""
        return ""

    @property
    def document(self) -> str:
        """Text that identifies the source document."""
        if self.tokens is None:
            return self.text
        return hashlib.sha256(np.ascontiguousarray(self.tokens, dtype="<u4").data).hexdigest()


def is_megatron(path: Path) -> bool:
    """Whether `path` is the prefix of a pair of Megatron files, or one of the two."""
    return Path(f"{_prefix(path)}.idx").is_file()


def _prefix(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (".idx", ".bin") else path


def documents(source: Source) -> Iterator[tuple[int, Sequence[Raw] | str]]:
    """Yield the number of each document, and the document or a line with its location and error."""
    for number, where, document in located(source):
        yield number, f"{where}: {document}" if isinstance(document, str) else [document]


def located(source: Source, *, keep_empty: bool = False) -> Iterator[tuple[int, str, Raw | str]]:
    """Yield the number of each document, its location (file and row), and the document or its error.

    Parameters
    ----------
    keep_empty : bool
        Whether to yield empty documents of text files too.
    """
    if not source.paths:
        numbered = _of_grammar(source.generated) if source.generated else _of_hub(source)
        for number, document in numbered:
            yield number, f"{source.where} row {number}", document
    before = last = 0
    for path in source.paths:
        for number, document in _of_file(path, source, keep_empty):
            last = before + number
            yield last, f"{path} row {number}", document
        before = last


def _column(source: Source) -> str:
    return source.columns.get("text", TEXT)


def _of_grammar(count: int) -> Iterator[tuple[int, Raw]]:
    return ((i + 1, Raw(generated.story(i))) for i in range(count))


def _of_hub(source: Source) -> Iterator[tuple[int, Raw | str]]:
    return (_numbered(document) for document in text.of_rows(tables.hub_rows(source), _column(source)))


def _of_file(path: Path, source: Source, keep_empty: bool) -> Iterator[tuple[int, Raw | str]]:
    if is_megatron(path):
        samples = Megatron.open(_prefix(path))
        for i in range(samples.n):
            yield i + 1, Raw(tokens=samples.tokens(i))
        return
    is_plain = text.kind(path) == text.PLAIN
    for document in text.documents(path, text=_column(source), keep_empty=keep_empty, limit=source.max_document):
        if is_plain and document.text:  # line feeds next to separators belong to the file
            yield _numbered(replace(document, text=document.text.strip("\r\n")))
        else:
            yield _numbered(document)


def _numbered(document: text.Document) -> tuple[int, Raw | str]:
    if document.text is None:
        return document.number, f"{document.error}"
    meta = document.meta
    author = meta.get("source") if "instruction" in meta else None  # in TinyStories' archive: the model that wrote it
    category = str(meta.get("pile_set_name") or author or "")
    if not category.isascii() and re.search("[\ud800-\udfff]", category):  # JSON can contain it, UTF-8 cannot
        return document.number, "its subset contains half of a surrogate pair (an incomplete character)"
    used = {"pile_set_name"} | ({"source"} if author else set())
    unread = {name: is_text for name, is_text in document.columns.items() if name.removeprefix("meta.") not in used}
    return document.number, Raw(document.text, category=category, columns=unread)


def count(source: Source) -> int:
    """Number of documents; for a data set of the hub, the published number.

    Raises
    ------
    UserError
        When the size of a hub data set is not known before it is downloaded.
    """
    if not source.paths:
        size = source.generated or source.published_rows
        if size is None:
            raise UserError(f"--data {source.name}: its size is not known before it is downloaded")
        return size
    sizes = (Megatron.open(_prefix(path)).n if is_megatron(path) else None for path in source.paths)
    return sum(
        sum(1 for _ in text.documents(path, text=_column(source), limit=source.max_document)) if size is None else size
        for path, size in zip(source.paths, sizes, strict=True)
    )


def fingerprint(source: Source) -> str:
    """Hash of the files' content, or version and number of the synthetic stories."""
    if source.generated:
        return f"grammar-{generated.VERSION}:{source.generated}"
    if not any(is_megatron(path) for path in source.paths):
        return tables.fingerprint(source)
    return hashlib.sha256("".join(Megatron.open(_prefix(path)).hash for path in source.paths).encode()).hexdigest()
