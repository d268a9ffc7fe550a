"""Which parameters `--freeze` freezes."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable


def frozen(names: Iterable[str], patterns: str) -> dict[str, list[str]]:
    """Names of parameters that match each of the shell patterns, such as ``*.layers.[0-3].*,*.embed_in.*``.

    Parameters
    ----------
    patterns : str
        Separated by commas. A pattern matches complete names.
    """
    every = list(names)
    return {pattern: fnmatch.filter(every, pattern) for pattern in map(str.strip, patterns.split(","))}
