"""uv instead of pip: `uv sync && uv run wellread run finetune` in a fresh clone, with the same versions."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.programs import ROOT, missing

PIP_TO_UV = {
    f"index{'-'}url": "UV_DEFAULT_INDEX",
    f"extra-index{'-'}url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}
"""Setting of pip -> variable of uv, which does not read pip's configuration."""


def settings() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]


def test_uv_has_the_constraints_of_pip() -> None:
    assert settings()["constraint-dependencies"] == (ROOT / "constraints.txt").read_text().split()


def test_uv_installs_what_training_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = settings()["default-groups"]
    assert [project["dependency-groups"][group] for group in groups] == [["wellread[train]"]]  # type: ignore[attr-defined]
    assert "uv.lock" in (ROOT / ".gitignore").read_text()  # it would contain addresses of package indexes


def variables(cache: Path) -> dict[str, str]:
    """Environment in which uv uses the package indexes of pip, this Python, and a cache outside the clone."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    uv = {
        "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(cache)),
        "UV_LINK_MODE": "hardlink" if "UV_CACHE_DIR" not in os.environ else "copy",
        "UV_PYTHON": sys.executable,
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # as pip, which takes the best version of all indexes
        "UV_HTTP_TIMEOUT": "180",
    }
    for name, value in re.findall(r"^[^.\n]*\.\.?([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE):
        if name in PIP_TO_UV:
            separator = "," if name == "find-links" else " "
            uv[PIP_TO_UV[name]] = separator.join(value.split())
    return {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | uv


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.minutes(2)
def test_a_fresh_clone_trains_with_uv(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{ROOT}", clone], check=True)
    environment = variables(tmp_path / "uv-cache")

    def uv(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "uv", *arguments]
        return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)

    synced = uv("sync")
    if synced.returncode and "Failed to fetch" in synced.stderr:
        missing(f"no package index can be reached from here: {synced.stderr[-500:]}")
    assert synced.returncode == 0, synced.stderr
    assert uv("run", "--no-sync", "wellread", "--version").stdout.startswith("wellread ")
    flags = ("--steps", "2", "--ranks_per_node", "1", "--generations", "0", "--save_every", "2")
    trained = uv("run", "wellread", "run", "finetune", *flags)
    assert trained.returncode == 0, f"{trained.stdout}\n{trained.stderr}"
    assert "finished at step 2" in trained.stdout
    status = subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True)
    assert status.stdout == ""  # neither uv.lock nor the environment is a change
