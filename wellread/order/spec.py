"""Parse the values of `--order`, without reading files."""

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
"""Orders of a phase of a curriculum; a run can also have `curriculum:FILE.yaml`."""
SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Condition:
    """Comparison of a metric with a number."""

    metric: str
    sign: str
    value: float

    def holds(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether the condition holds for each of the metric's `values`, (n,); bool, (n,)."""
        return np.asarray(SIGNS[self.sign](values, self.value))

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.value:.17g}"


@dataclass(frozen=True, kw_only=True)
class OrderSpec:
    """One order, parsed."""

    kind: Kind
    metric: str = ""
    """Only for `sorted`."""
    descending: bool = False
    condition: Condition | None = None
    """Only for `filter`."""
    path: str = ""
    """Only for `file` and `curriculum`."""

    @property
    def by(self) -> str:
        """Metric and direction, or the condition; empty for the other kinds."""
        if self.kind == "sorted":
            return f"{self.metric}:{'desc' if self.descending else 'asc'}"
        return str(self.condition) if self.condition else ""

    @property
    def is_listed(self) -> bool:
        """Whether its ids are a list that the run directory must keep."""
        return self.kind not in ("shuffle", "sequential")


def parse(text: str, where: str = "--order") -> OrderSpec:
    """Parse an order.

    Parameters
    ----------
    where : str
        Beginning of error messages.

    Raises
    ------
    UserError
        When `text` is not a valid order.
    """
    kind, colon, argument = text.strip().partition(":")
    if kind in ("shuffle", "sequential") and not colon:
        return OrderSpec(kind="shuffle" if kind == "shuffle" else "sequential")
    if kind == "sorted":
        metric, _, direction = argument.partition(":")
        if not metric or direction not in ("asc", "desc"):
            raise UserError(f"{where} {text}: expected sorted:METRIC:asc or sorted:METRIC:desc")
        return OrderSpec(kind="sorted", metric=metric, descending=direction == "desc")
    if kind == "filter":
        return OrderSpec(kind="filter", condition=condition(argument, f"{where} {text}"))
    if kind in ("file", "curriculum"):
        form = "file:IDS.npy" if kind == "file" else "curriculum:FILE.yaml"
        if not argument:
            raise UserError(f"{where} {text}: expected {form}")
        return OrderSpec(kind="file" if kind == "file" else "curriculum", path=argument)
    raise UserError(f"{where} {text}: no such order; choose {FORMS} or curriculum:FILE.yaml")


def condition(text: str, where: str) -> Condition:
    """Parse ``METRIC>NUMBER``; the signs are > < >= <= ==.

    Raises
    ------
    UserError
        When `text` is not a valid condition; the message begins with `where`.
    """
    match = re.fullmatch(r"\s*([^\s<>=:]+)\s*(>=|<=|==|>|<)\s*(\S+)\s*", text)
    try:
        value = float(match[3]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not math.isfinite(value):
        raise UserError(f"{where}: expected METRIC>NUMBER (or <, >=, <=, ==), e.g. n_tokens>64; quote it in a shell")
    return Condition(match[1], match[2], value)
