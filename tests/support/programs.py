"""Paths of the repository and the real data, programs as a user starts them, and how a test is skipped."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from wellread.run import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"

Program = Callable[..., "subprocess.CompletedProcess[str]"]
"""Called as ``program("launch", "plan", "finetune", env={…}, check=False)``."""


def missing(reason: str) -> NoReturn:
    """Skip a test because something is not installed or available. In CI everything must be, so the test fails."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def seem_saved(run: RunDirectory, *steps: int) -> None:
    """Make a directory look like a run with checkpoints at these steps, for tests that only list them."""
    for step in steps:
        path = run.checkpoints / f"step-{step:08d}"
        path.mkdir(parents=True)
        (path / "checkpoint.json").write_text(json.dumps({"step": step}))
    run.config_file.touch()
