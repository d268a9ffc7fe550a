"""Instruction rows: the schemas that read them, and what one row says before and after a template."""

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
    """One prompt, as fields of a template, and its response."""

    fields: dict[str, str]
    response: str


@dataclass(frozen=True)
class Dialogue:
    """What one sample says, before any template."""

    turns: tuple[Turn, ...]
    system: str = ""
    category: str = ""
    author: str = ""
    """Who wrote the response, in sets that have several authors."""
    prefixed: bool = False
    """Whether the row carried Alpaca's prompt prefix, which was taken off."""
    others: str = ""
    """All responses of a row that makes several samples: they are one document."""


@dataclass(frozen=True)
class Example:
    """One sample as text: loss is carried by the responses alone."""

    turns: tuple[tuple[str, str], ...]
    """Prompt and response of each turn; for `chat` what user and assistant say."""
    document: str
    """Text that identifies the source document."""
    category: str = ""
    author: str = ""
    prefixed: bool = False
    chat: bool = False
    system: str = ""
    """For `chat` alone; in a template it is part of the first prompt."""

    @property
    def text(self) -> str:
        """All that it says."""
        return self.system + "".join(prompt + response for prompt, response in self.turns)


Read = Callable[[Row, "Schema", Source], "list[Dialogue] | str"]


@dataclass(frozen=True)
class Schema:
    """Columns of a kind of set, and how a row is read."""

    name: str
    columns: dict[str, str]
    """Field -> column."""
    required: tuple[str, ...]
    """Fields whose columns no row may lack."""
    template: str
    """Used where neither the set nor ``--template`` names one."""
    read: Read = field(repr=False)
    """One row -> what it says; or, for a broken row, one phrase that says what is wrong."""

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns that no row may lack."""
        return tuple(self.columns[name] for name in self.required)

    @property
    def fields(self) -> set[str]:
        """Fields that a template may name."""
        return {"instruction", "context", "category", *self.columns} - NEVER_IN_A_PROMPT


_TEXTS = ("instruction", "context", "response")
NEVER_IN_A_PROMPT = {"response", "messages", "human_answers", "chatgpt_answers", "text"}
_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can spell these as \\ud83d; no encoding, so no tokenizer and no hash, takes them."""
_HALF = "holds half of a surrogate pair (a character cut in two), which is no text"
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
    """Take Alpaca's prompt off a text that carries it: instruction and context; None where it does not.

    Published subsets of Evol-Instruct have it in the instruction, some with blanks instead of line feeds.
    """
    text = text.strip()
    if not text.startswith(_ALPACA):
        return None
    found = _PREFIX.fullmatch(text) or _PREFIX_WITH_INPUT.fullmatch(text)
    return (found["instruction"], found.groupdict().get("context") or "") if found else None


def _text(fields: dict[str, Any], column: str, *, strict: bool = True) -> tuple[str, str | None]:
    """Text of a column (empty where it is null or lacking), and what is wrong with it; numbers pass unless `strict`."""
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
    """Each answer is a sample; all answers of a question are one document, whichever of them are asked for."""
    fields = row.fields or {}
    question, error = _text(fields, schema.columns["instruction"])
    subset, subset_error = _text(fields, schema.columns["category"])
    if error or subset_error:
        return error or f"{subset_error}"
    if not question.strip():
        return f"no {schema.columns['instruction']!r}"
    if not subset and source.paths:  # the files of single subsets do not name theirs, but are called so
        stem = (row.path or source.paths[0]).stem
        subset = stem if stem in HC3_SUBSETS else ""
    answers: list[tuple[str, str]] = []
    for author in ("human", "chatgpt"):
        column = schema.columns[f"{author}_answers"]
        found = fields.get(column)
        if found is None:
            found = []
        if not isinstance(found, list) or not all(isinstance(answer, str) for answer in found):
            return f"{column!r} is {_kind(found)}, not a list of texts"
        if _SURROGATE.search("".join(found)):
            return f"{column!r} {_HALF}"
        answers += [(author, answer) for answer in found]
    if source.subsets and subset not in source.subsets:
        return []
    others = "\x00".join(answer.strip() for _, answer in answers)
    return [
        Dialogue((Turn({"instruction": question, "category": subset}, answer),), "", subset, author, False, others)
        for author, answer in answers
        if source.answers in ("both", author)
    ]


def _kind(value: object) -> str:
    return type(value).__name__ if not isinstance(value, list) else "a list with other things in it"


_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
"""As OpenAI's `messages` and FastChat's `conversations` name them."""


def _read_messages(row: Row, schema: Schema, source: Source) -> list[Dialogue] | str:
    """Messages -> turns. What users say in a row is one prompt; what follows the last answer is left out."""
    fields, column = row.fields or {}, schema.columns["messages"]
    messages = fields.get(column)
    if not isinstance(messages, list):
        return f"no {column!r}" if messages is None else f"{column!r} is {type(messages).__name__}, not a list"
    category, error = _text(fields, schema.columns.get("category", "category"), strict=False)
    if error:
        return error
    system, asked, turns, prefixed = "", list[str](), list[Turn](), False
    for number, message in enumerate(messages, start=1):
        found = _message(message)
        if isinstance(found, str):
            return f"message {number} of {column!r} {found}"
        role, content = found
        if role == "system":
            system = f"{system}\n\n{content}" if system else content
        elif role == "user":
            asked.append(content)
        else:
            instruction, context = "\n\n".join(asked), ""
            carried = without_prefix(instruction)
            if carried:
                instruction, context = carried
                prefixed = True
            turns.append(Turn({"instruction": instruction, "context": context}, content))
            asked = []
    if not turns:
        return f"{column!r} holds no message of the assistant"
    return [Dialogue(tuple(turns), system, category, "", prefixed)]


def _message(message: object) -> tuple[str, str] | str:
    """Role and content of one message, or what is wrong with it."""
    if not isinstance(message, dict):
        return f"is {type(message).__name__}, not an object"
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if role not in _ROLES:
        return f"has role {role!r}, not one of {', '.join(_ROLES)}"
    if not isinstance(content, str):
        return "has no text" if content is None else f"holds {type(content).__name__}, not text"
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
"""In the order in which they are tried; `text` has to be asked for."""


def dialogues(row: Row, schema: Schema, source: Source) -> list[Dialogue] | str:
    """Read one row: a dialogue for each sample it makes; or, for a broken row, one phrase that says what is wrong."""
    return schema.read(row, schema, source) if row.fields is not None else f"{row.error}"


def recognize(columns: Iterable[str], where: str) -> Schema:
    """Find the schema whose columns a row has.

    Raises
    ------
    UserError
        When none fits; names the columns that are there.
    """
    present = set(columns)
    for schema in SCHEMAS.values():
        if schema.name != "text" and set(schema.required_columns) <= present:
            return schema
    wanted = "; ".join(f"{s.name}: {', '.join(s.required_columns)}" for s in SCHEMAS.values() if s.name != "text")
    raw = f"; is it raw text? then text@{where}" if "text" in present else ""
    raise UserError(f"{where}: columns {', '.join(sorted(present))} fit no known schema ({wanted}){raw}")


def with_columns(columns: dict[str, str]) -> Schema:
    """Schema of a set whose columns are the user's own, as field -> column.

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
            f"columns: no {' and no '.join(missing)} among them; name instruction and response, or messages, or text"
        )
    return replace(SCHEMAS["dolly"], columns=columns)


def example(dialogue: Dialogue, template: Template) -> Example | str:
    """Apply a template; or say, in one phrase, why the row has no place in it. An empty response is no error here."""
    turns = tuple(_turn(turn, template) for turn in dialogue.turns)
    if any(turn.fields.get("context", "").strip() for turn in dialogue.turns) and not template.takes_context():
        return f"has a context, for which template {template.name!r} has no place; add {{context}} to it"
    if template.is_chat:
        system = dialogue.system.strip()
    else:
        system = ""
        if dialogue.system.strip():
            first, *rest = turns
            turns = ((f"{dialogue.system.strip()}\n\n{first[0]}", first[1]), *rest)
    if dialogue.others:
        document = f"{turns[0][0]}\x00{dialogue.others}"
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
