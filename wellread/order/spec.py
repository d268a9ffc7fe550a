"""What `--order` may say, taken apart; no file is read."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wellread.errors import UserError

Kind = Literal["shuffle", "sequential", "sorted", "filter", "file", "curriculum"]

FORMS = "shuffle, sequential, sorted:METRIC:asc, sorted:METRIC:desc, filter:METRIC>NUMBER, file:IDS.npy"
"""Forms that a phase of a curriculum may have; a run may have `curriculum:FILE.yaml` as well."""
SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Condition:
    """A metric compared with a number."""

    metric: str
    sign: str
    value: float

    def holds(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Where it holds, (n,), of the metric's `values`, (n,)."""
        return np.asarray(SIGNS[self.sign](values, self.value))

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.value:.17g}"


@dataclass(frozen=True, kw_only=True)
class OrderSpec:
    """One order as it is asked for."""

    kind: Kind
    metric: str = ""
    """Of `sorted`."""
    descending: bool = False
    condition: Condition | None = None
    """Of `filter`."""
    path: str = ""
    """Of `file` and `curriculum`."""

    @property
    def by(self) -> str:
        """Metric and direction, or the condition; empty for the other kinds."""
        if self.kind == "sorted":
            return f"{self.metric}:{'desc' if self.descending else 'asc'}"
        return str(self.condition) if self.condition else ""

    @property
    def is_listed(self) -> bool:
        """Whether its ids are a list that has to be kept."""
        return self.kind not in ("shuffle", "sequential")


def parse(text: str, where: str = "--order") -> OrderSpec:
    """Take an order apart.

    Parameters
    ----------
    where : str
        What an error begins with.

    Raises
    ------
    UserError
        When it is none.
    """
    kind, colon, rest = text.strip().partition(":")
    if kind in ("shuffle", "sequential") and not colon:
        return OrderSpec(kind="shuffle" if kind == "shuffle" else "sequential")
    if kind == "sorted":
        metric, _, direction = rest.partition(":")
        if not metric or direction not in ("asc", "desc"):
            raise UserError(f"{where} {text}: expected sorted:METRIC:asc or sorted:METRIC:desc")
        return OrderSpec(kind="sorted", metric=metric, descending=direction == "desc")
    if kind == "filter":
        return OrderSpec(kind="filter", condition=condition(rest, f"{where} {text}"))
    if kind in ("file", "curriculum"):
        form = "file:IDS.npy" if kind == "file" else "curriculum:FILE.yaml"
        if not rest:
            raise UserError(f"{where} {text}: expected {form}")
        return OrderSpec(kind="file" if kind == "file" else "curriculum", path=rest)
    raise UserError(f"{where} {text}: no such order; choose {FORMS} or curriculum:FILE.yaml")


def condition(text: str, where: str) -> Condition:
    """Take ``METRIC>NUMBER`` apart; the signs are > < >= <= ==.

    Raises
    ------
    UserError
        When it is none; begins with `where`.
    """
    found = re.fullmatch(r"\s*([^\s<>=:]+)\s*(>=|<=|==|>|<)\s*(\S+)\s*", text)
    try:
        value = float(found[3]) if found else math.nan
    except ValueError:
        value = math.nan
    if found is None or not math.isfinite(value):
        raise UserError(f"{where}: expected METRIC>NUMBER (or <, >=, <=, ==), e.g. n_tokens>64; quote it in a shell")
    return Condition(found[1], found[2], value)
