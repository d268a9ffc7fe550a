"""Instruction rows: the schemas that parse them, and the content of a row before and after a template is applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from wellread.data.rows import messages
from wellread.data.rows.content import (
    HALF,
    SURROGATE,
    Dialogue,
    Turn,
    first_text,
    only_content,
    text_of,
    without_empty_lines,
    without_prefix,
)
from wellread.data.rows.templates import Template
from wellread.data.sources.source import Row, Source, Unreadable
from wellread.errors import UserError


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
    unscored: tuple[int, ...] = ()
    """Indices of turns with a response that carries no loss."""
    trailing: int = 0
    """Number of messages after the last answer, which are left out."""
    messages: tuple[tuple[tuple[str, str], ...], ...] = ()
    """Role and text of the messages of each prompt of a chat, if a system message is among them; else empty."""
    joined: int = 0
    """Number of messages that were joined to the message before."""

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


TEXTS = ("instruction", "context", "response")
NEVER_IN_A_PROMPT = {"response", "messages", "human_answers", "chatgpt_answers", "text", "history"}
MEANINGS = {
    "context": ("context", "input"),
    "category": ("category",),
    "system": ("system", "system_prompt"),
    "history": ("history",),
}
"""Optional fields -> columns that mean them in every data set, in addition to the columns of its schema."""


def columns_of(name: str, schema: Schema, source: Source) -> tuple[str, ...]:
    """Columns that mean the optional field `name`: of the schema, and those with this meaning everywhere."""
    taken_columns = {column for field, column in schema.columns.items() if field != name}
    columns = dict.fromkeys([*([schema.columns[name]] if name in schema.columns else []), *MEANINGS[name]])
    return tuple(column for column in columns if column not in taken_columns and column not in source.ignore)


def extra_columns(schema: Schema) -> dict[str, str]:
    """Field -> column of the values that only templates use: each reader puts all of them into its turns."""
    excluded = {*TEXTS, *MEANINGS, *NEVER_IN_A_PROMPT}
    return {name: column for name, column in schema.columns.items() if name not in excluded}


def _extra_fields(fields: dict[str, Any], schema: Schema, source: Source) -> tuple[dict[str, str], str | None]:
    """Values of `extra_columns` and the category, and an error or None."""
    values = dict[str, str]()
    for name, column in extra_columns(schema).items():
        values[name], error = text_of(fields, column, strict=False)
        if error:
            return {}, error
    values["category"], error = first_text(fields, columns_of("category", schema, source), strict=False)
    return values, error


def _read_columns(row: Row, schema: Schema, source: Source) -> list[Dialogue] | str:
    fields = row.fields or {}
    values, error = _extra_fields(fields, schema, source)
    for name in TEXTS:
        columns = columns_of(name, schema, source) if name in MEANINGS else (schema.columns[name],)
        values[name], text_error = first_text(fields, columns)
        error = text_error or error
    if error:
        return error
    instruction, response = schema.columns["instruction"], schema.columns["response"]
    if not values["instruction"].strip():
        return f"{instruction!r} is empty" if fields.get(instruction) is not None else f"no {instruction!r}"
    if response not in fields:
        return f"no {response!r}"
    carried = without_prefix(values["instruction"])
    if carried:
        context = only_content(values["context"], carried[1])
        if context is None:
            return f"{instruction!r} contains a prompt with another input than the row; remove one"
        values |= {"instruction": carried[0], "context": context}
    answer = values.pop("response")
    dialogue = Dialogue((Turn(values, answer),), category=values["category"], prefixed=bool(carried))
    return _completed(dialogue, fields, schema, source)


def _completed(dialogue: Dialogue, fields: dict[str, Any], schema: Schema, source: Source) -> list[Dialogue] | str:
    """Add the system message and the earlier turns that a row has in columns of their own."""
    system, error = first_text(fields, columns_of("system", schema, source))
    if error:
        return error
    earlier = list[Turn]()
    for column in columns_of("history", schema, source):
        turns, earlier_system, error = messages.history(fields.get(column), column, source.ignore)
        if error:
            return error
        extra_fields = {name: value for name, value in dialogue.turns[0].fields.items() if name not in TEXTS}
        earlier += [replace(turn, fields=extra_fields | turn.fields) for turn in turns]
        both = only_content(system, earlier_system)
        if both is None:
            return f"{column!r} has another system message than the row; remove one"
        system = both
    both = only_content(system, dialogue.system)
    if both is None:
        return "has two different system messages, one in a column and one in the chat; remove one"
    return [replace(dialogue, system=both, turns=(*earlier, *dialogue.turns))]


HC3_SUBSETS = ("reddit_eli5", "finance", "medicine", "open_qa", "wiki_csai")


def _read_hc3(row: Row, schema: Schema, source: Source) -> list[Dialogue] | str:
    """Each answer is a sample; all answers of a question are one document, even if only some are selected."""
    fields = row.fields or {}
    question, error = text_of(fields, schema.columns["instruction"])
    subset, subset_error = text_of(fields, schema.columns["category"])
    if error or subset_error:
        return error or f"{subset_error}"
    if not question.strip():
        return f"no {schema.columns['instruction']!r}"
    # Files with a single subset have no such column, or an empty one: the file name is the subset.
    if not subset.strip() and source.paths:
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
        if SURROGATE.search("".join(texts)):
            return f"{column!r} {HALF}"
        answers += [(author, text) for text in texts]
    if source.subsets and subset not in source.subsets:
        return []
    all_responses = "\x00".join(answer.strip() for _, answer in answers)
    return [
        Dialogue(
            (Turn({"instruction": question, "context": "", "category": subset}, answer),),
            category=subset,
            author=author,
            all_responses=all_responses,
        )
        for author, answer in answers
        if source.answers in ("both", author)
    ]


def _kind(value: object) -> str:
    return type(value).__name__ if not isinstance(value, list) else "a list with other values"


def _read_messages(row: Row, schema: Schema, source: Source) -> list[Dialogue] | str:
    fields, column = row.fields or {}, schema.columns["messages"]
    dialogue = messages.dialogue(fields.get(column), column, source.ignore)
    if isinstance(dialogue, str):
        return dialogue
    extra, error = _extra_fields(fields, schema, source)
    turns = tuple(replace(turn, fields=extra | turn.fields) for turn in dialogue.turns)
    return error or _completed(replace(dialogue, turns=turns, category=extra["category"]), fields, schema, source)


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
    if row.fields is None:
        return f"{row.error}"
    for column in schema.columns.values():
        if isinstance(value := row.fields.get(column), Unreadable):
            return f"{column!r} is {value.reason}"
    return schema.read(row, schema, source)


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
    names = ", ".join(name if name.isidentifier() else repr(name) for name in sorted(present))
    remedy = "rename them, or describe the data set in YAML with columns: (docs/data.md)"
    remedy = f"is it raw text? then text@{where}" if "text" in present else remedy
    raise UserError(f"{where}: columns {names} match no known schema ({schemas}); {remedy}")


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
    if any(turn.messages for turn in dialogue.turns) and not template.is_chat:
        return f"has a system message after other messages, for which template {template.name!r} has no place"
    if "system" in template.fields:
        fields = {"system": dialogue.system}
        dialogue = replace(dialogue, turns=tuple(replace(turn, fields=turn.fields | fields) for turn in dialogue.turns))
    turns = tuple(_turn(turn, template) for turn in dialogue.turns)
    if any(turn.fields.get("context", "").strip() for turn in dialogue.turns) and not template.takes_context():
        return f"has a context, but template {template.name!r} has no field for it; add {{context}} to the template"
    system = without_empty_lines(dialogue.system) if "system" not in template.fields else ""
    if system and not template.is_chat:
        first, *later = turns
        turns, system = ((f"{system}\n\n{first[0]}", first[1]), *later), ""
    if dialogue.all_responses:
        document = f"{turns[0][0]}\x00{dialogue.all_responses}"
    else:
        document = "\x00".join([*([system] if system else []), *(text for turn in turns for text in turn)])
    return Example(
        turns,
        document,
        dialogue.category,
        dialogue.author,
        dialogue.prefixed,
        template.is_chat,
        system,
        tuple(i for i, turn in enumerate(dialogue.turns) if not turn.scored),
        dialogue.trailing,
        _messages(dialogue),
        sum(turn.joined for turn in dialogue.turns),
    )


def _messages(dialogue: Dialogue) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Messages of the prompt of each turn, without empty ones; nothing if no turn has a system message of its own."""
    if not any(turn.messages for turn in dialogue.turns):
        return ()
    stripped = [[(role, without_empty_lines(text)) for role, text in turn.messages] for turn in dialogue.turns]
    return tuple(tuple((role, text) for role, text in messages if text) for messages in stripped)


def _turn(turn: Turn, template: Template) -> tuple[str, str]:
    fields, response = turn.fields, turn.response
    if template.strips:
        fields = {name: without_empty_lines(value) for name, value in fields.items()}
        response = without_empty_lines(response)
    elif not fields.get("context", "").strip():
        fields = fields | {"context": ""}
    if not template.is_chat:
        prompt, lead = template.prompt(fields) if fields["instruction"] else ("", "")
        return prompt, lead + response if response.strip() else ""
    context = fields.get("context")
    return (f"{fields['instruction']}\n\n{context}" if context else fields["instruction"]), response
