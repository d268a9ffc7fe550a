"""One finding of the doctor: a check, where it was made, its state, and the remedy."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's table."""

    check: str
    where: str = field(default_factory=socket.gethostname)
    state: State
    found: str
    remedy: str = ""


def ok(check: str, text: str) -> Check:
    """What is as it should be on this machine."""
    return Check(check=check, state="ok", found=text)


def warning(check: str, text: str, remedy: str) -> Check:
    """What some jobs will stumble over."""
    return Check(check=check, state="warning", found=text, remedy=remedy)


def failed(check: str, text: str, remedy: str) -> Check:
    """What no job gets past."""
    return Check(check=check, state="failed", found=text, remedy=remedy)
