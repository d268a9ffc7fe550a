"""Reading text that users write: UTF-8 in any locale, without a byte-order mark; JSON without repeated keys.

Notepad, Excel and PowerShell write a byte-order mark. Kept, it would be the first character of the text.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from wellread.errors import UserError
from wellread.whole import read_whole

PLAIN = (".jsonl", ".json", ".csv", ".txt", ".yaml", ".yml", ".jinja")
"""Endings of files that contain text."""


MOST_VALUES = 10_000_000
"""Most values of a YAML file; a few lines of aliases of aliases can describe billions."""
FOREIGN_CODE = "code of the model's author, which is never executed"
"""What errors say of files that name Python code."""
LFS_POINTER = b"version https://git-lfs"
"""First bytes of the file that Git stores in place of a large one."""
START = 64
"""Bytes at the start of a file that show its encoding."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def foreign(start: bytes) -> str:
    """What a file contains instead of UTF-8 text, in one phrase with the remedy; empty if it may be text.

    Parameters
    ----------
    start : bytes
        The first bytes of the file, decompressed.
    """
    start = start[:START]
    if start.startswith(LFS_POINTER):
        return "is a Git LFS pointer, not the file itself; run git lfs pull in its folder"
    if start.startswith(_UTF32):
        return "is UTF-32; save it as UTF-8"
    if start.startswith(_UTF16):
        return "is UTF-16; save it as UTF-8"
    if 3 * start.count(0) > len(start):
        return "is UTF-16 or UTF-32 without its mark, or not text; save it as UTF-8"
    return ""


def refuse_foreign(path: Path) -> None:
    """Raise UserError when a file is only a Git LFS pointer, or should be text but is UTF-16."""
    with open(path, "rb") as file:
        start = file.read(START)
    if (problem := foreign(start)) and (path.suffix in PLAIN or start.startswith(LFS_POINTER)):
        raise UserError(f"{path}: {problem}")


def refuse_marked(path: Path) -> None:
    """Raise UserError when a file begins with a byte-order mark: for files that other libraries read."""
    with open(path, "rb") as file:
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            raise UserError(f"{path}: begins with a byte-order mark; save it as UTF-8 without one")


def read_text(path: Path) -> str:
    """Text of a file.

    Raises
    ------
    UserError
        When it is not UTF-8.
    """
    content = read_whole(path)
    if problem := foreign(content):
        raise UserError(f"{path}: {problem}")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start} of the file; save it as UTF-8") from None


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


@cache
def yaml_loader(name: str) -> Any:
    """A loader of PyYAML, by name, that refuses keys that appear twice; PyYAML takes the last one."""
    import yaml

    base: Any = getattr(yaml, name)

    class Loader(base):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if (name := repeated(keys)) is not None:
                raise yaml.YAMLError(f"key {name!r} appears twice; remove one")
            return super().construct_mapping(node, deep)

    return Loader


def load_yaml(data: bytes | str, loader: str = "SafeLoader") -> Any:
    """Parse YAML. Aliases are allowed, but not to describe more values than a person can mean.

    Parameters
    ----------
    loader : str
        Name of a loader of PyYAML that creates only simple values.

    Raises
    ------
    yaml.YAMLError
        Also when a key appears twice, or values contain each other, are nested too deeply, or become too many once
        aliases are replaced.
    """
    import yaml

    try:
        value = yaml.load(data, Loader=yaml_loader(loader))
        if _n_values(value, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"describes more than {MOST_VALUES:,} values")
    except RecursionError:
        raise yaml.YAMLError("is nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits, or a date that does not exist
        if isinstance(error, UnicodeDecodeError):
            raise
        raise yaml.YAMLError(str(error).partition(";")[0]) from None
    return value


def _n_values(value: Any, counts: dict[int, int]) -> int:
    """Number of values that `value` describes once aliases are replaced; each distinct object is visited once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counts:
        counts[id(value)] = MOST_VALUES + 1  # for an object inside itself
        inner = value.values() if isinstance(value, dict) else value
        counts[id(value)] = min(1 + sum(_n_values(each, counts) for each in inner), MOST_VALUES + 1)
    return counts[id(value)]
