"""Reading text that users write: UTF-8 in any locale, without a byte-order mark; JSON without repeated keys.

Notepad, Excel and PowerShell write a byte-order mark. Kept, it would be the first character of the text.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """Text of a file; UnicodeDecodeError when it is not UTF-8."""
    return path.read_text(encoding="utf-8-sig")


def unmarked(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Blocks of a file without its byte-order mark, which may be split over several blocks."""
    blocks = iter(blocks)
    start = b""
    for block in blocks:
        start += block
        if len(start) >= len(codecs.BOM_UTF8):
            break
    start = start.removeprefix(codecs.BOM_UTF8)
    if start:
        yield start
    yield from blocks


class RepeatedKey(ValueError):
    """A JSON object has a key twice, so it is unknown which value is meant."""

    def __init__(self, key: str) -> None:
        super().__init__(f"key {key!r} appears twice in an object; remove one")


class Parser:
    """A JSON parser that notices keys that appear twice in an object; `json` keeps the last of them."""

    def __init__(self) -> None:
        self._repeated = list[str]()
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            self._repeated.append(str(repeated(keys)))
        return value

    def raw_decode(self, text: str, at: int) -> tuple[Any, int, RepeatedKey | None]:
        """Value that begins at `at`, the position after it, and the first repeated key or None."""
        self._repeated.clear()
        value, stop = self._decoder.raw_decode(text, at)
        return value, stop, RepeatedKey(self._repeated[0]) if self._repeated else None

    def decode(self, text: str) -> Any:
        """Value of a whole text; JSONDecodeError (a ValueError) or RepeatedKey when it is invalid."""
        self._repeated.clear()
        value = self._decoder.decode(text)
        if self._repeated:
            raise RepeatedKey(self._repeated[0])
        return value


def repeated(names: Iterable[str]) -> str | None:
    """First name that appears twice, or None."""
    before = set[str]()
    for name in names:
        if name in before:
            return name
        before.add(name)
    return None
