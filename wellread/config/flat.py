"""Dataclasses as dicts, ready for YAML or JSON, and back.

A section is a field whose own fields are keys of the whole, as they are flags of the command line; its field `name` has
the section's name there. Any other dataclass is a nested dict.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from wellread.errors import UserError

SECTION = {"section": True}
"""Metadata of a field that is a section."""


@dataclass(frozen=True)
class Key:
    """One key of a dataclass as a dict."""

    key: str
    section: str | None
    """Which section it is in."""
    name: str
    """The field, of the section or of the whole."""


def sections_of(kind: type[Any]) -> dict[str, type[Any]]:
    """The sections of a dataclass, by name."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind) if f.metadata.get("section")}


def keys_of(kind: type[Any]) -> dict[str, Key]:
    """The keys of a dataclass as a dict."""
    sections, found = sections_of(kind), []
    for f in fields(kind):
        if f.name in sections:
            inside = fields(sections[f.name])
            found += [Key(f.name if each.name == "name" else each.name, f.name, each.name) for each in inside]
        else:
            found.append(Key(f.name, None, f.name))
    return {each.key: each for each in found}


def hints_of(kind: type[Any]) -> dict[str, Any]:
    """The type of each key of a dataclass as a dict."""
    whole = get_type_hints(kind)
    inside = {name: get_type_hints(section) for name, section in sections_of(kind).items()}
    return {k: (inside[each.section] if each.section else whole)[each.name] for k, each in keys_of(kind).items()}


def flat(config: Any) -> dict[str, Any]:
    """The value of each key; a nested dataclass is left as it is."""
    keys = keys_of(type(config)).values()
    return {each.key: getattr(getattr(config, each.section) if each.section else config, each.name) for each in keys}


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dict of a dataclass."""
    values = asdict(config)
    keys = keys_of(type(config)).values()
    return {each.key: (values[each.section] if each.section else values)[each.name] for each in keys}


def from_dict(kind: type[Any], values: dict[str, Any]) -> Any:
    """Build dataclass `kind` from a dict, as `to_dict` made it; a nested dataclass may be one already.

    Raises
    ------
    UserError
        When a key is not one of `kind`, or a nested dataclass has no settings.
    """
    known = keys_of(kind)
    if unknown := sorted(values.keys() - known.keys()):
        raise UserError(f"{kind.__name__}: unknown keys {', '.join(unknown)}; written by another version of wellread?")
    hints, sections = get_type_hints(kind), sections_of(kind)
    made: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {name: {} for name in sections}
    for key, value in values.items():
        where = known[key]
        if where.section:
            inside[where.section][where.name] = value
        elif is_dataclass(hints[key]) and isinstance(value, dict):
            made[key] = from_dict(hints[key], value)
        elif is_dataclass(hints[key]) and value is None:
            raise UserError(f"{key}: holds no settings; leave it out, or write one a line below it")
        else:
            made[key] = value
    return kind(**made, **{name: sections[name](**given) for name, given in inside.items()})
