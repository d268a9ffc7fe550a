"""Messages of a chat -> turns. What a message contains and nobody reads is an error that names the key."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from wellread.data.rows.content import HALF, SURROGATE, Dialogue, Turn, without_prefix
from wellread.data.sources.source import has_content

_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
"""Names of roles in OpenAI's `messages` and FastChat's `conversations` -> names in chat templates."""
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value")
_WEIGHT_KEYS = ("weight", "train", "training", "trainable")
"""Names, in several tools, of the key that says whether an answer carries loss."""
_KEYS = {*_ROLE_KEYS, *_CONTENT_KEYS, *_WEIGHT_KEYS}


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: str
    content: str
    scored: bool
    ignored: tuple[str, ...]
    """Its keys with content that the user ignores."""


def dialogue(messages: object, column: str, ignore: Sequence[str] = ()) -> Dialogue | str:
    """Turn the messages of `column` into turns, or return a phrase that says what is wrong with them.

    Consecutive user messages are one prompt. A system message after the first other message stays where it is.
    Messages after the last answer are left out. All three are counted.

    Parameters
    ----------
    messages : object
        Value of the column.
    column : str
        Its name, for errors.
    ignore : sequence of str
        Keys of messages that may have content that is not read.
    """
    if not isinstance(messages, list):
        return f"no {column!r}" if messages is None else f"{column!r} is {type(messages).__name__}, not a list"
    systems, prompts, turns, prefixed = list[str](), list[Message](), list[Turn](), False
    ignored = dict[str, None]()
    for number, value in enumerate(messages, start=1):
        message = _message(value, ignore)
        if isinstance(message, str):
            return f"message {number} of {column!r} {message}"
        ignored |= dict.fromkeys(f"{column}.{key}" for key in message.ignored)
        if message.role == "assistant":
            turn, carried = _turn(prompts, message)
            turns.append(turn)
            prefixed |= carried
            prompts = []
        elif message.role == "system" and not turns and not prompts:
            systems += [message.content] if message.content else []
        else:
            prompts.append(message)
    if not turns:
        return f"{column!r} contains no message of the assistant"
    turns[0] = replace(turns[0], joined=turns[0].joined + max(0, len(systems) - 1))
    system = "\n\n".join(systems)
    return Dialogue(tuple(turns), system, prefixed=prefixed, trailing=len(prompts), ignored=tuple(ignored))


def _turn(prompts: Sequence[Message], answer: Message) -> tuple[Turn, bool]:
    """The turn of an answer and the messages before it, and whether these contained Alpaca's prompt prefix."""
    instruction, context = "\n\n".join(message.content for message in prompts), ""
    parts = list[tuple[str, str]]()
    for role, group in itertools.groupby(prompts, lambda message: message.role):
        texts = [message.content for message in group if message.content.strip() or role == "user"]
        parts += [(role, "\n\n".join(texts))] if role == "user" else [(role, text) for text in texts]
    is_plain = all(role == "user" for role, _ in parts)
    carried = without_prefix(instruction) if is_plain else None
    if carried:
        instruction, context = carried
    joined = sum(first.role == second.role == "user" for first, second in itertools.pairwise(prompts))
    fields = {"instruction": instruction, "context": context}
    return Turn(fields, answer.content, answer.scored, () if is_plain else tuple(parts), joined), bool(carried)


def history(value: object, column: str, ignore: Sequence[str] = ()) -> tuple[tuple[Turn, ...], str, str | None]:
    """Earlier turns of a row, their system message, and an error or None.

    They are pairs of prompt and answer, as in LLaMA-Factory, or messages.
    """
    if not has_content(value):
        return (), "", None
    if not isinstance(value, list):
        return (), "", f"{column!r} is {type(value).__name__}, not a list of [prompt, answer]"
    if all(isinstance(message, dict) for message in value):
        earlier = dialogue(value, column, ignore)
        if isinstance(earlier, str):
            return (), "", earlier
        if earlier.trailing:
            return (), "", f"{column!r} does not end with an answer of the assistant"
        return earlier.turns, earlier.system, None
    turns = []
    for number, pair in enumerate(value, start=1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            return (), "", f"item {number} of {column!r} is not [prompt, answer]"
        if SURROGATE.search("".join(pair)):
            return (), "", f"{column!r} {HALF}"
        turns.append(Turn({"instruction": pair[0], "context": ""}, pair[1]))
    return tuple(turns), "", None


def _message(message: object, ignore: Sequence[str]) -> Message | str:
    """One message, or its error."""
    if not isinstance(message, dict):
        return f"is {type(message).__name__}, not an object"
    role, error = _only(message, _ROLE_KEYS, ignore)
    content, content_error = _only(message, _CONTENT_KEYS, ignore)
    if error or content_error:
        return error or f"{content_error}"
    if not isinstance(role, str) or role not in _ROLES:
        return f"has role {role!r}, not one of {', '.join(_ROLES)}"
    ignored = tuple(str(key) for key in message if key in ignore and has_content(message[key]))
    unused = [str(key) for key in message if key not in _KEYS and key not in ignore and has_content(message[key])]
    if unused:
        return f"has {' and '.join(map(repr, unused))}, which is not read; remove it, or list it under ignore:"
    text, error = _joined(content, ignore)
    if error:
        return error
    if SURROGATE.search(text):
        return HALF
    scored = _scored({key: message.get(key) for key in _WEIGHT_KEYS if key not in ignore}, _ROLES[role])
    return scored if isinstance(scored, str) else Message(_ROLES[role], text, scored, ignored)


def _only(message: dict[str, Any], keys: Sequence[str], ignore: Sequence[str]) -> tuple[Any, str | None]:
    """Value of the only one of `keys` that a message has, and an error or None."""
    values = {key: message[key] for key in keys if message.get(key) is not None and key not in ignore}
    used = {key: value for key, value in values.items() if has_content(value)}
    if len(used) > 1 and len(set(map(repr, used.values()))) > 1:
        return None, f"has both {' and '.join(map(repr, used))}; remove one"
    return next(iter((used or values).values()), None), None


def _joined(content: object, ignore: Sequence[str]) -> tuple[str, str | None]:
    """Text of a message, and its error or None; a list of text parts is joined."""
    if isinstance(content, str):
        return content, None
    if content is None:
        return "", "has no text"
    if not isinstance(content, list):
        return "", f"contains {type(content).__name__}, not text"
    texts = []
    for part in content:
        if isinstance(part, dict):
            kind = part.get("type") or "text"
            unused = [str(key) for key, value in part.items() if key not in ("type", "text") and has_content(value)]
            unused = [key for key in unused if key not in ignore]
            if kind != "text" or unused or not isinstance(part.get("text"), str):
                what = repr(unused[0]) if unused else f"type {kind!r}" if kind != "text" else "no text"
                return "", f"contains a part with {what}; only parts of text are read"
            part = part["text"]
        if not isinstance(part, str):
            return "", f"contains a list with {type(part).__name__}, not text"
        texts.append(part)
    return "".join(texts), None


def _scored(weights: dict[str, Any], role: str) -> bool | str:
    """Whether a message carries loss, or an error."""
    weights = {key: value for key, value in weights.items() if has_content(value)}
    for key, value in weights.items():
        if isinstance(value, str) or value not in (0, 1):
            return f"has {key!r} {value!r}; only 0, 1, true and false are possible"
        if value and role != "assistant":
            return f"has {key!r} {value!r}, but only answers of the assistant carry loss; remove it"
    if len(set(map(bool, weights.values()))) > 1:
        return f"has {' and '.join(map(repr, weights))}, which contradict each other"
    return all(weights.values())
