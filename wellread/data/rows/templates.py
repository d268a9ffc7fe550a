"""Templates: named text files that turn an instruction and its context into a prompt.

``configs/templates/NAME.txt`` is a whole sample with its fields in braces, ``{response}`` at its end;
``NAME_context.txt`` takes its place for rows with a context. Any other braces are text. ``chat`` is no such file: it is
the tokenizer's own chat template, or ``chat.jinja`` where the tokenizer has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wellread.config import CONFIGS
from wellread.errors import UserError

FOLDER = CONFIGS / "templates"
CHAT = "chat"
CHAT_FILE = FOLDER / "chat.jinja"
FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
Parts = tuple[str, ...]
"""Text, field, text, field, … text."""


@dataclass(frozen=True)
class Template:
    """A template's two prompts; for `chat` they are empty."""

    name: str
    texts: tuple[str, ...]
    """The files' texts: they are part of what identifies a corpus."""
    plain: Parts = ()
    with_context: Parts = ()
    lead: tuple[str, str] = ("", "")
    """Blanks between prompt and response, plain and with context; they are tokenized with the response."""

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer's chat template makes the text."""
        return self.name == CHAT

    @property
    def strips(self) -> bool:
        """Whether white space around a row's texts is taken off; `none` takes them as they are."""
        return self.name != "none"

    def prompt(self, fields: Mapping[str, str]) -> tuple[str, str]:
        """Prompt of one turn, and the blanks that lead its response."""
        context = bool(fields.get("context"))
        parts = self.with_context if context else self.plain
        return "".join(fields.get(part, "") if i % 2 else part for i, part in enumerate(parts)), self.lead[context]

    def takes_context(self) -> bool:
        """Whether a row's context has a place."""
        return self.is_chat or "context" in self.with_context[1::2]


def load(name: str, fields: Iterable[str], where: str) -> Template:
    """Read a template by name or path.

    Parameters
    ----------
    name : str
        Of a file in ``configs/templates``, or the path of a .txt file of one's own.
    fields : iterable of str
        Fields that the rows of `where` have.

    Raises
    ------
    UserError
        When it does not exist, does not end with ``{response}``, or names a field that is not there.
    """
    if name == CHAT:
        return Template(name, (CHAT_FILE.read_text(),))
    path = Path(name) if name.endswith(".txt") else FOLDER / f"{name}.txt"
    if not path.is_file():
        known = ", ".join([*sorted(p.stem for p in FOLDER.glob("*.txt") if not p.stem.endswith("_context")), CHAT])
        raise UserError(f"--template {name}: neither a known template ({known}) nor a .txt file")
    other = path.with_stem(f"{path.stem}_context")
    files = [path, other] if other.is_file() else [path]
    parsed = [_parse(file, {*fields}, where) for file in files]
    (plain, lead), (with_context, context_lead) = parsed[0], parsed[-1]
    return Template(name, tuple(file.read_text() for file in files), plain, with_context, (lead, context_lead))


def _parse(path: Path, fields: set[str], where: str) -> tuple[Parts, str]:
    """Text and fields up to the response, and the blanks before it."""
    prompt, marker, rest = path.read_text(encoding="utf-8").partition("{response}")
    if not marker or rest.strip():
        raise UserError(f"template {path}: has to end with {{response}}")
    parts = FIELD.split(prompt)
    unknown = sorted({*parts[1::2]} - fields)
    if unknown:
        known = ", ".join(f"{{{field}}}" for field in sorted(fields))
        raise UserError(f"template {path}: unknown field {{{unknown[0]}}}; {where} has {known}")
    meant = re.search(rf"\{{\s*(?:{'|'.join(sorted(fields))})\b[^{{]{{0,9}}|\{{\}}", "\n\n".join(parts[::2]))
    if meant:
        raise UserError(
            f"template {path}: {meant[0]!r} is no field; write {{instruction}}, without blanks in its braces"
        )
    if not parts[1::2]:
        raise UserError(f"template {path}: names no field of {where}; write {{instruction}} where it belongs")
    text = parts[-1].rstrip(" ")
    return (*parts[:-1], text), parts[-1][len(text) :]
