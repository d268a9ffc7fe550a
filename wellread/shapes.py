"""The shape of JSON files that wellread writes: checked once, when a file is read.

A shape is a type, a pattern that a text matches, a tuple of alternatives (None is null), ``[shape]`` for a list, or a
dict: a shape per key. The key ``...`` means all keys that the dict does not name. Keys may be missing, because older
versions do not write all, and others may be present; reading a missing key of what `wellread.files.read_json` returns
is an error that names the file and the key.
"""

from __future__ import annotations

import re
from typing import Any

REMEDY = "restore it from a copy"
LONGEST_VALUE = 40
"""Characters of a wrong value that an error repeats."""


def mismatch(value: Any, shape: Any, key: str) -> str:
    """What is wrong with a value in one phrase, or an empty text."""
    if isinstance(shape, tuple):
        return "" if any(not mismatch(value, each, key) for each in shape) else _expected(value, shape, key)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _expected(value, list, key)
        return next(filter(None, (mismatch(each, shape[0], f"{key}[{i}]") for i, each in enumerate(value))), "")
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _expected(value, dict, key)
        pairs = ((name, each, shape.get(name, shape.get(...))) for name, each in value.items())
        problems = (mismatch(each, of, f"{key}.{name}" if key else name) for name, each, of in pairs if of is not None)
        return next(filter(None, problems), "")
    if isinstance(shape, re.Pattern):
        matches = isinstance(value, str) and shape.fullmatch(value)
        return "" if matches else _expected(value, str, key).replace(NAMES[str], "a text in its usual form")
    if shape is None:
        return "" if value is None else _expected(value, shape, key)
    if shape is object or (isinstance(value, shape) and not (shape is int and isinstance(value, bool))):
        return ""
    is_whole = shape is float and isinstance(value, int) and not isinstance(value, bool)
    return "" if is_whole else _expected(value, shape, key)


def unknown_keys(value: Any, shape: Any, key: str) -> list[str]:
    """Keys of objects that their shape does not name, dotted."""
    if isinstance(shape, list) and isinstance(value, list):
        return [name for i, each in enumerate(value) for name in unknown_keys(each, shape[0], f"{key}[{i}]")]
    if not isinstance(shape, dict) or not isinstance(value, dict):
        return []
    names = {name: f"{key}.{name}" if key else name for name in value}
    unknown = [] if ... in shape else [names[name] for name in value if name not in shape]
    pairs = ((names[name], each, shape.get(name, shape.get(...))) for name, each in value.items())
    return [*unknown, *(inner for name, each, of in pairs for inner in unknown_keys(each, of, name))]


NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _expected(value: Any, shape: Any, key: str) -> str:
    alternatives = shape if isinstance(shape, tuple) else (shape,)
    kinds = [list if isinstance(each, list) else dict if isinstance(each, dict) else each for each in alternatives]
    words = " or ".join("null" if kind is None else NAMES[kind] for kind in kinds)
    text = repr(value)
    text = text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
    return f"{key or 'content'}: expected {words}, found {text}"
