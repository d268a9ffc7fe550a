"""Checks that several sections share."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from wellread.errors import UserError


def not_empty(section: Any, **flags: str) -> None:
    """Refuse empty texts; `flags` gives the name of the flag for each field."""
    for name, flag in flags.items():
        if getattr(section, name) == "":
            raise UserError(f"--{flag}: is empty; leave it out for its default")


def at_least_one(section: Any, *names: str) -> None:
    """Refuse numbers below 1."""
    for name in names:
        value = getattr(section, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")


def date(section: Any, name: str) -> None:
    """Refuse a text that is not a date of the form YYYY-MM-DD."""
    value = getattr(section, name)
    try:
        datetime.strptime(value, "%Y-%m-%d")
    except ValueError:
        raise UserError(f"--{name} {value}: is not a date; write it as YYYY-MM-DD") from None
