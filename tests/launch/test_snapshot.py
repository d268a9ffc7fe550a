"""The snapshot of the code, its description in the manifest, and that a run contains no secrets."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.waiting import PATIENCE, wait_until

from launch import snapshot
from wellread import provenance
from wellread.errors import UserError
from wellread.run import RunDirectory

SECRETS = {  # written in pieces, so that this file does not contain them
    "HF_TOKEN": "hf_" + "Qx7" * 11,
    "WANDB_API_KEY": "5e3d" * 10,
    "AWS_SECRET_ACCESS_KEY": "wJalr/" + "Kb+7" * 8,
    "MY_PASSWORD": "correct" + " horse",
}
MARKER = "the-marker-of-this-test"


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false")
    result = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "x")
    return git(folder, "rev-parse", "HEAD").strip()


def write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def files(folder: Path) -> list[str]:
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(str(path.relative_to(folder)) for path in paths)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository with a commit, used instead of this one."""
    folder = tmp_path / "tree"
    folder.mkdir()
    git(folder, "init", "--quiet")
    write(folder, {".gitignore": "ignored/\n*.log\n", "kept.py": "1\n", "gone.py": "2\n", "a/b/deep.py": "3\n"})
    commit(folder)
    monkeypatch.setattr(provenance, "ROOT", folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    return RunDirectory(tmp_path / "run")


def take(run: RunDirectory, corpora: Path | None = None) -> list[str]:
    """Take a snapshot; return its files except the description of its origin."""
    assert snapshot.take(run, corpora or run.path.parent / "corpora") == []
    copied = files(run.code)
    copied.remove(provenance.SNAPSHOT)
    return copied


# --- what is copied


def test_files_of_the_snapshot(tree: Path, run: RunDirectory) -> None:
    write(tree, {"kept.py": "changed\n", "new/mine.py": "4\n", "ignored/x.py": "5\n", "a/b/c.log": "6\n"})
    (tree / "gone.py").unlink()
    (tree / "ünïcode \n\"name'.py").write_text("7\n")
    (tree / "kept.py").chmod(0o755)
    assert take(run) == sorted([".gitignore", "a/b/deep.py", "kept.py", "new/mine.py", "ünïcode \n\"name'.py"])
    assert (run.code / "kept.py").read_text() == "changed\n"
    assert os.access(run.code / "kept.py", os.X_OK)
    assert not os.access(run.code / "a" / "b" / "deep.py", os.X_OK)


def test_links_are_copied_as_links(tree: Path, run: RunDirectory) -> None:
    (tree / "to-file").symlink_to("kept.py")
    (tree / "to-folder").symlink_to("a/b")
    (tree / "to-nowhere").symlink_to("/nowhere/at/all")
    commit(tree)
    (tree / "untracked.py").symlink_to("a")
    assert {"to-file", "to-folder", "to-nowhere", "untracked.py"} <= set(take(run))
    assert [os.readlink(run.code / name) for name in ("to-file", "to-folder", "to-nowhere", "untracked.py")] == [
        "kept.py", "a/b", "/nowhere/at/all", "a",
    ]  # fmt: skip
    assert (run.code / "to-folder" / "deep.py").read_text() == "3\n"


def test_large_untracked_files_are_listed_but_not_copied(
    tree: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "LARGEST_UNTRACKED", 100)
    write(tree, {"tracked.bin": "x" * 101})
    commit(tree)
    write(tree, {"new/large.py": "x" * 101, "new/small.py": "x" * 100})
    assert snapshot.take(run, tree / "corpora") == ["new/large.py"]
    assert {"tracked.bin", "new/small.py"} <= set(files(run.code))
    assert "new/large.py" not in files(run.code)


def test_ten_megabytes_are_data() -> None:
    assert snapshot.LARGEST_UNTRACKED == 10 * 1024 * 1024


def test_neither_the_run_nor_the_corpora_are_copied(tree: Path) -> None:
    write(tree, {"mine/run/config.yaml": "x", "mine/other.py": "y", "compiled/c/tokens.bin": "z"})
    run = RunDirectory(tree / "mine" / "run")
    assert "mine/other.py" in (first := take(run, tree / "compiled"))
    assert not [name for name in first if name.startswith(("mine/run", "compiled"))]
    write(tree, {"mine/run/log/rank.txt": "x"})
    assert take(run, tree / "compiled") == first  # nor is the previous snapshot


def test_a_folder_of_corpora_around_the_tree_excludes_nothing(tree: Path, run: RunDirectory) -> None:
    expected = [".gitignore", "a/b/deep.py", "gone.py", "kept.py"]
    assert take(run, tree) == expected
    assert take(run, tree.parent) == expected


def test_a_relative_run_in_the_tree(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    write(tree, {"mine/config.yaml": "x"})
    assert take(RunDirectory(Path("mine")), Path("corpora")) == [".gitignore", "a/b/deep.py", "gone.py", "kept.py"]


def test_a_submodule_is_left_out(tree: Path, run: RunDirectory, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    write(other, {"x.py": "1"})
    commit(other)
    git(tree, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "sub")
    commit(tree)
    assert take(run) == [".gitignore", ".gitmodules", "a/b/deep.py", "gone.py", "kept.py"]


def test_a_second_snapshot_replaces_the_first(tree: Path, run: RunDirectory) -> None:
    take(run)
    (run.code / "stray.py").write_text("not of the tree")
    write(tree, {"kept.py": "newer\n"})
    (tree / "gone.py").unlink()
    assert take(run) == [".gitignore", "a/b/deep.py", "kept.py"]
    assert (run.code / "kept.py").read_text() == "newer\n"
    assert sorted(path.name for path in run.path.iterdir()) == ["code"]


def test_leftovers_of_a_killed_launch_are_removed(tree: Path, run: RunDirectory) -> None:
    write(run.path, {".code.new/half.py": "x", ".code.old/past.py": "x"})
    assert "half.py" not in take(run)
    assert sorted(path.name for path in run.path.iterdir()) == ["code"]


def test_after_a_failure_the_old_snapshot_remains(
    tree: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(run)
    write(tree, {"kept.py": "newer\n"})
    copied: list[object] = []

    def full(source: Path, *_: object, **__: object) -> None:
        copied.append(source)
        if len(copied) == 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copy2", full)
        with pytest.raises(OSError, match="No space left"):
            snapshot.take(run, tree / "corpora")
    assert (run.code / "kept.py").read_text() == "1\n"
    assert "gone.py" in take(run)


def test_a_tree_without_git(tmp_path: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "unpacked"
    write(folder, {"wellread/a.py": "1", "launch/__pycache__/x.pyc": "2", "configs/ds/z.json": "{}"})
    write(folder, {"thesis.tex": "years of work", "corpora/x": "1", "tests/t.py": "1"})
    monkeypatch.setattr(provenance, "ROOT", folder)
    assert take(run) == ["configs/ds/z.json", "wellread/a.py"]
    assert json.loads((run.code / provenance.SNAPSHOT).read_text()) == {"commit": None}


def test_a_folder_in_another_projects_repository_is_a_tree_without_git(
    tree: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tree, {"vendor/wellread/a.py": "1", "vendor/other.py": "2"})
    monkeypatch.setattr(provenance, "ROOT", tree / "vendor")
    assert take(run) == ["wellread/a.py"]
    assert json.loads((run.code / provenance.SNAPSHOT).read_text()) == {"commit": None}


# --- the description of the code


def test_a_clean_tree(tree: Path) -> None:
    head = git(tree, "rev-parse", "HEAD").strip()
    assert provenance.code(tree) == {
        "commit": head, "dirty": False, "diff": None, "diff_sha256": None, "untracked": [],
    }  # fmt: skip
    write(tree, {"ignored/x.py": "5\n"})
    assert not provenance.code(tree)["dirty"]


def test_a_changed_tree(tree: Path) -> None:
    write(tree, {"kept.py": "one\n", "new.py": "4\n"})
    (tree / "gone.py").unlink()
    (tree / 'ü "x".py').write_text("")
    git(tree, "add", "kept.py")  # staged or not gives the same result
    code = provenance.code(tree)
    assert (code["dirty"], code["untracked"]) == (True, ["new.py", 'ü "x".py'])
    diff = git(tree, "diff", "HEAD")
    assert code["diff"] == diff
    assert "-1\n+one\n" in diff
    assert "deleted file" in diff
    assert code["diff_sha256"] == hashlib.sha256(diff.encode()).hexdigest()


def test_untracked_files_make_a_tree_dirty(tree: Path) -> None:
    write(tree, {"new.py": "4\n"})
    code = provenance.code(tree)
    assert (code["dirty"], code["diff"], code["diff_sha256"], code["untracked"]) == (True, None, None, ["new.py"])


def test_the_diff_ignores_the_users_git_settings(tree: Path, tmp_path: Path) -> None:
    write(tree, {"kept.py": "one\n"})
    expected = provenance.code(tree)
    git(tree, "config", "color.ui", "always")
    git(tree, "config", "diff.external", "echo")
    assert provenance.code(tree) == expected
    assert "\x1b" not in expected["diff"]


def test_a_long_diff_is_truncated_but_hashed_completely(tree: Path) -> None:
    write(tree, {"kept.py": "line of text\n" * 20_000})
    code = provenance.code(tree)
    diff = git(tree, "diff", "HEAD")
    assert len(diff) > 200_000
    assert code["diff"] == diff[:100_000]
    assert code["diff_sha256"] == hashlib.sha256(diff.encode()).hexdigest()


def test_a_snapshot_describes_its_tree(tree: Path, run: RunDirectory) -> None:
    write(tree, {"kept.py": "one\n"})
    expected = provenance.code(tree)
    take(run)
    write(tree, {"kept.py": "two\n"})
    assert provenance.code(run.code) == expected
    assert expected["dirty"]


def test_trees_that_are_repositories(tree: Path, tmp_path: Path) -> None:
    assert provenance.is_repository(tree)
    assert not provenance.is_repository(tree / "a")
    assert not provenance.is_repository(tmp_path)
    assert not provenance.is_repository(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tree)
    assert provenance.is_repository(tmp_path / "link")
    git(tree, "worktree", "add", "--quiet", str(tmp_path / "beside"))
    assert provenance.is_repository(tmp_path / "beside")


def test_without_git_installed(tree: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert provenance.code(tree) == {"commit": None}
    write(tree, {"wellread/a.py": "1"})
    assert take(run) == ["wellread/a.py"]


def test_code_from_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WELLREAD_CODE", raising=False)
    provenance.check_code_root()
    monkeypatch.setenv("WELLREAD_CODE", str(provenance.ROOT / "launch" / ".."))
    provenance.check_code_root()
    (tmp_path / "link").symlink_to(provenance.ROOT)
    monkeypatch.setenv("WELLREAD_CODE", str(tmp_path / "link"))
    provenance.check_code_root()
    monkeypatch.setenv("WELLREAD_CODE", str(tmp_path))
    with pytest.raises(RuntimeError) as error:
        provenance.check_code_root()
    assert str(error.value).startswith(f"this rank runs {provenance.ROOT}, but its run's code is {tmp_path}; ")


# --- secrets


def test_secrets_of_the_environment_are_masked(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KEYBOARD", "a-fine-keyboard")  # not a secret according to its name
    monkeypatch.setenv("API_KEY", "short")  # too short to distinguish from code
    write(tree, {"kept.py": "\n".join([*SECRETS.values(), "a-fine-keyboard", "short"])})
    diff = provenance.code(tree)["diff"]
    assert not [value for value in SECRETS.values() if value in diff]
    assert diff.count("[secret]") == len(SECRETS)
    assert "+a-fine-keyboard\n+short" in diff


def test_of_untracked_files_only_code_travels(tree: Path, run: RunDirectory) -> None:
    code = ["mine.py", "x/op.cu", "configs/ds/mine.json", "configs/templates/mine.txt"]
    write(
        tree, dict.fromkeys([*code, "notes.txt", "data/rows.jsonl", "token.json", "configs/x.bin", "thesis.tex"], "1")
    )
    copied = take(run)
    assert set(code) <= set(copied)
    assert not {"notes.txt", "data/rows.jsonl", "token.json", "configs/x.bin", "thesis.tex"} & set(copied)


SECRET_FILES = [
    ".env", ".env.local", "prod.env", ".envrc", ".netrc", "_netrc", "a/id_rsa", "server.key", "a/b.pem", ".aws/config",
    ".ssh/x.py", ".git-credentials", "credentials.json",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRET_FILES)
def test_files_with_secrets_do_not_travel(name: str, tree: Path, run: RunDirectory) -> None:
    before = take(run)
    write(tree, {name: "secret"})
    assert take(run) == before
    commit(tree)
    with pytest.raises(UserError, match="git tracks this file") as error:
        snapshot.take(run, tree / "corpora")
    assert str(tree / name) in str(error.value)
    assert not (run.path / ".code.new").exists()


def test_tracked_code_travels_from_the_folder_of_corpora_too(tree: Path, run: RunDirectory) -> None:
    write(tree, {"a/corpus.py": "untracked"})
    assert set(take(run, tree / "a")) == {".gitignore", "a/b/deep.py", "gone.py", "kept.py"}


def test_an_example_of_a_secret_file_travels(tree: Path, run: RunDirectory) -> None:
    write(tree, {".env.example": "TOKEN=", "environment.py": "1", "keys.py": "2"})
    commit(tree)
    assert {".env.example", "environment.py", "keys.py"} <= set(take(run))


@pytest.mark.parametrize(
    "secret",
    ["hf_" + "aB3" * 10, "ghp_" + "x1" * 18, "AKIA" + "ABCD" * 4, "ASIA" + "ABCD" * 4, "sk-" + "a1-" * 10,
     "xoxb-" + "123456789012", "xoxe-" + "123456789012", "github_pat_" + "x1_" * 10, "glpat-" + "a-1" * 8,
     "AIza" + "x-1" * 12, "npm_" + "x1" * 18,
     "-----BEGIN RSA PRIVATE " + "KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"],
)  # fmt: skip
def test_known_forms_of_secrets_are_masked(secret: str) -> None:
    assert provenance.without_secrets(f"token = '{secret}'  # mine") == "token = '[secret]'  # mine"


@pytest.mark.parametrize(
    "text", ["hf_hub_download", "task-oriented", "AKIAN", "sk-learn", "ghp_x", "risk-averse-people"]
)
def test_ordinary_words_are_not_masked(text: str) -> None:
    assert provenance.without_secrets(text) == text


def test_a_secret_is_masked_before_truncation(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = SECRETS["WANDB_API_KEY"]
    monkeypatch.setenv("WANDB_API_KEY", secret)
    write(tree, {"kept.py": ""})
    before = len(git(tree, "diff", "HEAD"))
    for shift in range(-45, 46, 5):
        write(tree, {"kept.py": "x" * (provenance.LONGEST_DIFF - before + shift) + secret})
        diff = provenance.code(tree)["diff"]
        assert secret[:8] not in diff[-len(secret) - 60 :], shift


def test_overlapping_secrets_are_masked_completely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh-and-more")
    assert provenance.without_secrets("x abcdefgh-and-more y abcdefgh z") == "x [secret] y [secret] z"


def test_a_description_contains_no_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    description = provenance.describe()
    assert set(description) == {"code", "host", "python", "platform", "packages", "gpus", "gpu_driver"}
    text = json.dumps(description)
    assert not [value for value in SECRETS.values() if value in text]


# --- a copy of this repository


@pytest.fixture
def clone(tmp_path: Path, root: Path) -> Path:
    """This working tree as a repository with one commit."""
    folder = tmp_path / "clone"
    for name in git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


def launched(clone: Path, *flags: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch", "run", "finetune", *map(str, flags)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=clone, env=os.environ | (env or {}), stdout=pipe, stderr=pipe, text=True)


def test_strict_refuses_uncommitted_code(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = git(clone, "rev-parse", "HEAD").strip()
    monkeypatch.setattr(provenance, "ROOT", clone)
    snapshot.refuse_dirty()  # clean: no error
    write(clone, {"new.py": "1\n"})
    process = launched(clone, "--strict", "--out", tmp_path / "run", "--corpora", tmp_path / "corpora")
    output, complained = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (2, "")
    assert complained == f"error: --strict: the working tree differs from commit {head[:12]}; commit or stash first\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clone"]
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    with pytest.raises(UserError, match="--strict: the code is not in a git repository and has no commit"):
        snapshot.refuse_dirty()


def holding(folder: Path, texts: list[str]) -> list[str]:
    """Return the files that contain one of the texts."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert len(paths) > 10
    return [
        str(path.relative_to(folder))
        for path in paths
        if any(text.encode() in (data := path.read_bytes()) or text.encode("utf-16-le") in data for text in texts)
    ]


@pytest.mark.slow
def test_a_run_runs_its_snapshot(clone: Path, corpora: Path, corpus: Any, tmp_path: Path) -> None:
    """An uncommitted change runs, a change after the start of the launch does not, and no secret is stored."""
    head = git(clone, "rev-parse", "HEAD").strip()
    train, run = clone / "wellread" / "train" / "rank.py", RunDirectory(tmp_path / "runs" / "it's mine")
    secret = SECRETS["WANDB_API_KEY"]
    program_text = f"import wellread\nprint('{MARKER}', wellread.__file__, __file__, flush=True)  # {secret}\n"
    changed = train.read_text().replace("def _train(", f"{program_text}\n\ndef _train(")
    train.write_text(changed)
    write(clone, {"notes/large.py": "x" * (11 << 20)})
    flags = ["--steps", 2, "--out", run.path, "--corpora", corpora, "--ranks_per_node", 2]
    process = launched(clone, *flags, env=SECRETS)
    try:
        wait_until(run.code.exists, "the snapshot", process)
        write(clone, {"finetune/__main__.py": "raise SystemExit('an edit that came later')\n"})
        out, complaints = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, out + complaints
    assert "not in the code snapshot, because untracked and large: notes/large.py\n" in complaints
    assert not (run.code / "notes").exists()
    printed = f"{MARKER} {run.code}/wellread/__init__.py {run.code}/wellread/train/rank.py\n"
    assert printed in out
    assert (run.code / "wellread" / "train" / "rank.py").read_text() == changed

    (attempt,) = run.manifest()["attempts"]
    code = attempt["code"]
    assert (code["commit"], code["dirty"], code["untracked"]) == (head, True, ["notes/large.py"])
    assert f"+print('{MARKER}', wellread.__file__, __file__, flush=True)  # [secret]\n" in code["diff"]
    assert code == json.loads((run.code / provenance.SNAPSHOT).read_text())
    assert (attempt["ranks"], attempt["nodes"], attempt["ranks_per_node"], attempt["device"]) == (2, 1, 2, "cpu")
    assert (attempt["cluster"], attempt["hosts"], attempt["exit_code"]) == ("local", ["localhost"], 0)
    assert attempt["packages"]["torch"].startswith("2.")
    assert holding(run.path, list(SECRETS.values())) == ["code/wellread/train/rank.py"]  # the change has run


@pytest.mark.long
@pytest.mark.slow
def test_without_a_snapshot_the_working_tree_runs(clone: Path, corpora: Path, corpus: Any, tmp_path: Path) -> None:
    train, run = clone / "wellread" / "train" / "rank.py", RunDirectory(tmp_path / "run")
    secret = SECRETS["HF_TOKEN"]
    program_text = (
        f"import wellread\nprint('{MARKER} ' + wellread.__file__ + chr(10), end='', flush=True)  # {secret}\n"
    )
    train.write_text(train.read_text().replace("def _train(", f"{program_text}\n\ndef _train("))
    flags = ["--steps", 1, "--out", run.path, "--corpora", corpora, "--ranks_per_node", 2, "--snapshot", "off"]
    process = launched(clone, *flags, env=SECRETS)
    out, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + complaints
    assert f"{MARKER} {clone}/wellread/__init__.py\n" in out
    assert not run.code.exists()
    assert run.manifest()["attempts"][0]["code"]["dirty"]
    assert holding(run.path, list(SECRETS.values())) == []
