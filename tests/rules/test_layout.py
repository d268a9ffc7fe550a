"""Rules that a tool can check: imports between packages, names, docstrings, no path or address of one machine."""

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
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    assert paths
    return paths


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, module and bound name of each import of a file, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, alias.asname or alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}", alias.asname or alias.name


def tracked(root: Path) -> list[Path]:
    """Files of the repository, also those that are not added to git yet, but not the ignored ones."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [root / name for name in names if name and (root / name).is_file()]
    assert len(paths) > 40
    return paths


def test_no_program_imports_another(root: Path) -> None:
    wrong = [
        f"{path.relative_to(root)}:{line} imports {module}"
        for path in modules(root, *PROGRAMS & {p.name for p in root.iterdir()})
        for line, module, _ in imports(path)
        if (top := module.partition(".")[0]) in PROGRAMS and top != path.relative_to(root).parts[0]
    ]
    assert not wrong


def test_the_library_imports_no_program(root: Path) -> None:
    programs = PROGRAMS | {"bench", "tests", "scripts", "conftest", "support"}
    wrong = [
        f"{path.relative_to(root)}:{line} imports {module}"
        for path in modules(root, "wellread")
        for line, module, _ in imports(path)
        if module.partition(".")[0] in programs
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


def test_no_vague_file_names(root: Path) -> None:
    folders = [path for path in root.iterdir() if path.name in (*FOLDERS, "tests")]
    vague = [p for folder in folders for p in folder.rglob("*") if p.stem in VAGUE and p.suffix in (".py", "")]
    assert not vague


def test_every_module_has_a_docstring(root: Path) -> None:
    silent = [path for path in modules(root, *FOLDERS) if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


SUBJECTS = {"bad_input", "cluster", "docs", "packaging", "real_data", "rules", "runs", "scripts"}
"""Folders of tests that do not correspond to a folder of the code."""


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


FLAKY = {
    "call support.programs.missing, which fails in CI": r"pytest\.(?:skip|importorskip|mark\.skip)",
    "wait for an event instead": r"(?:monotonic|perf_counter)\(\) - \w+ <",
    "raise the limit to 300 s or more": r"timeout=[12]?\d?\d\b",
}
"""What to do instead -> what a test must not contain: silent skips, assertions on durations, short limits."""


def test_no_skip_in_ci_and_no_test_depends_on_speed(root: Path) -> None:
    wrong = [
        f"{path.relative_to(root)}:{number}: {remedy}"
        for path in (root / "tests").rglob("*.py")
        if path != root / "tests" / "support" / "programs.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for remedy, pattern in FLAKY.items()
        if re.search(pattern, line)
    ]
    assert not wrong, "\n".join(wrong)


# Written in pieces, so that this file contains none of them.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.~-])/(?:work|root|home/\w+|Users/\w+|mnt/\w+|workspace)/(?!NAME)\w",
    "a package registry": "|".join(
        ["pypi" + r"\.org", "python" + "hosted", "index" + "-url", "index" + "_url", "npm" + "js", "arti" + "factory",
         "proxy" + r"\.golang", "trusted" + "-host", r"conda\." + "anaconda"]
    ),
    "a secret": r"hf_[A-Za-z]{30,}|gh[pousr]_\w{30,}|AKIA[A-Z0-9]{16}|-----BEGIN [A-Z ]*PRIVATE KEY",
    # 10.77.0.0/24 exists only in the network namespaces of the development cluster (scripts/slurm_lib.sh).
    "an address of a private network":
        r"\b(?:10\.(?!77\.0\.)\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}\b",
}  # fmt: skip


def test_no_file_names_a_path_registry_or_address(root: Path) -> None:
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


def test_the_forbidden_patterns_match() -> None:
    examples = {
        "a path of one machine": "cd /wor" + "k/x",
        "a package registry": "https://pypi" + ".org/simple",
        "a secret": "hf_" + "a" * 34,
        "an address of a private network": "http://10." + "0.0.7:8080",
    }
    for what, text in examples.items():
        assert re.search(FORBIDDEN[what], text), what
    for text in ("~/work/x", "runs/work/x", "../shared", "127.0.0.1:0", "docs/root/x", "10" + ".2.3/", "10.77.0.11"):
        assert not [what for what, pattern in FORBIDDEN.items() if re.search(pattern, text)]


def test_no_large_or_binary_file(root: Path) -> None:
    large = [(str(p.relative_to(root)), p.stat().st_size) for p in tracked(root) if p.stat().st_size > 1 << 20]
    assert not large


def test_import_linter(root: Path) -> None:
    result = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    assert re.search(r"\b0 broken", result.stdout)


def test_import_linter_knows_every_program_and_module(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    present = {name for name in PROGRAMS if (root / name / "__main__.py").exists()}
    assert set(settings["root_packages"]) == present | {"wellread"}
    (independent,) = [c for c in settings["contracts"] if c["type"] == "independence"]
    assert set(independent["modules"]) == present
    (layers,) = [c for c in settings["contracts"] if c["type"] == "layers"]
    layered = {name.strip() for layer in layers["layers"] for name in layer.split("|")}
    inside = {
        f"wellread.{p.stem}" for p in (root / "wellread").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert inside - {"wellread.__init__"} == layered


def test_every_imported_package_is_declared(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = project["dependencies"] + extras["train"] + extras["dev"]
    optional = {re.split(r"[\[<>=! ]", name, maxsplit=1)[0].lower() for name in extras["4bit"] + extras["float8"]}
    declared = {re.split(r"[\[<>=! ]", name, maxsplit=1)[0].lower() for name in requirements}
    names = {
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
        "xdist": "pytest-xdist",
        "vl_convert": "vl-convert-python",
        "huggingface_hub": "transformers",  # depends on the hub's client
        "markupsafe": "jinja2",  # returns its Markup
    }
    first_party = set(FOLDERS)
    undeclared = {
        f"{module} ({path.relative_to(root)}:{line})"
        for path in modules(root, *FOLDERS, "tests")
        for line, module_name, _ in imports(path)
        if (module := module_name.partition(".")[0]) not in first_party
        and module != "support"
        and module not in sys.stdlib_module_names
        and names.get(module, module) not in declared | optional
    }
    assert not undeclared
    lines = (root / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    pinned = {line.partition("==")[0] for line in lines}
    assert declared - pinned <= set(), "not pinned in constraints.txt"


@pytest.mark.parametrize("target", ["", "help"])
def test_make_without_a_target_explains_itself(target: str, root: Path) -> None:
    result = subprocess.run(["make", *filter(None, [target])], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    phony = (root / "Makefile").read_text().split(".PHONY:")[1].splitlines()[0].split()
    rules = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    assert set(phony) == rules
    assert {"setup", "ft", "plan", "status", "logs", "cancel", "doctor", "slurm-up", "slurm-down", "check"} <= rules
    explained = re.findall(r"^  make (\S+) +\S", result.stdout, re.MULTILINE)
    assert sorted(explained) == sorted(rules)
