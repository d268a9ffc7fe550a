"""Content of rows: turns and dialogues before a template is applied, and the text of a column."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from wellread.data.sources.source import has_content


@dataclass(frozen=True)
class Turn:
    """One prompt, as values for the fields of a template, and its response."""

    fields: dict[str, str]
    response: str
    scored: bool = True
    """Whether the response carries loss; the data can switch it off (``weight: 0``)."""
    messages: tuple[tuple[str, str], ...] = ()
    """Role and text of the messages of the prompt, if a system message is among them; else empty."""
    joined: int = 0
    """Number of messages of the prompt that were joined to the message before."""


@dataclass(frozen=True)
class Dialogue:
    """Content of one sample, before a template is applied."""

    turns: tuple[Turn, ...]
    system: str = ""
    category: str = ""
    author: str = ""
    """Who wrote the response, in data sets with several authors."""
    prefixed: bool = False
    """Whether the row contained Alpaca's prompt prefix, which was removed."""
    all_responses: str = ""
    """All responses of a row that produces several samples: together they are one document."""
    trailing: int = 0
    """Number of messages after the last answer, which are left out."""
    ignored: tuple[str, ...] = ()
    """Keys of messages with content that the user ignores, as COLUMN.KEY."""


SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can contain these as \\ud83d; they cannot be encoded, so they can be neither tokenized nor hashed."""
HALF = "contains half of a surrogate pair (an incomplete character)"
_ALPACA = "Below is an instruction that describes a task"
_REQUEST = r"\s*Write\s+a\s+response\s+that\s+appropriately\s+completes\s+the\s+request\.\s*###\s*Instruction:\s*"
_END = r"(?:\s*###\s*Response:\s*)?"
_PREFIX = re.compile(rf"{_ALPACA}\.{_REQUEST}(?P<instruction>.*?){_END}", re.DOTALL)
_PREFIX_WITH_INPUT = re.compile(
    rf"{_ALPACA}, paired with an input that provides further context\.{_REQUEST}(?P<instruction>.*?)"
    rf"\s*###\s*Input:\s*(?P<context>.*?){_END}",
    re.DOTALL,
)
_EMPTY_LINES = re.compile(r"(?:[^\S\n]*\n)+")


def without_prefix(text: str) -> tuple[str, str] | None:
    """Remove Alpaca's prompt from a text and return instruction and context; None if the text does not contain it.

    Published subsets of Evol-Instruct have it in the instruction, some with spaces instead of line feeds.
    """
    text = text.strip()
    if not text.startswith(_ALPACA):
        return None
    match = _PREFIX.fullmatch(text) or _PREFIX_WITH_INPUT.fullmatch(text)
    return (match["instruction"], match.groupdict().get("context") or "") if match else None


def only_content(first: str, second: str) -> str | None:
    """The one of two texts that has content; None if both have content that differs."""
    if first.strip() and second.strip() not in ("", first.strip()):
        return None
    return first if first.strip() else second


def without_empty_lines(text: str) -> str:
    """Remove empty lines at the start and whitespace at the end; the first line keeps its indentation."""
    text = text.rstrip()
    match = _EMPTY_LINES.match(text)
    return text[match.end() :] if match else text


def text_of(fields: dict[str, Any], column: str, *, strict: bool = True) -> tuple[str, str | None]:
    """Text of a column (empty if null or missing), and its error or None; `strict` refuses numbers."""
    value = fields.get(column)
    if value is None:
        return "", None
    if not isinstance(value, str):
        if strict:
            return "", f"{column!r} is {type(value).__name__}, not text"
        value = str(value)
    if not value.isascii() and SURROGATE.search(value):
        return "", f"{column!r} {HALF}"
    return value, None


def first_text(fields: dict[str, Any], columns: tuple[str, ...], *, strict: bool = True) -> tuple[str, str | None]:
    """Text of the only one of several columns with the same meaning that has content, and its error or None."""
    used = [column for column in columns if has_content(fields.get(column))]
    if len(used) > 1 and len({str(fields[column]) for column in used}) > 1:
        return "", f"{' and '.join(map(repr, used))} mean the same but differ; remove one, or list it under ignore:"
    return text_of(fields, (used or [*columns, ""])[0], strict=strict)
