"""The shape of JSON files that wellread writes: checked once, when a file is read.

A shape is a type, a pattern that a text matches, a tuple of alternatives (None is null), ``[shape]`` for a list, or a
dict: a shape per key. The key ``...`` means all keys that the dict does not name. Keys may be missing, because older
versions do not write all, and others may be present; reading a missing key is an error that names the file and the
key (`Content`).
"""

from __future__ import annotations

import re
from typing import Any

from wellread.errors import UserError

REMEDY = "restore it from a copy"
LONGEST_VALUE = 40
"""Characters of a wrong value that an error repeats."""


class Content(dict[str, Any]):
    """A JSON object that knows its file; reading a missing key is a UserError."""

    where: str
    """The file, and which object of it."""

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.where}: damaged ({key!r} is missing); {REMEDY}")


def checked(value: Any, shape: Any, path: object) -> Any:
    """The value of a file with `Content` instead of its dicts.

    Raises
    ------
    UserError
        When the value does not have this shape; names the file and the key.
    """
    problem = mismatch(value, shape, "")
    if problem:
        raise UserError(f"{path}: damaged ({problem}); {REMEDY}")
    return _content(value, str(path))


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


def _content(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        content = Content((name, _content(each, where)) for name, each in value.items())
        content.where = where
        return content
    return [_content(each, where) for each in value] if isinstance(value, list) else value
