"""Chats: a tokenizer's own template makes one text of all turns; loss is carried by what the assistant says.

A template is asked for the text up to each answer, then for the text with it: what comes in between is the answer with
the token that ends it. So no template has to mark its answers, and one that rewrites earlier turns is found out.
"""

from __future__ import annotations

import re
from typing import Any

from wellread.errors import UserError

Spans = list[tuple[int, int]]
"""Half-open ranges of characters."""


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
        May be empty.
    turns : tuple of (str, str)
        What the user says, and the assistant after it.

    Returns
    -------
    text : str
        Up to the end of the last answer.
    spans : list of (int, int)
        Characters of `text` that the assistant says, the token that ends each answer included.

    Raises
    ------
    UserError
        One phrase: when the template refuses the chat or changes earlier turns, or a message spells a special token.
    """
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": system}] if system else []
    text, spans = "", Spans()
    for user, assistant in turns:
        found = special.search(user) or special.search(assistant) or special.search(system)
        if found:
            raise UserError(f"spells {found[0]!r}, which the chat template would turn into a special token")
        if user:
            messages.append({"role": "user", "content": user})
        if not messages:
            raise UserError("begins with the assistant; begin it with what the user says")
        try:
            before = backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            messages.append({"role": "assistant", "content": assistant})
            after = backend.apply_chat_template(messages, tokenize=False)
        except TemplateError as error:
            raise UserError(f"is refused by the chat template: {error}") from None
        if not before.startswith(text) or not after.startswith(before):
            raise UserError("has turns that the chat template rewrites when the chat goes on; make each a row")
        text = after.rstrip()  # white space after the token that ends an answer is none of the assistant's
        if assistant.strip():  # an answer that is not there is no example of an end
            spans.append((len(before), len(text)))
    if not text:
        raise UserError("comes out of the chat template as nothing; mend the template")
    return text, spans


def scored(offsets: list[tuple[int, int]], spans: Spans) -> list[tuple[int, int]]:
    """Ranges of tokens that carry loss: those with a character inside a span.

    Parameters
    ----------
    offsets : list of (int, int)
        Characters of each token, half-open, in order.
    """
    found: list[tuple[int, int]] = []
    i = 0
    for start, stop in spans:
        while i < len(offsets) and offsets[i][1] <= start:
            i += 1
        first = i
        while i < len(offsets) and offsets[i][0] < stop:
            i += 1
        if i > first:
            found.append((first, i))
    return found
