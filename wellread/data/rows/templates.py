"""Templates: named text files that turn an instruction and its context into a prompt.

``configs/templates/NAME.txt`` contains the text of a sample, with fields in braces and ``{response}`` at its end.
``NAME_context.txt`` replaces it for rows with a context. All other braces are text. ``chat`` is not such a file: it is
the chat template of the tokenizer, or ``chat.jinja`` if the tokenizer has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wellread.config import CONFIGS
from wellread.errors import UserError
from wellread.text_io import read_text

FOLDER = CONFIGS / "templates"
CHAT = "chat"
CHAT_FILE = FOLDER / "chat.jinja"
FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
Parts = tuple[str, ...]
"""Alternating text and field names: text, field, text, field, … text."""


@dataclass(frozen=True)
class Template:
    """A template with its two prompts; for `chat` they are empty."""

    name: str
    texts: tuple[str, ...]
    """Content of its files, which is part of a corpus's identity."""
    plain: Parts = ()
    with_context: Parts = ()
    lead: tuple[str, str] = ("", "")
    """Spaces between prompt and response, without and with context; they are tokenized with the response."""

    @property
    def is_chat(self) -> bool:
        """Whether the text is produced by the tokenizer's chat template."""
        return self.name == CHAT

    @property
    def strips(self) -> bool:
        """Whether whitespace around the texts of a row is removed; `none` keeps it."""
        return self.name != "none"

    @property
    def fields(self) -> set[str]:
        """Names of the fields in its prompts; none for `chat`."""
        return {*self.plain[1::2], *self.with_context[1::2]}

    def prompt(self, fields: Mapping[str, str]) -> tuple[str, str]:
        """Prompt of one turn, which has all `fields` of the template, and the spaces before its response."""
        context = bool(fields.get("context"))
        parts = self.with_context if context else self.plain
        return "".join(fields[part] if i % 2 else part for i, part in enumerate(parts)), self.lead[context]

    def takes_context(self) -> bool:
        """Whether it has a field for the context of a row."""
        return self.is_chat or "context" in self.with_context[1::2]


def load(name: str, fields: Iterable[str], where: str) -> Template:
    """Read a template by name or path.

    Parameters
    ----------
    name : str
        Name of a template in ``configs/templates``, or path of a .txt file.
    fields : iterable of str
        Fields of the rows of `where`.

    Raises
    ------
    UserError
        When the file does not exist, does not end with ``{response}``, or names an unknown field.
    """
    if name == CHAT:
        return Template(name, (read_text(CHAT_FILE),))
    path = Path(name).expanduser() if name.endswith(".txt") else FOLDER / f"{name}.txt"
    if not path.is_file():
        names = ", ".join([*sorted(p.stem for p in FOLDER.glob("*.txt") if not p.stem.endswith("_context")), CHAT])
        raise UserError(f"--template {name}: not a known template ({names}) or a .txt file")
    other = path.with_stem(f"{path.stem}_context")
    files = [path, other] if other.is_file() else [path]
    parsed = [_parse(file, {*fields}, where) for file in files]
    (plain, lead), (with_context, context_lead) = parsed[0], parsed[-1]
    return Template(name, tuple(read_text(file) for file in files), plain, with_context, (lead, context_lead))


def _parse(path: Path, fields: set[str], where: str) -> tuple[Parts, str]:
    """Text and fields up to the response, and the spaces before it."""
    prompt, marker, tail = read_text(path).partition("{response}")
    if not marker or tail.strip():
        raise UserError(f"template {path}: must end with {{response}}")
    parts = FIELD.split(prompt)
    unknown = sorted({*parts[1::2]} - fields)
    if unknown:
        names = ", ".join(f"{{{field}}}" for field in sorted(fields))
        raise UserError(f"template {path}: unknown field {{{unknown[0]}}}; {where} has {names}")
    typo = re.search(rf"\{{\s*(?:{'|'.join(sorted(fields))})\b[^{{]{{0,9}}|\{{\}}", "\n\n".join(parts[::2]))
    if typo:
        raise UserError(
            f"template {path}: {typo[0]!r} is not a valid field; write {{instruction}}, without spaces in the braces"
        )
    if not parts[1::2]:
        raise UserError(
            f"template {path}: contains no field of {where}; write {{instruction}} where the instruction belongs"
        )
    text = parts[-1].rstrip(" ")
    return (*parts[:-1], text), parts[-1][len(text) :]
