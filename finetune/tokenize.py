"""From texts to samples: tokens, loss mask, truncation, and counts of dropped samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeGuard

from finetune.marked import Item, windows_of, with_marks
from wellread.config import DataConfig
from wellread.corpus import holdout
from wellread.corpus.chat import messages_of
from wellread.corpus.shards import Sample, Shard
from wellread.corpus.tokenizer import Tokenizer
from wellread.data.marks import Marker
from wellread.data.rows.instruct import Example
from wellread.data.sources.raw import Raw
from wellread.errors import UserError

Spans = list[tuple[int, int]]
UNFIT = "dropped_no_place_in_chat_template"
"""Key in the counts of a corpus: chats that do not fit the chat template."""


def tokenize(items: Sequence[Item], backend: Tokenizer, config: DataConfig, marker: Marker | None = None) -> Shard:
    """Turn items into samples, in their order.

    With a template, a sample consists of prompt, response and EOS token for each turn; responses and EOS tokens carry
    loss. A sample longer than ``--seq_len`` is truncated at its end (counted as ``response_cut``). A sample without
    response, or with a prompt that fills ``--seq_len``, has no tokens with loss; it is dropped and counted.

    Raises
    ------
    UserError
        When more than ``--max_bad_rows`` chats of these items do not fit the chat template; `refuse_unfit` checks all.
    """
    shard = Shard([], Counter())
    usable = [with_marks(item, backend, config, marker) for item in items if _usable(item, shard.counts)]
    texts = iter(_templated([example for item in usable if _is_templated(example := item.content)], backend))
    documents = iter(_documents([item.content for item in usable if isinstance(item.content, Raw)], backend))
    for item in usable if not backend.represents_all else ():
        _count_losses(shard, item, backend)
    for item in usable:
        before = len(shard.samples)
        if isinstance(item.content, Raw):
            _add_windows(shard, item, next(documents), config)
            shard.marks += zip(windows_of(item, before, backend, config), item.marks, strict=True)
            continue
        if _is_templated(item.content):
            _add(shard, item, *next(texts), config)
        elif isinstance(item.content, Example):
            _add_chat(shard, item, item.content, backend, config)
        if len(shard.samples) > before:
            shard.marks += [(before, mark) for mark in item.marks]
    return shard


def _usable(item: Item, counts: Counter[str]) -> bool:
    content = item.content
    if content is None:
        counts["dropped_broken"] += 1
        return False
    if isinstance(content, Raw):
        if content.tokens is None and content.text.strip():
            return True
        if content.tokens is not None and len(content.tokens) > 1:
            return True
        counts["dropped_empty_document"] += 1
        return False
    if not any(response for _, response in content.turns):
        counts["dropped_empty_response"] += 1
        return False
    if {*_answered(content)} <= {*content.unscored}:
        counts["dropped_weight_zero"] += 1
        return False
    if content.prefixed:
        counts["prompt_prefix_taken_off"] += 1
    if content.trailing:
        counts["messages_after_last_answer"] += content.trailing
    if content.joined:
        counts["messages_joined"] += content.joined
    if content.unscored:
        counts["answers_with_weight_zero"] += len(content.unscored)
    return True


def _count_losses(shard: Shard, item: Item, backend: Tokenizer) -> None:
    """Count what the tokens of an item do not represent of its text."""
    content = item.content
    if isinstance(content, Example):
        messages = messages_of(content.system, content.turns, content.messages) if content.chat else []
        texts = [message["content"] for message in messages] or [*chain(*content.turns)]
    else:
        texts = [content.text] if content and content.tokens is None else []
    for text in texts:
        for loss in backend.losses(text):
            shard.count(loss.reason, f"{item.where} row {item.row}: {loss.example}", loss.n)


def _is_templated(content: Example | Raw | None) -> TypeGuard[Example]:
    return isinstance(content, Example) and not content.chat


def _templated(examples: Sequence[Example], backend: Tokenizer) -> list[tuple[list[int], Spans]]:
    """Tokens, and ranges of tokens with loss, of each example; two calls of the tokenizer process all texts."""
    if not examples:
        return []
    openings = backend.prompts([example.turns[0][0] for example in examples])
    texts = iter(backend.continuations([text for example in examples for text in [*chain(*example.turns)][1:]]))
    return [_joined(example, opening, texts, backend.eos) for example, opening in zip(examples, openings, strict=True)]


def _joined(example: Example, tokens: list[int], texts: Iterator[list[int]], eos: int) -> tuple[list[int], Spans]:
    """Concatenate the tokens of one example: first prompt, then the following texts."""
    spans = Spans()
    for i, (_, response) in enumerate(example.turns):
        if i:
            tokens += next(texts)
        start = len(tokens)
        tokens += next(texts)
        if response:  # an empty response must not teach the model to stop
            tokens.append(eos)
            spans.append((max(1, start), len(tokens)))
    return tokens, spans


def _add_chat(shard: Shard, item: Item, example: Example, backend: Tokenizer, config: DataConfig) -> None:
    try:
        messages = messages_of(example.system, example.turns, example.messages)
        tokens, spans, changes = backend.chat(messages, config.template_date)
        if example.unscored and len(spans) != len(_answered(example)):
            raise UserError("has answers with weight 0, which cannot be located in this chat template")
    except UserError as error:
        shard.count(UNFIT, f"{item.where} row {item.row}: its chat {error}")
        refuse_unfit(shard.counts, shard.examples, 0, config.max_bad_rows)
        return
    for change in changes:
        shard.count(change.name, f"{item.where} row {item.row}: {change.difference}")
    _add(shard, item, tokens, spans, config)


def refuse_unfit(counts: Mapping[str, int], examples: Mapping[str, str], n_bad: int, allowed: int) -> None:
    """Check that no more rows are left out than allowed: `n_bad` malformed ones, and chats that do not fit.

    Raises
    ------
    UserError
        Names the first chat that does not fit its template.
    """
    if (unfit := counts.get(UNFIT, 0)) and unfit + n_bad > allowed:
        total = f"; {unfit + n_bad} such rows, {allowed} allowed" * (unfit + n_bad > 1)
        raise UserError(f"{examples[UNFIT]}{total}; fix it, or skip such rows with --max_bad_rows")


def _answered(example: Example) -> list[int]:
    """Indices of the turns with a response."""
    return [i for i, (_, response) in enumerate(example.turns) if response]


def _add(shard: Shard, item: Item, tokens: list[int], spans: Spans, config: DataConfig) -> None:
    """Truncate a sample to ``--seq_len``, decide whether it is sealed, and add it to the shard."""
    example, seq_len = item.content, config.seq_len or 0
    assert isinstance(example, Example)
    masked = Spans()
    if example.unscored:
        answers = list(zip(_answered(example), spans, strict=True))
        masked = [span for i, span in answers if i in example.unscored]
        spans = [span for i, span in answers if i not in example.unscored]
    if len(tokens) > seq_len:
        tokens, spans = tokens[:seq_len], [(start, min(stop, seq_len)) for start, stop in spans if start < seq_len]
        if not spans:
            shard.counts["dropped_prompt_fills_window"] += 1
            return
        shard.counts["response_cut"] += 1
    if config.loss_on == "all":
        bounds = [1, *chain(*((min(a, len(tokens)), min(b, len(tokens))) for a, b in masked)), len(tokens)]
        spans = list(zip(bounds[::2], bounds[1::2], strict=True))
    spans = [(start, stop) for start, stop in spans if start < stop]
    if not spans:
        shard.counts["dropped_nothing_scored"] += 1
        return
    shard.samples.append(_sample(item, example, tokens, spans, config))


def _documents(documents: Sequence[Raw], backend: Tokenizer) -> list[list[int]]:
    """Tokens of each document: text is encoded with BOS and EOS tokens, tokens of a Megatron file stay unchanged."""
    encoded = iter(backend.prompts([document.text for document in documents if document.tokens is None]))
    return [
        [*next(encoded), backend.eos] if document.tokens is None else [int(token) for token in document.tokens]
        for document in documents
    ]


def _add_windows(shard: Shard, item: Item, tokens: list[int], config: DataConfig) -> None:
    """Cut a document into windows that overlap by one token, so that each token except the first carries loss once."""
    raw, seq_len = item.content, config.seq_len or 0
    assert isinstance(raw, Raw)
    for start in range(0, len(tokens) - 1, seq_len - 1):
        window = tokens[start : start + seq_len]
        shard.samples.append(_sample(item, raw, window, [(1, len(window))], config))


def _sample(item: Item, content: Example | Raw, tokens: list[int], spans: Spans, config: DataConfig) -> Sample:
    return Sample(
        tokens=tokens,
        spans=spans,
        document=item.document,
        sealed=holdout.is_sealed(item.document, config.holdout, config.holdout_seed),
        set_id=item.set_id,
        row=item.row,
        category=content.category,
        author=content.author,
    )
