"""Where a run came from: commit, uncommitted change, versions."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "datasets",
    "submitit",
    "sentencepiece",
    "safetensors",
    "numpy",
    "pyarrow",
    "tensorboard",
)


def describe() -> dict[str, Any]:
    """Return commit, whether the tree is dirty, Python and package versions; no environment variables."""
    return {
        "code": _code(Path(__file__).resolve().parent.parent),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _code(root: Path) -> dict[str, Any]:
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None}
    diff = _git(root, "diff", "HEAD") or ""
    return {
        "commit": commit.strip(),
        "dirty": bool(diff),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
