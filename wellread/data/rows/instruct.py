"""Instruction rows: the schemas that parse them, and the content of a row before and after a template is applied."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from wellread.data.rows.templates import Template
from wellread.data.sources.source import Row, Source
from wellread.errors import UserError


@dataclass(frozen=True)
class Turn:
    """One prompt, as values for the fields of a template, and its response."""

    fields: dict[str, str]
    response: str


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


@dataclass(frozen=True)
class Example:
    """One sample as text; only the responses carry loss."""

    turns: tuple[tuple[str, str], ...]
    """Prompt and response of each turn; for `chat` the messages of user and assistant."""
    document: str
    """Text that identifies the source document."""
    category: str = ""
    author: str = ""
    prefixed: bool = False
    chat: bool = False
    system: str = ""
    """System message, only for `chat`; other templates put it into the first prompt."""

    @property
    def text(self) -> str:
        """The complete text."""
        return self.system + "".join(prompt + response for prompt, response in self.turns)


Read = Callable[[Row, "Schema", Source], "list[Dialogue] | str"]


@dataclass(frozen=True)
class Schema:
    """Columns of a kind of data set, and how a row is read."""

    name: str
    columns: dict[str, str]
    """Field -> column."""
    required: tuple[str, ...]
    """Fields that must have a column."""
    template: str
    """Default template, used if neither the data set nor ``--template`` names one."""
    read: Read = field(repr=False)
    """Function from a row to its dialogues, or to a phrase that says why the row is malformed."""

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns that each row must have."""
        return tuple(self.columns[name] for name in self.required)

    @property
    def fields(self) -> set[str]:
        """Fields that a template may name."""
        return {"instruction", "context", "category", *self.columns} - NEVER_IN_A_PROMPT


_TEXTS = ("instruction", "context", "response")
NEVER_IN_A_PROMPT = {"response", "messages", "human_answers", "chatgpt_answers", "text"}
_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can contain these as \\ud83d; they cannot be encoded, so they can be neither tokenized nor hashed."""
_HALF = "contains half of a surrogate pair (an incomplete character)"
_ALPACA = "Below is an instruction that describes a task"
_REQUEST = r"\s*Write\s+a\s+response\s+that\s+appropriately\s+completes\s+the\s+request\.\s*###\s*Instruction:\s*"
_END = r"(?:\s*###\s*Response:\s*)?"
_PREFIX = re.compile(rf"{_ALPACA}\.{_REQUEST}(?P<instruction>.*?){_END}", re.DOTALL)
_PREFIX_WITH_INPUT = re.compile(
    rf"{_ALPACA}, paired with an input that provides further context\.{_REQUEST}(?P<instruction>.*?)"
    rf"\s*###\s*Input:\s*(?P<context>.*?){_END}",
    re.DOTALL,
)


def without_prefix(text: str) -> tuple[str, str] | None:
    """Remove Alpaca's prompt from a text and return instruction and context; None if the text does not contain it.

    Published subsets of Evol-Instruct have it in the instruction, some with spaces instead of line feeds.
    """
    text = text.strip()
    if not text.startswith(_ALPACA):
        return None
    match = _PREFIX.fullmatch(text) or _PREFIX_WITH_INPUT.fullmatch(text)
    return (match["instruction"], match.groupdict().get("context") or "") if match else None


def _text(fields: dict[str, Any], column: str, *, strict: bool = True) -> tuple[str, str | None]:
    """Text of a column (empty if null or missing), and its error or None; `strict` refuses numbers."""
    value = fields.get(column)
    if value is None:
        return "", None
    if not isinstance(value, str):
        if strict:
            return "", f"{column!r} is {type(value).__name__}, not text"
        value = str(value)
    if not value.isascii() and _SURROGATE.search(value):
        return "", f"{column!r} {_HALF}"
    return value, None


def _read_columns(row: Row, schema: Schema, source: Source) -> list[Dialogue] | str:
    fields, values = row.fields or {}, dict[str, str]()
    for name, column in schema.columns.items():
        values[name], error = _text(fields, column, strict=name in _TEXTS)
        if error:
            return error
    instruction, response = schema.columns["instruction"], schema.columns["response"]
    if not values["instruction"].strip():
        return f"{instruction!r} is empty" if fields.get(instruction) is not None else f"no {instruction!r}"
    if response not in fields:
        return f"no {response!r}"
    carried = without_prefix(values["instruction"])
    if carried:
        values["instruction"] = carried[0]
        values["context"] = values.get("context") or carried[1]
    answer = values.pop("response")
    return [Dialogue((Turn(values, answer),), category=values.get("category", ""), prefixed=bool(carried))]


HC3_SUBSETS = ("reddit_eli5", "finance", "medicine", "open_qa", "wiki_csai")


def _read_hc3(row: Row, schema: Schema, source: Source) -> list[Dialogue] | str:
    """Each answer is a sample; all answers of a question are one document, even if only some are selected."""
    fields = row.fields or {}
    question, error = _text(fields, schema.columns["instruction"])
    subset, subset_error = _text(fields, schema.columns["category"])
    if error or subset_error:
        return error or f"{subset_error}"
    if not question.strip():
        return f"no {schema.columns['instruction']!r}"
    if not subset and source.paths:  # files with a single subset have no such column; the file name is the subset
        stem = (row.path or source.paths[0]).stem
        subset = stem if stem in HC3_SUBSETS else ""
    answers: list[tuple[str, str]] = []
    for author in ("human", "chatgpt"):
        column = schema.columns[f"{author}_answers"]
        texts = fields.get(column)
        if texts is None:
            texts = []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return f"{column!r} is {_kind(texts)}, not a list of texts"
        if _SURROGATE.search("".join(texts)):
            return f"{column!r} {_HALF}"
        answers += [(author, text) for text in texts]
    if source.subsets and subset not in source.subsets:
        return []
    all_responses = "\x00".join(answer.strip() for _, answer in answers)
    return [
        Dialogue(
            (Turn({"instruction": question, "category": subset}, answer),), "", subset, author, False, all_responses
        )
        for author, answer in answers
        if source.answers in ("both", author)
    ]


def _kind(value: object) -> str:
    return type(value).__name__ if not isinstance(value, list) else "a list with other values"


_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
"""Names of roles in OpenAI's `messages` and FastChat's `conversations` -> names in chat templates."""


def _read_messages(row: Row, schema: Schema, source: Source) -> list[Dialogue] | str:
    """Messages -> turns. Consecutive user messages are one prompt; messages after the last answer are dropped."""
    fields, column = row.fields or {}, schema.columns["messages"]
    messages = fields.get(column)
    if not isinstance(messages, list):
        return f"no {column!r}" if messages is None else f"{column!r} is {type(messages).__name__}, not a list"
    category, error = _text(fields, schema.columns.get("category", "category"), strict=False)
    if error:
        return error
    system, prompts, turns, prefixed = "", list[str](), list[Turn](), False
    for number, message in enumerate(messages, start=1):
        parsed = _message(message)
        if isinstance(parsed, str):
            return f"message {number} of {column!r} {parsed}"
        role, content = parsed
        if role == "system":
            system = f"{system}\n\n{content}" if system else content
        elif role == "user":
            prompts.append(content)
        else:
            instruction, context = "\n\n".join(prompts), ""
            carried = without_prefix(instruction)
            if carried:
                instruction, context = carried
                prefixed = True
            turns.append(Turn({"instruction": instruction, "context": context}, content))
            prompts = []
    if not turns:
        return f"{column!r} contains no message of the assistant"
    return [Dialogue(tuple(turns), system, category, "", prefixed)]


def _message(message: object) -> tuple[str, str] | str:
    """Role and content of one message, or its error."""
    if not isinstance(message, dict):
        return f"is {type(message).__name__}, not an object"
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if role not in _ROLES:
        return f"has role {role!r}, not one of {', '.join(_ROLES)}"
    if not isinstance(content, str):
        return "has no text" if content is None else f"contains {type(content).__name__}, not text"
    if _SURROGATE.search(content):
        return _HALF
    return _ROLES[role], content


def _read_text(row: Row, schema: Schema, source: Source) -> list[Dialogue] | str:
    raise AssertionError("documents of plain text have no dialogue")


_DOLLY = {"instruction": "instruction", "context": "context", "response": "response", "category": "category"}
_PAIR = ("instruction", "response")
_HC3 = {
    "instruction": "question",
    "human_answers": "human_answers",
    "chatgpt_answers": "chatgpt_answers",
    "category": "source",
}
SCHEMAS = {
    schema.name: schema
    for schema in (
        Schema("messages", {"messages": "messages"}, ("messages",), "chat", _read_messages),
        Schema("conversations", {"messages": "conversations"}, ("messages",), "chat", _read_messages),
        Schema("hc3", _HC3, ("instruction", "human_answers", "chatgpt_answers"), "qa", _read_hc3),
        Schema("dolly", _DOLLY, _PAIR, "dolly", _read_columns),
        Schema("alpaca", _DOLLY | {"context": "input", "response": "output"}, _PAIR, "alpaca", _read_columns),
        Schema("prompt", {"instruction": "prompt", "response": "completion"}, _PAIR, "none", _read_columns),
        Schema("text", {"text": "text"}, ("text",), "none", _read_text),
    )
}
"""In the order in which they are tried; `text` is never recognized, it must be named."""


def dialogues(row: Row, schema: Schema, source: Source) -> list[Dialogue] | str:
    """Parse one row: one dialogue per sample, or a phrase that says why the row is malformed."""
    return schema.read(row, schema, source) if row.fields is not None else f"{row.error}"


def recognize(columns: Iterable[str], where: str) -> Schema:
    """Find the schema that matches the columns of a row.

    Raises
    ------
    UserError
        When no schema fits; lists the columns that are present.
    """
    present = set(columns)
    for schema in SCHEMAS.values():
        if schema.name != "text" and set(schema.required_columns) <= present:
            return schema
    schemas = "; ".join(f"{s.name}: {', '.join(s.required_columns)}" for s in SCHEMAS.values() if s.name != "text")
    raw = f"; is it raw text? then text@{where}" if "text" in present else ""
    raise UserError(f"{where}: columns {', '.join(sorted(present))} match no known schema ({schemas}){raw}")


def with_columns(columns: dict[str, str]) -> Schema:
    """Schema of a data set with user-defined columns, given as field -> column.

    Raises
    ------
    UserError
        When they name neither instruction and response, nor messages, nor text.
    """
    if "messages" in columns:
        return replace(SCHEMAS["messages"], columns=columns)
    if "text" in columns:
        return replace(SCHEMAS["text"], columns=columns)
    missing = [name for name in _PAIR if name not in columns]
    if missing:
        raise UserError(
            f"columns: missing {' and '.join(missing)}; name instruction and response, or messages, or text"
        )
    return replace(SCHEMAS["dolly"], columns=columns)


def example(dialogue: Dialogue, template: Template) -> Example | str:
    """Apply a template, or return a phrase that says why it does not fit. An empty response is not an error here."""
    turns = tuple(_turn(turn, template) for turn in dialogue.turns)
    if any(turn.fields.get("context", "").strip() for turn in dialogue.turns) and not template.takes_context():
        return f"has a context, but template {template.name!r} has no field for it; add {{context}} to the template"
    if template.is_chat:
        system = dialogue.system.strip()
    else:
        system = ""
        if dialogue.system.strip():
            first, *later = turns
            turns = ((f"{dialogue.system.strip()}\n\n{first[0]}", first[1]), *later)
    if dialogue.all_responses:
        document = f"{turns[0][0]}\x00{dialogue.all_responses}"
    else:
        document = "\x00".join([*([system] if system else []), *(text for turn in turns for text in turn)])
    return Example(turns, document, dialogue.category, dialogue.author, dialogue.prefixed, template.is_chat, system)


def _turn(turn: Turn, template: Template) -> tuple[str, str]:
    fields, response = turn.fields, turn.response
    if template.strips:
        fields = {name: value.strip() for name, value in fields.items()}
        response = response.strip()
    elif not fields.get("context", "").strip():
        fields = fields | {"context": ""}
    if not template.is_chat:
        prompt, lead = template.prompt(fields) if fields["instruction"] else ("", "")
        return prompt, lead + response if response.strip() else ""
    context = fields.get("context")
    return (f"{fields['instruction']}\n\n{context}" if context else fields["instruction"]), response
