"""What ``--help`` shows: a short usage line, then flags by section, the most used first, each with default and unit."""

from __future__ import annotations

import shutil
from argparse import SUPPRESS, Action, ArgumentParser, RawDescriptionHelpFormatter, _ArgumentGroup
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from wellread.config.flat import hints_of, keys_of, sections_of, units_of

HEADINGS = {"positional arguments": "arguments", "options": "flags"}
"""Names of argparse's own groups."""
METAVARS = {int: "N", float: "X", bool: "{true,false}"}
TEXT_METAVARS = {"template_date": "YYYY-MM-DD"}
TEXTS = {
    "help": "Show this help and exit.",
    "print_config": "Print all settings as YAML and exit; =skip_default prints only those that are not defaults.",
}
MOST_USED = "most used"
GENERAL = "help, and settings from a file"
UNUSED = "flags of run and plan (not used to compile)"


class Formatter(RawDescriptionHelpFormatter):
    """Formats the help of every command; at most 120 columns wide."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(120, shutil.get_terminal_size((100, 24)).columns))

    def add_usage(
        self, usage: str | None, actions: Iterable[Action], groups: Iterable[Any], prefix: str | None = None
    ) -> None:
        """Add the usage line, in which ``[FLAGS]`` represents all flags that may be left out."""
        actions = list(actions)
        parts = [action for action in actions if not action.option_strings or action.required]
        if len(actions) - len(parts) > 1:  # more than --help
            parts.append(Action([], "flags", nargs="?", metavar="FLAGS"))
        super().add_usage(usage, parts, [], prefix)

    def start_section(self, heading: str | None) -> None:
        """Start a group of arguments."""
        super().start_section(HEADINGS.get(heading or "", heading))

    def _get_help_string(self, action: Action) -> str | None:
        return with_default(action)


def with_default(action: Action) -> str | None:
    """The help of a flag, with its default and unit where the text does not name one."""
    text, default = TEXTS.get(action.dest, action.help), action.default
    is_off = default is False and action.nargs == 0
    if not text or "default:" in text or not action.option_strings or default is None or default == SUPPRESS:
        return text
    unit = getattr(action, "unit", "")
    value = "off" if is_off else _written(default)
    return f"{text.rstrip('.')} (default: {value}{f' {unit}' if unit else ''}).".replace("%", "%%")


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe(parser: ArgumentParser, kind: type[Any]) -> None:
    """Give the flags of dataclass `kind` their units, and a short name for their values."""
    nested = _nested(kind)
    hints, units = hints_of(kind), units_of(kind)
    for key, hint in nested.items():
        hints |= {f"{key}.{name}": each for name, each in get_type_hints(hint).items()}
        units |= {f"{key}.{name}": unit for name, unit in units_of(hint).items()}
    for action in parser._actions:
        if action.dest == "print_config":
            action.metavar = ""  # jsonargparse's contains a backspace
        if action.dest in nested and action.option_strings:
            action.help = f"YAML file with values of the --{action.dest}.* flags."
        if action.dest in units:
            action.unit = units[action.dest]  # type: ignore[attr-defined]
        if action.dest in hints and action.metavar is None and not action.choices:
            action.metavar = _metavar(action.dest, hints[action.dest])


def _nested(kind: type[Any]) -> dict[str, Any]:
    """Keys of a dataclass that are dataclasses themselves, as optim."""
    return {key: hint for key, hint in hints_of(kind).items() if is_dataclass(hint)}


def _metavar(key: str, hint: Any) -> str | None:
    parts = [part for part in getattr(hint, "__args__", ()) if part is not type(None)] or [hint]
    words = [word for part in parts for word in getattr(part, "__args__", ()) if isinstance(word, str)]
    if bool in parts and words:  # true and false are only other words for on and off
        return f"{{{','.join(words)}}}"
    for kind, metavar in METAVARS.items():
        if kind in parts:
            return f"{metavar}|auto" if len(parts) > 1 else metavar
    name = key.rpartition(".")[2]
    return TEXT_METAVARS.get(name, name.upper()) if parts == [str] else None


def arrange(
    parser: ArgumentParser, kind: type[Any], most_used: Sequence[str], only_sections: Sequence[str] = ()
) -> None:
    """Group the flags of a parser: `most_used` first, then a group for each section of dataclass `kind`.

    Parameters
    ----------
    only_sections : sequence of str
        If not empty: the sections that the command uses; the flags of all others come last, in one group.
    """
    keys, nested = keys_of(kind), _nested(kind)
    sections = {k: v for k, v in (sections_of(kind) | nested).items() if k in only_sections or not only_sections}
    titles = {MOST_USED: MOST_USED, GENERAL: GENERAL}
    titles |= {name: f"{name}: {_first_line(section)}" for name, section in sections.items()}
    titles |= {UNUSED: UNUSED} if only_sections else {}
    actions: dict[str, list[Action]] = {name: [] for name in titles}
    for action in parser._actions:
        if action.option_strings:
            name = _group_of(action, keys, nested, most_used)
            actions[name if name in titles else UNUSED].append(action)
    actions[MOST_USED].sort(key=lambda action: most_used.index(action.dest))
    positional = parser._positionals
    parser._action_groups[:] = [positional]
    for name, title in titles.items():
        # argparse adds later flags to its own group of options, so that one has to stay
        group = parser._optionals if name == GENERAL else _ArgumentGroup(parser, title)
        group.title, group._group_actions = title, actions[name]
        parser._action_groups.append(group)


def _group_of(action: Action, keys: Any, nested: Any, most_used: Sequence[str]) -> str:
    section = action.dest.partition(".")[0]
    if action.dest in most_used:
        return MOST_USED
    if section in nested:
        return section
    return str(keys[action.dest].section) if action.dest in keys else GENERAL


def _first_line(kind: type[Any]) -> str:
    text = (kind.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    is_name = not text.partition(" ")[0].rstrip(",:").istitle()  # AdamW, LoRA
    return text if is_name else text[:1].lower() + text[1:]
