"""Chats: the tokenizer's chat template turns all turns into one text; the answers of the assistant carry loss.

The template renders the text up to each answer, then the text including it. The difference is the answer with the token
that ends it. So a template need not mark its answers. What the template writes is compared with the messages: a
template that leaves out, changes or moves one of them is refused. Many templates remove whitespace around messages, and
some write text of their own next to a message, or repeat it: this is reported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from wellread.corpus.rendering import Message, Renderer
from wellread.errors import UserError

Spans = list[tuple[int, int]]
"""Half-open ranges of character positions."""
PROBE = "A message that no data set contains: 7fd2c1e95b."
EXCERPT = 40
"""Characters of a template's text that an error quotes."""
TRIMMED, ADDED = "answers_start_trimmed", "answers_start_added"
"""Names of the counts of what a template changes in answers: whitespace at the start, or text before it."""
PROMPT_TRIMMED, PROMPT_ADDED = "prompts_start_trimmed", "prompts_added"
"""The same for other messages: whitespace at the start, or text before or after it."""
MARKER = re.compile(r"[<\[][^<>\[\]\s]+[>\]]")
"""Role markers that are not special tokens, as ``[/INST]``."""
MARKER_WORDS = 4
"""Role markers have at most this many words next to a message, as in ``GPT4 Correct User:``; more are text."""


class Change(NamedTuple):
    """What a template changes in a message, which stays usable."""

    name: str
    """Name of its count in corpus.json."""
    difference: str
    """Before and after, for people."""


class Rendered(NamedTuple):
    """A chat as its template writes it."""

    text: str
    """The chat, up to the end of the last answer."""
    spans: Spans
    """Character ranges of the answers, each including the token that ends the answer. Where the template ends an
    answer by nothing but the next role marker, the range includes that marker."""
    changes: list[Change]


def messages_of(
    system: str, turns: Sequence[tuple[str, str]], prompts: Sequence[Sequence[tuple[str, str]]] = ()
) -> list[Message]:
    """Messages of a chat of turns (message of the user, answer of the assistant); empty prompts are left out.

    Parameters
    ----------
    prompts : sequence of sequences of (str, str), optional
        Role and text of all messages before the answer of each turn. If it is not empty, it replaces the message of
        the user.
    """
    messages = [{"role": "system", "content": system}] if system else []
    for (user, assistant), prompt in zip(turns, prompts or [()] * len(turns), strict=True):
        parts = prompt or ([("user", user)] if user else [])
        messages += [{"role": role, "content": content} for role, content in parts]
        messages.append({"role": "assistant", "content": assistant})
    return messages


def render(renderer: Renderer, special: re.Pattern[str], messages: Sequence[Message]) -> Rendered:
    """Render a chat with the tokenizer's template.

    Parameters
    ----------
    renderer : Renderer
        The template.
    special : pattern
        Matches the special tokens.
    messages : sequence of dict
        ``role`` (system, user or assistant) and ``content`` of each message. A system message may be anywhere.

    Raises
    ------
    UserError
        When the template fails, changes the beginning of an answer or earlier turns, or leaves out a part of a
        message; or a message contains a special token. The text of the error continues a sentence that begins with
        "its chat".
    """
    text, spans, changes, first = "", Spans(), list[Change](), 0
    is_open = False  # whether the last answer still needs a token that ends it
    for number, message in enumerate(messages):
        content = message["content"]
        match = special.search(content)
        if match:
            raise UserError(f"contains {match[0]!r}, which the chat template would turn into a special token")
        if message["role"] != "assistant":
            continue
        if not number:
            raise UserError("begins with the assistant; begin it with a message of the user")
        before, after = _rendered(renderer, messages[: number + 1], text)
        changes += _changes_of_prompts(_masked(before[len(text) :], special), messages[first:number])
        changes += _additions(renderer, special, messages[:number], first, before, text)
        if is_open:
            marker = _role_marker(renderer, messages[:number], first, before, text)
            spans[-1] = (spans[-1][0], len(text) + _end(marker, special))
        asking, text = before[len(text) :], after.rstrip()  # white space after an answer does not belong to it
        start, stop = _place(content.strip(), asking, _masked(text[len(before) :], special))
        is_open = bool(content.strip()) and len(before) + stop == len(text)
        if content.strip():  # an empty answer must not teach the model to end at once
            spans.append((len(before), len(text)))
            changes += _changes_of_start(content, asking, text[len(before) :], start)
        first = number + 1
    return Rendered(text, spans, changes)


def _rendered(renderer: Renderer, messages: Sequence[Message], text: str) -> tuple[str, str]:
    """The chat up to its last answer, and with it; both must begin with `text`, the chat up to the answer before."""
    before = renderer(messages[:-1], prompt=True)
    after = renderer(messages, prompt=False)
    if not after:
        raise UserError("is an empty text in the chat template; fix the template")
    if not after.startswith(before) or not before.startswith(text):
        opening = renderer(messages[:-1], prompt=False).rstrip()
        if not before.startswith(text) or not after.startswith(opening):
            raise UserError("has turns that the chat template changes when more turns follow; make each turn a row")
        raise UserError(_changed_start(before, after))
    return before, after


def _changed_start(before: str, after: str) -> str:
    """Error for a template that begins an answer in another way than it asks for one."""
    common = next((i for i, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(after))
    begin = max(0, common - EXCERPT // 2)
    return (
        "template begins an answer in another way than it asks for one: "
        f"{before[begin : common + EXCERPT]!r} asks for the answer, {after[begin : common + EXCERPT]!r} contains it"
    )


def _changes_of_prompts(text: str, messages: Sequence[Message]) -> list[Change]:
    """Check that `text` contains all messages before an answer, in their order; return which of them are trimmed."""
    end, changes = 0, []
    for message in messages:
        content = message["content"].strip()
        start = text.find(content, end)
        if start < 0:
            speaker = "the system message" if message["role"] == "system" else "the user"
            raise UserError(f"template leaves out or changes part of what {speaker} says")
        if message["content"][:1].isspace() and message["content"].rstrip() not in text[end:]:
            changes.append(Change(PROMPT_TRIMMED, _difference(message["content"], content)))
        end = start + len(content)
    return changes


def _additions(
    renderer: Renderer, special: re.Pattern[str], messages: Sequence[Message], first: int, before: str, text: str
) -> list[Change]:
    """Next to which of the messages from `first` on the template writes text, or which it repeats.

    Parameters
    ----------
    before, text : str
        The chat up to the next answer, which begins with the chat up to the last answer.
    """
    contents, changes = [message["content"].strip() for message in messages], list[Change]()
    for number, content in enumerate(contents[first:], first):
        unique, prompt = content, before
        if before.count(content, len(text)) > 1:  # short texts, such as `e`, also occur in role markers
            probe = [*messages[:number], messages[number] | {"content": PROBE}, *messages[number + 1 :]]
            unique, prompt = PROBE, ""
            with suppress(UserError):  # a template that refuses the probe has written the message itself
                prompt = renderer(probe, prompt=True)
        if not content or unique not in prompt or not prompt.startswith(text):
            continue
        lead, *copies, tail = _masked(prompt[len(text) :], special).split(unique)
        if copies:
            changes.append(Change(PROMPT_ADDED, _difference(content, content.join(["", *copies, ""]))))
            continue
        previous, following = contents[first:number][-1:], contents[number + 1 :][:1]
        lead = _text_before(lead.rpartition(*previous)[2] if any(previous) else lead)
        tail = _text_after(tail.partition(*following)[0] if any(following) else tail)
        if lead or tail:
            excerpt = _excerpt(content)
            changes.append(Change(PROMPT_ADDED, f"{excerpt!r} becomes {_excerpt(lead) + excerpt + _excerpt(tail)!r}"))
    return changes


def _text_before(gap: str) -> str:
    """What is written between the last special token of a gap and the message after it, if it is not a role marker."""
    lead = gap.rpartition("\0")[2].lstrip()
    return lead if _words(lead) > MARKER_WORDS else ""


def _text_after(gap: str) -> str:
    """What is written between a message and the first special token after it, if it is not a role marker.

    A special token that ends the message is its marker, so there a second word is text.
    """
    tail, separator, _ = gap.partition("\0")
    return tail.rstrip() if _words(tail) > (1 if separator else MARKER_WORDS) else ""


def _words(text: str) -> int:
    return len(re.findall(r"\w+", MARKER.sub(" ", text)))


def _changes_of_start(content: str, asking: str, span: str, start: int) -> list[Change]:
    """How the template changes the start of an answer, whose first character except spaces is at `start` of `span`.

    Its start is negative where the template itself begins the answer, at the end of `asking`.
    """
    answer, spaces = content.strip(), content[: len(content) - len(content.lstrip())]
    lead = span[:start] if start > 0 else ""
    if lead.strip():
        return [Change(ADDED, _difference(answer, lead + answer))]
    if (asking[:start] if start < 0 else lead).endswith(spaces):
        return []
    return [Change(TRIMMED, _difference(content, lead + answer))]


def _difference(before: str, after: str) -> str:
    return f"{_excerpt(before)!r} becomes {_excerpt(after)!r}"


def _excerpt(text: str) -> str:
    """The text, or its start and its end."""
    return text if len(text) <= EXCERPT else f"{text[: EXCERPT // 2]} … {text[-EXCERPT // 2 :]}"


def _role_marker(renderer: Renderer, messages: Sequence[Message], first: int, before: str, text: str) -> str:
    """What the template writes between `text` and the content of message `first`, or before the next answer.

    Short contents, such as ``e``, also occur in role markers; so a long text that does not occur is rendered instead.
    """
    if first < len(messages):
        probe = [*messages[:first], messages[first] | {"content": PROBE}, *messages[first + 1 :]]
        before, separator, _ = renderer(probe, prompt=True).partition(PROBE)
        if not separator or not before.startswith(text):
            raise UserError("template changes the messages after an answer, so the end of the answer is unknown")
    return before[len(text) :]


def _end(marker: str, special: re.Pattern[str]) -> int:
    """Number of characters of a role marker that end the answer before it: up to its first special token, or all."""
    match = special.search(marker)
    end = match.end() if match else len(marker.rstrip()) or len(marker)
    if not end:
        raise UserError("template writes nothing between an answer and the next message")
    return end


def _place(answer: str, asking: str, span: str) -> tuple[int, int]:
    """Start and end of `answer` in `span`, which follows `asking`.

    The beginning of an answer may be written by the template itself, such as ``<think>``; then the start is negative.
    """
    start = span.rfind(answer)
    if start >= 0:
        return start, start + len(answer)
    for shared in range(min(len(answer) - 1, len(asking)), 0, -1):
        if asking.endswith(answer[:shared]) and span.startswith(answer[shared:]):
            return -shared, len(answer) - shared
    raise UserError("template leaves out part of what the assistant says")


def _masked(text: str, special: re.Pattern[str]) -> str:
    """`text` without its special tokens, which no message contains: an answer ``e`` is not that of ``</s>``."""
    return special.sub(lambda match: "\0" * len(match[0]), text)


def contents(text: str, spans: Spans, answers: Sequence[str], special: re.Pattern[str]) -> list[int]:
    """Character of a rendered chat at which each answer begins; -1 where the template writes its beginning.

    Parameters
    ----------
    text, spans
        Result of `render`.
    answers : sequence of str
        Content of each answer that is not empty, as the template writes it: without white space around it.
    special : pattern
        Matches the special tokens.
    """
    masked = _masked(text, special)
    return [masked.rfind(answer, start, stop) for answer, (start, stop) in zip(answers, spans, strict=True)]


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
