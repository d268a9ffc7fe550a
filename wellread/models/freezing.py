"""Which parameters `--freeze` freezes."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection

from wellread.errors import UserError


def frozen(names: Collection[str], patterns: str, *, possible: Collection[str] = ()) -> set[str]:
    """Names of parameters that match one of the shell patterns, such as ``*.layers.[0-3].*,*.embed_in.*``.

    Parameters
    ----------
    names
        Names of all parameters of the model.
    patterns : str
        Separated by commas. A pattern matches complete names.
    possible
        Names of parameters that the model has or not, depending on its weight files.

    Raises
    ------
    UserError
        When a pattern matches no parameter (lists the names of parameters, without layer numbers), or all match.
    """
    matched: set[str] = set()
    for pattern in map(str.strip, patterns.split(",")):
        if not (by_pattern := fnmatch.filter([*names, *possible], pattern)):
            available = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)
            raise UserError(f"--freeze {pattern}: matches no parameter; the parameters are {', '.join(available)}")
        matched.update(by_pattern)
    if matched.issuperset(names):
        raise UserError(f"--freeze {patterns}: freezes all parameters, so nothing can be trained; freeze fewer")
    return matched
