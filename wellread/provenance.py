"""Provenance of a run: commit, uncommitted change, versions, devices."""

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
"""Root of the running code: the checkout or a snapshot of it."""
SNAPSHOT = ".wellread-snapshot.json"
"""File in the root of a snapshot: the result of `code` for the tree that was copied."""
CODE_ROOT = "WELLREAD_CODE"
"""Environment variable: folder from which a rank must import its code."""
LONGEST_DIFF = 100_000
"""Characters of the uncommitted change that are kept; its hash covers the complete change."""
SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(?:^|_)KEY(?:$|_)|API_?KEY", re.IGNORECASE)
SECRET_FORMS = re.compile(
    r"hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|npm_\w{20,}|AIza[\w-]{30,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|sk-[\w-]{20,}|xox[a-z]-[\w-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^\s/@:'\"]*:[^\s/@'\"]+(?=@)",  # user:password of an address
    re.DOTALL,
)
SHORTEST_SECRET = 8


def describe(root: Path | None = None) -> dict[str, Any]:
    """Return commit, uncommitted change, and versions of Python, packages and drivers, but no environment variables.

    Parameters
    ----------
    root : Path, optional
        Root of the code (default: that of the running code).
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
    """Check that this process imported its code from the folder that the launcher named.

    Raises
    ------
    RuntimeError
        When another copy was imported: the manifest would name code that did not run.
    """
    code_root = os.environ.get(CODE_ROOT)
    if code_root and Path(code_root).resolve() != ROOT:
        raise RuntimeError(f"this rank runs {ROOT}, but its run's code is {code_root}; unset PYTHONSAFEPATH")


def code(root: Path) -> dict[str, Any]:
    """Commit and uncommitted change of a working tree; for a snapshot those of the tree that was copied.

    Returns
    -------
    dict
        `commit` (None outside git), `dirty`, `diff` (up to 100,000 characters, secrets replaced),
        `diff_sha256` (of the complete diff), `untracked` (names).
    """
    if (root / SNAPSHOT).is_file():
        saved: dict[str, Any] = json.loads((root / SNAPSHOT).read_text(encoding="utf-8"))
        return saved
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
    """Whether `root` is the top folder of a git working tree; a folder inside another project's tree is not."""
    top = _git(root, "rev-parse", "--show-toplevel")
    return top is not None and Path(top.rstrip("\n")).resolve() == root.resolve()


def without_secrets(text: str) -> str:
    """Replace secrets by [secret]: known formats of access tokens, and values of variables with names like API_KEY."""
    values = [value for name, value in os.environ.items() if SECRET_NAMES.search(name)]
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "[secret]")
    return SECRET_FORMS.sub("[secret]", text)


def _packages() -> dict[str, str]:
    """Every installed package and its version."""
    versions = {str(package.metadata["Name"]): package.version for package in metadata.distributions()}
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def _gpus() -> list[str]:
    """Model of each NVIDIA GPU, from the files of the driver."""
    models = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        models.append(model.group(1).strip() if model else "unknown")
    return models


def _driver() -> str | None:
    file = Path("/proc/driver/nvidia/version")
    match = re.search(r"Kernel Module\D*([\d.]+)", file.read_text(encoding="utf-8")) if file.is_file() else None
    return match.group(1) if match else None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except FileNotFoundError:
        return None
    return result.stdout if result.returncode == 0 else None
