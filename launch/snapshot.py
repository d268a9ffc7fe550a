"""The code snapshot: a copy of the working tree in RUN/code, so that later edits do not change a queued job."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path, PurePath

from launch.cluster import BACKENDS
from wellread import provenance
from wellread.errors import UserError
from wellread.files import write_json
from wellread.recipes.registry import RECIPES
from wellread.run import RunDirectory

LARGEST_UNTRACKED = 10 * 2**20
"""Bytes; a larger untracked file is treated as data, not code."""
CODE = frozenset(
    [".py", ".pyi", ".pyx", ".c", ".cc", ".cpp", ".cxx", ".cu", ".cuh", ".h", ".hpp", ".sh", ".jinja", ".j2"]
)
"""Endings of untracked files that are code, in any folder."""
SETTINGS = frozenset([".json", ".yaml", ".yml", ".toml", ".txt"])
"""Endings of untracked files that are code only inside `SOURCES`: elsewhere they may be data or passwords."""
SECRET = re.compile(
    r"\.env(?:rc|\..+)?|[._]netrc|\.pgpass|\.my\.cnf|\.npmrc|\.pypirc|\.git-credentials|\.htpasswd|\.dockercfg"
    r"|id_(?:rsa|dsa|ecdsa|ed25519)(?:_sk)?|credentials(?:\.json)?|.+\.(?:pem|key|p12|pfx|jks|keystore|ppk|kdbx|env)",
    re.IGNORECASE,
)
"""Names of files with passwords or keys."""
SECRET_FOLDERS = frozenset({".ssh", ".aws", ".gnupg", ".kube", ".docker"})
EXAMPLE = re.compile(r".*\.(?:example|sample|template|dist)", re.IGNORECASE)
"""Names of files that show which secrets are needed, without their values."""
SOURCES = ("wellread", "launch", *RECIPES, "eval", "configs")
"""Folders that are copied when the tree is not a git repository."""
CLUSTERS = ("configs", "clusters")
"""Folder of cluster files. Those of the user may contain passwords, and no rank needs them: the launch reads them."""


def take(run: RunDirectory, corpora: Path) -> list[str]:
    """Copy tracked files, and untracked ones that are code, without ignored ones, to RUN/code.

    The folder is replaced only after the copy is complete.

    Parameters
    ----------
    corpora : Path
        Folder of compiled corpora; untracked files in it or in the run directory are not code.

    Returns
    -------
    list of str
        Untracked code that was too large to copy, relative to the tree.

    Raises
    ------
    UserError
        When git tracks a file that is a secret by its name; it names the file.
    """
    root = provenance.ROOT
    listed = _files(root)
    for name in (name for name, tracked in listed if tracked and is_secret(name)):
        raise UserError(
            f"{root / name}: git tracks this file, and a copy of the code must not contain secrets; "
            "run git rm --cached on it, and add it to .gitignore"
        )
    fresh, old = run.path / ".code.new", run.path / ".code.old"
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    excluded = [folder.resolve() for folder in (run.path, corpora) if not root.is_relative_to(folder.resolve())]
    left_out = []
    for name, tracked in listed:
        source = root / name
        if not tracked and any(parent in excluded for parent in [source.absolute(), *source.absolute().parents]):
            continue
        if not tracked and (is_secret(name) or not _is_code(name)):
            continue
        if not tracked and source.lstat().st_size > LARGEST_UNTRACKED:
            left_out.append(name)
            continue
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, fresh / name, follow_symlinks=False)
    write_json(fresh / provenance.SNAPSHOT, provenance.code(root))
    if run.code.exists():
        os.rename(run.code, old)
    os.rename(fresh, run.code)
    shutil.rmtree(old, ignore_errors=True)
    return left_out


def is_secret(name: str) -> bool:
    """Whether the file holds passwords or keys, judged by its name relative to the tree."""
    path = PurePath(name)
    if SECRET_FOLDERS.intersection(path.parts[:-1]):
        return True
    return SECRET.fullmatch(path.name) is not None and not EXAMPLE.fullmatch(path.name)


def _is_code(name: str) -> bool:
    path = PurePath(name)
    if path.suffix.lower() in CODE:
        return True
    return path.parts[0] in SOURCES and path.suffix.lower() in SETTINGS and path.parts[:2] != CLUSTERS


def _is_wellreads(path: PurePath) -> bool:
    """Whether a file, relative to a tree without git, belongs to wellread: all but cluster files of the user."""
    return path.parts[:2] != CLUSTERS or path.stem in BACKENDS


def refuse_dirty() -> None:
    """Refuse code that does not match a commit.

    Raises
    ------
    UserError
        When the tree is not a git repository or differs from its commit.
    """
    code = provenance.code(provenance.ROOT)
    if code["commit"] is None:
        raise UserError("--strict: the code is not in a git repository and has no commit; run it from a clone")
    if code["dirty"]:
        raise UserError(f"--strict: the working tree differs from commit {code['commit'][:12]}; commit or stash first")


def _files(root: Path) -> list[tuple[str, bool]]:
    """List the files of the tree, and whether git tracks each."""
    if not provenance.is_repository(root):
        paths = [path for folder in SOURCES for path in sorted((root / folder).rglob("*"))]
        names = [p.relative_to(root) for p in paths if p.is_file() and "__pycache__" not in p.parts]
        return [(str(name), _is_wellreads(name)) for name in names]
    listed = [(name, True) for name in _git_names(root, "--cached")]
    listed += [(name, False) for name in _git_names(root, "--others", "--exclude-standard")]
    # git also lists deleted files and submodules, which are folders; a link may point to a folder or be broken.
    existing = [(name, tracked) for name, tracked in dict(listed).items() if os.path.lexists(root / name)]
    return [(name, tracked) for name, tracked in existing if not (root / name).is_dir() or (root / name).is_symlink()]


def _git_names(root: Path, *arguments: str) -> list[str]:
    result = subprocess.run(["git", "-C", str(root), "ls-files", "-z", *arguments], capture_output=True, check=True)
    return [os.fsdecode(name) for name in result.stdout.split(b"\0") if name]
