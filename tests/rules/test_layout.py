"""The rules of the house that a tool can check: who imports whom, names, docstrings, nothing of one machine."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = {"launch", "finetune", "pretrain", "eval"}
FOLDERS = ("wellread", "launch", "finetune", "pretrain", "eval", "bench", "scripts")
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "tools"}


def modules(root: Path, *folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    assert found
    return found


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, module and name bound by each import of a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, alias.asname or alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}", alias.asname or alias.name


def tracked(root: Path) -> list[Path]:
    """Files of the repository, those that git does not know yet included, ignored ones not."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    found = [root / name for name in names if name and (root / name).is_file()]
    assert len(found) > 40
    return found


def test_programs_meet_in_files_alone(root: Path) -> None:
    wrong = [
        f"{path.relative_to(root)}:{line} imports {module}"
        for path in modules(root, *PROGRAMS & {p.name for p in root.iterdir()})
        for line, module, _ in imports(path)
        if (top := module.partition(".")[0]) in PROGRAMS and top != path.relative_to(root).parts[0]
    ]
    assert not wrong


def test_the_library_imports_no_program(root: Path) -> None:
    others = PROGRAMS | {"bench", "tests", "scripts", "conftest", "support"}
    wrong = [
        f"{path.relative_to(root)}:{line} imports {module}"
        for path in modules(root, "wellread")
        for line, module, _ in imports(path)
        if module.partition(".")[0] in others
    ]
    assert not wrong


def test_eval_stays_the_builtin(root: Path) -> None:
    """`import eval.x` binds the name eval; write `from eval.x import y`."""
    wrong = [
        f"{path.relative_to(root)}:{line}"
        for path in modules(root, *FOLDERS, "tests")
        for line, _, bound in imports(path)
        if bound == "eval"
    ]
    assert not wrong


def test_names_say_what_is_inside(root: Path) -> None:
    folders = [path for path in root.iterdir() if path.name in (*FOLDERS, "tests")]
    vague = [p for folder in folders for p in folder.rglob("*") if p.stem in VAGUE and p.suffix in (".py", "")]
    assert not vague


def test_every_module_says_what_it_is_for(root: Path) -> None:
    silent = [path for path in modules(root, *FOLDERS) if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


SUBJECTS = {"bad_input", "cluster", "docs", "packaging", "real_data", "rules", "runs", "scripts"}
"""Folders of tests whose subject is no folder of the code."""


def test_tests_mirror_the_code(root: Path) -> None:
    tests = root / "tests"
    assert not [*tests.rglob("__init__.py")] or [*tests.rglob("__init__.py")] == [tests / "support" / "__init__.py"]
    files = [path for path in tests.rglob("*.py") if path.relative_to(tests).parts[0] not in ("fixtures", "support")]
    assert all(re.fullmatch(r"test_\w+\.py|conftest\.py", path.name) for path in files)
    folders = {path.parent.relative_to(tests) for path in files}
    lost = [
        folder
        for folder in folders
        if folder.parts
        and folder.parts[0] not in SUBJECTS
        and not (root / folder).is_dir()
        and not (root / "wellread" / folder).is_dir()
    ]
    assert not lost


# Spelled in pieces, so that this file holds none of them.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.~-])/(?:work|root|home/\w+|Users/\w+|mnt/\w+|workspace)/(?!NAME)\w",
    "a package registry": "|".join(
        ["pypi" + r"\.org", "python" + "hosted", "index" + "-url", "index" + "_url", "npm" + "js", "arti" + "factory",
         "proxy" + r"\.golang", "trusted" + "-host", r"conda\." + "anaconda"]
    ),
    "a secret": r"hf_[A-Za-z]{30,}|gh[pousr]_\w{30,}|AKIA[A-Z0-9]{16}|-----BEGIN [A-Z ]*PRIVATE KEY",
    # 10.77.0.0/24 exists in the network namespaces of the development cluster alone (scripts/slurm_lib.sh).
    "an address of a private network":
        r"\b(?:10\.(?!77\.0\.)\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}\b",
}  # fmt: skip


def test_nothing_of_one_machine_in_the_files(root: Path) -> None:
    wrong = []
    for path in tracked(root):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for what, pattern in FORBIDDEN.items():
            wrong += [
                f"{path.relative_to(root)}:{text.count(chr(10), 0, match.start()) + 1}: {what}: {match.group()!r}"
                for match in re.finditer(pattern, text)
            ]
    assert not wrong, "\n".join(wrong)


def test_the_patterns_find_what_they_are_for() -> None:
    found = {
        "a path of one machine": "cd /wor" + "k/x",
        "a package registry": "https://pypi" + ".org/simple",
        "a secret": "hf_" + "a" * 34,
        "an address of a private network": "http://10." + "0.0.7:8080",
    }
    for what, text in found.items():
        assert re.search(FORBIDDEN[what], text), what
    for text in ("~/work/x", "runs/work/x", "../shared", "127.0.0.1:0", "docs/root/x", "10" + ".2.3/", "10.77.0.11"):
        assert not [what for what, pattern in FORBIDDEN.items() if re.search(pattern, text)]


def test_no_large_or_binary_file(root: Path) -> None:
    large = [(str(p.relative_to(root)), p.stat().st_size) for p in tracked(root) if p.stat().st_size > 1 << 20]
    assert not large


def test_import_linter(root: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b0 broken", done.stdout)


def test_import_linter_knows_every_program_and_module(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    there = {name for name in PROGRAMS if (root / name / "__main__.py").exists()}
    assert set(settings["root_packages"]) == there | {"wellread"}
    (independent,) = [c for c in settings["contracts"] if c["type"] == "independence"]
    assert set(independent["modules"]) == there
    (layers,) = [c for c in settings["contracts"] if c["type"] == "layers"]
    named = {name.strip() for layer in layers["layers"] for name in layer.split("|")}
    inside = {
        f"wellread.{p.stem}" for p in (root / "wellread").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert inside - {"wellread.__init__"} == named


def test_every_package_that_is_imported_is_declared(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["train"] + extras["dev"]
    declared = {re.split(r"[\[<>=! ]", name, maxsplit=1)[0].lower() for name in wanted}
    names = {"yaml": "pyyaml", "xdist": "pytest-xdist", "huggingface_hub": "transformers"}  # the hub's client is in it
    own = set(FOLDERS)
    lacking = {
        f"{module} ({path.relative_to(root)}:{line})"
        for path in modules(root, *FOLDERS, "tests")
        for line, whole, _ in imports(path)
        if (module := whole.partition(".")[0]) not in own
        and module != "support"
        and module not in sys.stdlib_module_names
        and names.get(module, module) not in declared
    }
    assert not lacking
    lines = (root / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    pinned = {line.partition("==")[0] for line in lines}
    assert declared - pinned <= set(), "not pinned in constraints.txt"


@pytest.mark.parametrize("target", ["", "help"])
def test_make_alone_explains_itself(target: str, root: Path) -> None:
    done = subprocess.run(["make", *filter(None, [target])], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    phony = (root / "Makefile").read_text().split(".PHONY:")[1].splitlines()[0].split()
    rules = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    assert set(phony) == rules
    assert {"setup", "ft", "plan", "status", "logs", "cancel", "doctor", "slurm-up", "slurm-down", "check"} <= rules
    explained = re.findall(r"^  make (\S+) +\S", done.stdout, re.MULTILINE)
    assert sorted(explained) == sorted(rules)
