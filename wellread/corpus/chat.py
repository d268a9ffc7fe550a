"""Chats: the tokenizer's chat template turns all turns into one text; the answers of the assistant carry loss.

The template renders the text up to each answer, then the text including it. The difference is the answer with the token
that ends it. So a template need not mark its answers, and a template that changes earlier turns is detected.
"""

from __future__ import annotations

import re
from typing import Any

from wellread.errors import UserError

Spans = list[tuple[int, int]]
"""Half-open ranges of character positions."""


def render(
    backend: Any, special: re.Pattern[str], system: str, turns: tuple[tuple[str, str], ...]
) -> tuple[str, Spans]:
    """Render a chat with the tokenizer's template.

    Parameters
    ----------
    backend : transformers tokenizer
    special : pattern
        Matches the special tokens.
    system : str
        System message; may be empty.
    turns : tuple of (str, str)
        Message of the user and answer of the assistant.

    Returns
    -------
    text : str
        The chat, up to the end of the last answer.
    spans : list of (int, int)
        Character ranges of the answers in `text`, each including the token that ends the answer.

    Raises
    ------
    UserError
        When the template rejects the chat or changes earlier turns, or a message contains a special token. The text of
        the error continues a sentence that begins with "its chat".
    """
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": system}] if system else []
    text, spans = "", Spans()
    for user, assistant in turns:
        match = special.search(user) or special.search(assistant) or special.search(system)
        if match:
            raise UserError(f"contains {match[0]!r}, which the chat template would turn into a special token")
        if user:
            messages.append({"role": "user", "content": user})
        if not messages:
            raise UserError("begins with the assistant; begin it with a message of the user")
        try:
            before = backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            messages.append({"role": "assistant", "content": assistant})
            after = backend.apply_chat_template(messages, tokenize=False)
        except TemplateError as error:
            raise UserError(f"is rejected by the chat template: {error}") from None
        if not before.startswith(text) or not after.startswith(before):
            raise UserError("has turns that the chat template changes when more turns follow; make each turn a row")
        text = after.rstrip()  # white space after the token that ends an answer does not belong to the answer
        if assistant.strip():  # an empty answer must not teach the model to end at once
            spans.append((len(before), len(text)))
    if not text:
        raise UserError("is an empty text in the chat template; fix the template")
    return text, spans


def scored(offsets: list[tuple[int, int]], spans: Spans) -> list[tuple[int, int]]:
    """Ranges of tokens that carry loss: those with at least one character inside a span.

    Parameters
    ----------
    offsets : list of (int, int)
        Half-open character range of each token, in order.
    """
    ranges: list[tuple[int, int]] = []
    i = 0
    for start, stop in spans:
        while i < len(offsets) and offsets[i][1] <= start:
            i += 1
        first = i
        while i < len(offsets) and offsets[i][0] < stop:
            i += 1
        if i > first:
            ranges.append((first, i))
    return ranges
