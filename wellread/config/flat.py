"""Dataclasses as dicts, ready for YAML or JSON, and back.

A section is a field that contains a dataclass and is marked with `SECTION`. Its fields become keys of the outer dict,
as they are flags on the command line; its field `name` becomes a key with the name of the section. Any other
dataclass becomes a nested dict.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from wellread.errors import UserError
from wellread.shapes import REMEDY, mismatch

SECTION = {"section": True}
"""Metadata of a field that is a section."""


def unit(name: str) -> dict[str, str]:
    """Metadata of a field that is measured in this unit; ``--help`` shows it after the default."""
    return {"unit": name}


@dataclass(frozen=True)
class Key:
    """One key of a dataclass as a dict."""

    key: str
    section: str | None
    """Which section it is in."""
    name: str
    """The field, of the section or of the outer dataclass."""


def sections_of(kind: type[Any]) -> dict[str, type[Any]]:
    """The sections of a dataclass, by name."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind) if f.metadata.get("section")}


def keys_of(kind: type[Any]) -> dict[str, Key]:
    """The keys of a dataclass as a dict."""
    sections, keys = sections_of(kind), []
    for f in fields(kind):
        if f.name in sections:
            inside = fields(sections[f.name])
            keys += [Key(f.name if each.name == "name" else each.name, f.name, each.name) for each in inside]
        else:
            keys.append(Key(f.name, None, f.name))
    return {each.key: each for each in keys}


def hints_of(kind: type[Any]) -> dict[str, Any]:
    """The type of each key of a dataclass as a dict."""
    outer = get_type_hints(kind)
    inside = {name: get_type_hints(section) for name, section in sections_of(kind).items()}
    return {k: (inside[each.section] if each.section else outer)[each.name] for k, each in keys_of(kind).items()}


def units_of(kind: type[Any]) -> dict[str, str]:
    """The unit of each key of a dataclass as a dict that has one."""
    sections = sections_of(kind)
    nested = [units_of(section) for section in sections.values()]
    return {key: name for units in nested for key, name in units.items()} | {
        f.name: f.metadata["unit"] for f in fields(kind) if "unit" in f.metadata
    }


def flat(config: Any) -> dict[str, Any]:
    """The value of each key; nested dataclasses are not converted."""
    keys = keys_of(type(config)).values()
    return {each.key: getattr(getattr(config, each.section) if each.section else config, each.name) for each in keys}


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dict of a dataclass."""
    values = asdict(config)
    keys = keys_of(type(config)).values()
    return {each.key: (values[each.section] if each.section else values)[each.name] for each in keys}


def from_dict(kind: type[Any], values: dict[str, Any]) -> Any:
    """Build dataclass `kind` from a dict as `to_dict` returns it; nested dataclasses may be built already.

    Raises
    ------
    UserError
        When a key is unknown, or a nested dataclass has no settings.
    """
    keys = keys_of(kind)
    if unknown := sorted(values.keys() - keys.keys()):
        raise UserError(f"{kind.__name__}: unknown keys {', '.join(unknown)}; written by another version of wellread?")
    hints, sections = get_type_hints(kind), sections_of(kind)
    outer: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {name: {} for name in sections}
    for key, value in values.items():
        where = keys[key]
        if where.section:
            inside[where.section][where.name] = value
        elif is_dataclass(hints[key]) and isinstance(value, dict):
            outer[key] = from_dict(hints[key], value)
        elif is_dataclass(hints[key]) and value is None:
            raise UserError(f"{key}: contains no settings; leave it out, or write one per line below it")
        else:
            outer[key] = value
    return kind(**outer, **{name: sections[name](**fields) for name, fields in inside.items()})


def from_file(kind: type[Any], values: Any, path: object) -> Any:
    """As `from_dict`, for the content of a file that wellread has written.

    Raises
    ------
    UserError
        When a value is missing, unknown, or has another type; names the file and the key.
    """
    problem = mismatch(values, shape_of(kind), "")
    try:
        if not problem:
            return from_dict(kind, values)
    except (TypeError, UserError) as error:  # a missing key, an unknown one, or a value that is refused
        problem = str(error)
    raise UserError(f"{path}: damaged ({problem}); {REMEDY}")


def shape_of(kind: Any) -> Any:
    """The shape (`wellread.shapes`) of a type as a dict or in JSON."""
    origin, inside = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return {key: shape_of(hint) for key, hint in hints_of(kind).items()} if isinstance(kind, type) else object
    if kind is NoneType:
        return None
    if origin in (Union, UnionType):
        shapes = [shape_of(each) for each in inside]
        return tuple(each for shape in shapes for each in (shape if isinstance(shape, tuple) else (shape,)))
    if origin is Literal:  # only texts in this project
        return str
    if origin in (tuple, list) or kind in (tuple, list):
        return [shape_of(inside[0])] if inside else list
    if origin is dict:
        return dict
    return object if kind is Any else kind
