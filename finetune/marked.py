"""Rows of a data set with marks: the forms that coins pick, in raw text or in the responses that carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wellread.config import DataConfig
from wellread.corpus import holdout
from wellread.corpus.chat import messages_of
from wellread.corpus.marks import Mark
from wellread.corpus.tokenizer import Tokenizer
from wellread.data.marks import Marker
from wellread.data.rows.instruct import Example
from wellread.data.sources.raw import Raw
from wellread.errors import UserError


@dataclass(frozen=True)
class Item:
    """Input of one sample, or of several windows of raw text; `content` is None for a malformed row."""

    set_id: int
    row: int
    content: Example | Raw | None
    where: str = ""
    """Its file or hub data set, for errors."""
    document: int = 0
    """Id of its document, by the original text."""
    marks: Sequence[Mark] = ()
    """Places of its text at which a form was picked."""


def with_marks(item: Item, backend: Tokenizer, config: DataConfig, marker: Marker | None) -> Item:
    """The item with its document, and with marks in raw text or in the responses that carry loss.

    Raises
    ------
    UserError
        When marks are requested for a document of tokens.
    """
    content = item.content
    assert content is not None
    document = holdout.document_id(content.document)
    if marker is None:
        return replace(item, document=document)
    if isinstance(content, Raw):
        if content.tokens is not None:
            raise UserError(f"--marks: {item.where} contains tokens, but marks need text; leave it out")
        (text,), marks = marker.mark([(content.text, True)], document)
        return replace(item, document=document, content=replace(content, text=text), marks=marks)
    marked = _chat if content.chat else _turns
    turns, marks = marked(content, document, backend, config, marker)
    return replace(item, document=document, content=replace(content, turns=tuple(turns)), marks=marks)


def _turns(
    content: Example, document: int, backend: Tokenizer, config: DataConfig, marker: Marker
) -> tuple[list[tuple[str, str]], list[Mark]]:
    """Turns with marks, which become tokens one by one."""
    parts = [
        part
        for i, (prompt, response) in enumerate(content.turns)
        for part in ((prompt, False), (response, i not in content.unscored))
    ]
    texts, marks = marker.mark(parts, document, "turns")
    return list(zip(texts[::2], texts[1::2], strict=True)), marks


def _chat(
    content: Example, document: int, backend: Tokenizer, config: DataConfig, marker: Marker
) -> tuple[list[tuple[str, str]], list[Mark]]:
    """Turns with marks, whose places are those of the rendered chat."""
    turns = list(content.turns)
    try:
        messages = messages_of(content.system, turns, content.messages)
        text, ranges = backend.answers(messages, config.template_date)
    except UserError:  # this chat is refused, or left out and counted, when it becomes tokens
        return turns, []
    places = [(i, bounds) for i, bounds in enumerate(ranges) if bounds]
    parts, end = list[tuple[str, bool]](), 0
    for i, (start, stop) in places:
        parts += [(text[end:start], False), (text[start:stop], i not in content.unscored)]
        end = stop
    texts, marks = marker.mark(parts, document, "chat")
    for (i, _), answer in zip(places, texts[1::2], strict=True):
        prompt, response = turns[i]
        before, _, after = response.partition(response.strip())
        turns[i] = prompt, before + answer + after
    return turns, marks


def windows_of(item: Item, first: int, backend: Tokenizer, config: DataConfig) -> list[int]:
    """Sample in which each mark of a document begins; its first sample is `first`."""
    if not item.marks:
        return []
    assert isinstance(item.content, Raw)
    assert config.seq_len
    (starts,) = backend.starts([item.content.text])
    begins = len(backend.begins)
    places = np.searchsorted(starts[begins:], [mark.at for mark in item.marks], side="right") - 1 + begins
    return [first + max(0, int(place) - 1) // (config.seq_len - 1) for place in places]
