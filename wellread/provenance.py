"""Where a run came from: commit, uncommitted change, versions, devices."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
"""The checkout, or the snapshot of it, that runs."""
SNAPSHOT = ".wellread-snapshot.json"
"""File in the root of a snapshot: what `code` said of the tree it was taken from."""
CODE_ROOT = "WELLREAD_CODE"
"""Environment variable: folder that a rank's code must come from."""
LONGEST_DIFF = 100_000
"""Characters of the uncommitted change that are kept; its hash covers the whole."""
SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(?:^|_)KEY(?:$|_)|API_?KEY", re.IGNORECASE)
SECRET_FORMS = re.compile(r"hf_\w{20,}|gh[pousr]_\w{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|sk-[\w-]{20,}|xox[abp]-[\w-]{10,}")
SHORTEST_SECRET = 8


def describe(root: Path | None = None) -> dict[str, Any]:
    """Return commit, uncommitted change, versions of Python, packages and drivers; no environment variables.

    Parameters
    ----------
    root : Path, optional
        Where the code is (default: the code that calls this).
    """
    return {
        "code": code(root or ROOT),
        "host": socket.gethostname(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": _packages(),
        "gpus": _gpus(),
        "gpu_driver": _driver(),
    }


def check_code_root() -> None:
    """Refuse to run code from anywhere but the folder that the launcher named.

    Raises
    ------
    RuntimeError
        When another copy was imported; the manifest would name code that did not run.
    """
    wanted = os.environ.get(CODE_ROOT)
    if wanted and Path(wanted).resolve() != ROOT:
        raise RuntimeError(f"this rank runs {ROOT}, but its run's code is {wanted}; is PYTHONSAFEPATH set?")


def code(root: Path) -> dict[str, Any]:
    """Commit and uncommitted change of a working tree, or of the one that a snapshot was taken from.

    Returns
    -------
    dict
        `commit` (None outside git), `dirty`, `diff` (up to 100,000 characters, anything like a secret blacked out),
        `diff_sha256` (of the whole), `untracked` (names).
    """
    if (root / SNAPSHOT).is_file():
        found: dict[str, Any] = json.loads((root / SNAPSHOT).read_text())
        return found
    if not is_repository(root):
        return {"commit": None}
    commit = (_git(root, "rev-parse", "HEAD") or "").strip() or None
    diff = _git(root, "diff", "--no-ext-diff", "--no-color", "HEAD") or ""
    untracked = (_git(root, "ls-files", "-z", "--others", "--exclude-standard") or "").split("\0")[:-1]
    return {
        "commit": commit,
        "dirty": bool(diff or untracked),
        "diff": without_secrets(diff)[:LONGEST_DIFF] or None,
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        "untracked": untracked,
    }


def is_repository(root: Path) -> bool:
    """Whether `root` is the top of a git working tree (a folder somewhere inside another project's is not)."""
    top = _git(root, "rev-parse", "--show-toplevel")
    return top is not None and Path(top.rstrip("\n")).resolve() == root.resolve()


def without_secrets(text: str) -> str:
    """`text` with known forms of tokens, and the values of environment variables named like secrets, blacked out."""
    values = [value for name, value in os.environ.items() if SECRET_NAMES.search(name)]
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "[secret]")
    return SECRET_FORMS.sub("[secret]", text)


def _packages() -> dict[str, str]:
    """Every installed package and its version."""
    found = {str(of.metadata["Name"]): of.version for of in metadata.distributions()}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _gpus() -> list[str]:
    """Model of each NVIDIA GPU, from the driver's own files."""
    found = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", file.read_text(), re.MULTILINE)
        found.append(model.group(1).strip() if model else "unknown")
    return found


def _driver() -> str | None:
    file = Path("/proc/driver/nvidia/version")
    found = re.search(r"Kernel Module\D*([\d.]+)", file.read_text()) if file.is_file() else None
    return found.group(1) if found else None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
