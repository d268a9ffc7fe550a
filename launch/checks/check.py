"""One result of the doctor: the check, where it ran, its state and what to do."""

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
    """Return a check of this machine that passed."""
    return Check(check=check, state="ok", found=text)


def warning(check: str, text: str, remedy: str) -> Check:
    """Return a check of this machine for a problem that stops some jobs."""
    return Check(check=check, state="warning", found=text, remedy=remedy)


def failed(check: str, text: str, remedy: str) -> Check:
    """Return a check of this machine for a problem that stops every job."""
    return Check(check=check, state="failed", found=text, remedy=remedy)
