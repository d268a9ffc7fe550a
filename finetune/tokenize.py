"""Samples out of texts: tokens, the mask of what carries loss, and what is cut or left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeGuard

from wellread.config import DataConfig
from wellread.corpus import holdout
from wellread.corpus.shards import Sample, Shard
from wellread.corpus.tokenizer import Tokenizer
from wellread.data.rows.instruct import Example
from wellread.data.sources.raw import Raw
from wellread.errors import UserError

Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Item:
    """What becomes a sample, or several windows of raw text; `found` is None for a broken row."""

    set_id: int
    row: int
    found: Example | Raw | None
    where: str = ""
    """Its file or hub set, for errors."""


def tokenize(stretch: Sequence[Item], backend: Tokenizer, config: DataConfig) -> Shard:
    """Turn items into samples, in their order.

    A template's sample is prompt, response and end of sequence, turn after turn; loss on responses and ends. A sample
    longer than ``--seq_len`` loses its end (counted as ``response_cut``). One without response, or whose prompt fills
    the window, has nothing to learn from: left out and counted.

    Raises
    ------
    UserError
        When more chats than ``--max_bad_rows`` have no place in the chat template.
    """
    shard = Shard([], Counter())
    kept = [item for item in stretch if _usable(item, shard.counts)]
    texts = iter(_templated([found for item in kept if _is_templated(found := item.found)], backend))
    documents = iter(_documents([item.found for item in kept if isinstance(item.found, Raw)], backend))
    for item in kept:
        if isinstance(item.found, Raw):
            _add_windows(shard, item, next(documents), config)
        elif _is_templated(item.found):
            _add(shard, item, *next(texts), config)
        elif isinstance(item.found, Example):
            _add_chat(shard, item, item.found, backend, config)
    return shard


def _usable(item: Item, counts: Counter[str]) -> bool:
    found = item.found
    if found is None:
        counts["dropped_broken"] += 1
        return False
    if isinstance(found, Raw):
        if found.tokens is None and found.text.strip():
            return True
        if found.tokens is not None and len(found.tokens) > 1:
            return True
        counts["dropped_empty_document"] += 1
        return False
    if not any(response for _, response in found.turns):
        counts["dropped_empty_response"] += 1
        return False
    if found.prefixed:
        counts["prompt_prefix_taken_off"] += 1
    return True


def _is_templated(found: Example | Raw | None) -> TypeGuard[Example]:
    return isinstance(found, Example) and not found.chat


def _templated(examples: Sequence[Example], backend: Tokenizer) -> list[tuple[list[int], Spans]]:
    """Tokens and scored ranges of each example; the tokenizer is asked for all first prompts, and for all the rest."""
    if not examples:
        return []
    openings = backend.prompts([found.turns[0][0] for found in examples])
    rest = iter(backend.continuations([text for found in examples for text in [*chain(*found.turns)][1:]]))
    return [_joined(found, opening, rest, backend.eos) for found, opening in zip(examples, openings, strict=True)]


def _joined(found: Example, tokens: list[int], rest: Iterator[list[int]], eos: int) -> tuple[list[int], Spans]:
    """One example's tokens: the opening, then what follows it."""
    spans = Spans()
    for i, (_, response) in enumerate(found.turns):
        if i:
            tokens += next(rest)
        start = len(tokens)
        tokens += next(rest)
        if response:  # an answer that is not there is no example of an end
            tokens.append(eos)
            spans.append((max(1, start), len(tokens)))
    return tokens, spans


def _add_chat(shard: Shard, item: Item, found: Example, backend: Tokenizer, config: DataConfig) -> None:
    try:
        tokens, spans = backend.chat(found.system, found.turns)
    except UserError as error:
        shard.counts["dropped_no_place_in_chat_template"] += 1
        if shard.counts["dropped_no_place_in_chat_template"] > config.max_bad_rows:
            raise UserError(
                f"{item.where} row {item.row}: its chat {error}; mend it, or pass over some with --max_bad_rows"
            ) from None
        return
    _add(shard, item, tokens, spans, config)


def _add(shard: Shard, item: Item, tokens: list[int], spans: Spans, config: DataConfig) -> None:
    """Cut a sample to the window, seal it or not, and keep it."""
    found, seq_len = item.found, config.seq_len or 0
    assert isinstance(found, Example)
    if len(tokens) > seq_len:
        tokens, spans = tokens[:seq_len], [(start, min(stop, seq_len)) for start, stop in spans if start < seq_len]
        if not spans:
            shard.counts["dropped_prompt_fills_window"] += 1
            return
        shard.counts["response_cut"] += 1
    if config.loss_on == "all":
        spans = [(1, len(tokens))]
    spans = [(start, stop) for start, stop in spans if start < stop]
    if not spans:
        shard.counts["dropped_nothing_scored"] += 1
        return
    shard.samples.append(_sample(item, found, tokens, spans, holdout.document_id(found.document), config))


def _documents(documents: Sequence[Raw], backend: Tokenizer) -> list[list[int]]:
    """Tokens of each document: with beginning and end from its text, as they are from a Megatron file."""
    encoded = iter(backend.prompts([found.text for found in documents if found.tokens is None]))
    return [
        [*next(encoded), backend.eos] if found.tokens is None else [int(token) for token in found.tokens]
        for found in documents
    ]


def _add_windows(shard: Shard, item: Item, tokens: list[int], config: DataConfig) -> None:
    """Cut a document into windows that share one token, so that each token but the first is scored once."""
    found, seq_len = item.found, config.seq_len or 0
    assert isinstance(found, Raw)
    document = holdout.document_id(found.document)
    for start in range(0, len(tokens) - 1, seq_len - 1):
        window = tokens[start : start + seq_len]
        shard.samples.append(_sample(item, found, window, [(1, len(window))], document, config))


def _sample(
    item: Item, found: Example | Raw, tokens: list[int], spans: Spans, document: int, config: DataConfig
) -> Sample:
    return Sample(
        tokens=tokens,
        spans=spans,
        document=document,
        sealed=holdout.is_sealed(document, config.holdout, config.holdout_seed),
        set_id=item.set_id,
        row=item.row,
        category=found.category,
        author=found.author,
    )
