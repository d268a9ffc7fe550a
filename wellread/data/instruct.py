"""Instruction rows: their schemas and the templates that turn a row into a prompt and a response."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wellread.config import RunConfig
from wellread.data.compile import corpus_key
from wellread.data.sources import Source, fingerprint


@dataclass(frozen=True)
class Schema:
    """Columns of an instruction set and the texts made from them."""

    name: str
    instruction: str
    context: str
    response: str
    with_context: str
    without_context: str

    @property
    def required(self) -> tuple[str, str]:
        """Columns that no row may lack."""
        return (self.instruction, self.response)


@dataclass(frozen=True)
class Example:
    """One instruction row as text: loss is carried by `response` alone."""

    prompt: str
    response: str
    category: str


_INTRO = "Below is an instruction that describes a task"
SCHEMAS = {
    "dolly": Schema(
        "dolly",
        "instruction",
        "context",
        "response",
        "### Instruction:\n{instruction}\n\n### Context:\n{context}\n\n### Response:\n",
        "### Instruction:\n{instruction}\n\n### Response:\n",
    ),
    "alpaca": Schema(
        "alpaca",
        "instruction",
        "input",
        "output",
        f"{_INTRO}, paired with an input that provides further context. Write a response that appropriately completes "
        "the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n",
        f"{_INTRO}. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n",
    ),
}
"""Alpaca's texts are those of the Stanford Alpaca release; Dolly's have its section headings, without preamble."""


def recognise(columns: Iterable[str], where: str) -> Schema:
    """Find the schema whose columns a row has.

    Raises
    ------
    ValueError
        When none fits; names the columns that are there.
    """
    present = set(columns)
    for schema in SCHEMAS.values():
        if set(schema.required) <= present:
            return schema
    wanted = "; ".join(f"{s.name}: {s.instruction}, {s.context}, {s.response}" for s in SCHEMAS.values())
    raise ValueError(f"{where}: columns {', '.join(sorted(present))} fit no known schema ({wanted})")


_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can spell these as \\ud83d; no encoding, so no tokenizer and no hash, takes them."""


def example(fields: dict[str, Any], schema: Schema) -> Example | str:
    """Apply the template to one row.

    Returns
    -------
    Example or str
        The texts; or, for a broken row, one phrase that says what is wrong. An empty response is no error here.
    """
    instruction, response = fields.get(schema.instruction), fields.get(schema.response)
    context = fields.get(schema.context)
    if instruction is not None and not isinstance(instruction, str):
        return f"{schema.instruction!r} is {type(instruction).__name__}, not text"
    if not instruction or not instruction.strip():
        return f"no {schema.instruction!r}"
    if schema.response not in fields:
        return f"no {schema.response!r}"
    if response is not None and not isinstance(response, str):
        return f"{schema.response!r} is {type(response).__name__}, not text"
    if context is not None and not isinstance(context, str):
        return f"{schema.context!r} is {type(context).__name__}, not text"
    for name in (schema.instruction, schema.context, schema.response, "category"):
        if _SURROGATE.search(str(fields.get(name) or "")):
            return f"{name!r} holds half of a surrogate pair (a character cut in two), which is no text"
    text = schema.with_context if context and context.strip() else schema.without_context
    prompt = text.replace("{instruction}", instruction.strip(), 1)
    if context and context.strip():
        head, marker, tail = prompt.rpartition("{context}")
        prompt = head + context.strip() + tail if marker else prompt
    return Example(prompt, (response or "").strip(), str(fields.get("category") or ""))


TEMPLATES_VERSION = 1
"""Raise it when a text in SCHEMAS changes: then corpora are compiled anew."""


def corpus_settings(config: RunConfig, source: Source, tokenizer: str) -> dict[str, Any]:
    """Everything that decides what an instruction corpus holds; its key names the corpus.

    Parameters
    ----------
    config : RunConfig
        Resolved.
    tokenizer : str
        Fingerprint of the tokenizer, or what one is trained with.
    """
    return {
        "kind": "instruction",
        "templates": TEMPLATES_VERSION,
        "source": fingerprint(source),
        "schema": source.schema,
        "tokenizer": tokenizer,
        "seq_len": config.seq_len,
        "holdout": config.holdout,
        "holdout_seed": config.holdout_seed,
        "max_bad_rows": config.max_bad_rows,
    }


def corpus_directory(config: RunConfig, source: Source, tokenizer: str) -> Path:
    """Where the compiled corpus of a run lies, compiled or not yet."""
    return Path(config.corpora) / f"{source.name}-{corpus_key(corpus_settings(config, source, tokenizer))}"
