"""Packages that only some settings need: whether they are installed, and the command that installs them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from wellread.config.run import RunConfig
from wellread.errors import UserError


def check(config: RunConfig) -> None:
    """Check that the packages that these settings need are installed for this Python.

    Raises
    ------
    UserError
        It says the flag, the package, and how to install it.
    """
    for package, flag in _needed(config).items():
        require(package, flag)


def _needed(config: RunConfig) -> dict[str, str]:
    """Package -> the flag that needs it."""
    uses = {
        ("wandb", "--tracker wandb"): "wandb" in config.watch.trackers,
        ("bitsandbytes", "--load_in_4bit"): config.model.load_in_4bit,
        ("torchao", "--float8"): config.model.float8,
    }
    return dict(need for need, is_used in uses.items() if is_used)


def require(package: str, flag: str, requirement: str = "") -> None:
    """Check that `package` is installed; `requirement` says which version, as pip reads it."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{flag}: the package {package} is not installed; run: {installing(requirement or package)}, "
            "or leave the flag out"
        )


def installing(requirement: str) -> str:
    """The command that installs a package for this Python."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    quoted = f"'{requirement}'" if {*requirement} & {*"<>=[] "} else requirement
    return f"{os.fspath(python)} -m pip install {quoted}"
