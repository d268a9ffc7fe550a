"""The Makefile: names never become part of a shell command, and the run directory is the launcher's."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = (
    "MODEL", "DATA", "RUN", "CLUSTER", "NODES", "RANKS", "THEN", "PACK", "WORKERS", "SIZE", "VOCAB", "ARGS", "PYTHON",
)  # fmt: skip
INJECTION = '$(touch injected)`touch injected`"; touch injected #'
TARGETS = ("ft", "pretrain", "plan", "models", "eval", "status", "logs", "cancel", "doctor", "read", "verify", "report",
           "help", "setup", "test", "test-long", "oom-demo", "gpu-check", "slurm-up")  # fmt: skip
HOSTILE = [
    INJECTION,
    "$(shell touch injected)",
    "${shell touch injected}x",
    "$(eval $(shell touch injected))",
    "$$(touch injected)",
    "'; touch injected; '",
    "a & touch injected & b | touch injected",
    "x\ntouch injected\ny",
    ">injected",
    "$(file >injected,x)",
    "a$b*?[c]{d,e}~ \\ é",
]
PYTHON = f"""#!/bin/sh
exec {sys.executable} "$@"
"""
PROGRAM = "import json, sys; print(json.dumps(sys.argv[1:]))"
REGISTRY = "def default_run(*names): return 'run of ' + ' '.join(names)"


@pytest.fixture
def tree(root: Path, tmp_path: Path) -> Path:
    """The Makefile, with a program in place of wellread that prints its arguments, one list a line."""
    shutil.copy(root / "Makefile", tmp_path)
    files = {
        ".venv/bin/python": PYTHON, ".venv/.wellread-setup": "", "wellread/__main__.py": PROGRAM,
        "wellread/recipes/registry.py": REGISTRY, "wellread/__init__.py": "", "wellread/recipes/__init__.py": "",
        "scripts/__init__.py": "", "scripts/with_args.py": (root / "scripts/with_args.py").read_text(),
        "wellread/starting.py": (root / "wellread/starting.py").read_text(),
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".venv/bin/python").chmod(0o755)
    return tmp_path


def started(tree: Path, *arguments: str, **variables: str) -> list[list[str]]:
    """Arguments of each program that make starts; nothing else may have been executed."""
    before = sorted(path for path in tree.rglob("*") if "__pycache__" not in path.parts)
    setup = ["-o", ".venv/.wellread-setup", "-o", "pyproject.toml"]
    output = make(tree, *setup, *arguments, **variables)
    assert sorted(path for path in tree.rglob("*") if "__pycache__" not in path.parts) == before
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.parametrize("by", ["command line", "environment"])
@pytest.mark.parametrize("value", HOSTILE)
def test_values_arrive_as_they_are(value: str, by: str, tree: Path) -> None:
    def run(target: str, **values: str) -> list[list[str]]:
        if by == "environment":
            return started(tree, target, **values)
        return started(tree, target, *(f"{name}={text}" for name, text in values.items()))

    names = ("MODEL", "DATA", "RUN", "CLUSTER", "NODES", "RANKS", "THEN")
    assert run("ft", **dict.fromkeys(names, value), PACK="1", ARGS="--a 'b  c' --d=$e") == [
        ["run", "finetune", "--model", value, "--then", value, "--data", value, "--out", value, "--cluster", value,
         "--nodes", value, "--ranks_per_node", value, "--pack=true", "--a", "b  c", "--d=$e"]
    ]  # fmt: skip
    first, second, third = run("pretrain", SIZE=value, VOCAB=value, DATA=value)
    assert first[:8] == ["run", "pretrain", "--size", value, "--vocab", value, "--data", value]
    assert second[1] == f"run of pretrain stories-{value.lower()} {value}"
    assert third[1] == second[1]
    assert run("status", RUN=value) == [["status", value]]
    assert run("verify", MODEL=value) == [["verify", f"run of finetune {value} "]]


@pytest.mark.parametrize("value", HOSTILE)
def test_arguments_are_split_but_not_executed(value: str, tree: Path) -> None:
    if value.count("'") % 2 or value.count('"') % 2:
        with pytest.raises(subprocess.CalledProcessError) as caught:
            started(tree, "models", f"ARGS={value}")
        assert "error: ARGS: no closing quotation; close it" in caught.value.stderr
        assert not (tree / "injected").exists()
    else:
        (arguments,) = started(tree, "models", f"ARGS={value}")
        assert arguments == ["models", *shlex.split(value)]


def test_usual_arguments_and_defaults(tree: Path) -> None:
    assert started(tree, "read", 'ARGS=--text "old river" --batch 3') == [
        ["read", "run of finetune tiny ", "--text", "old river", "--batch", "3"]
    ]
    local = ["--cluster", "local", "--nodes", "1", "--ranks_per_node", "auto"]
    assert started(tree, "plan", "PACK=0") == [["plan", "finetune", "--model", "tiny", *local]]
    first, second, _ = started(tree, "pretrain")
    assert first == ["run", "pretrain", "--size", "15M", "--data", "stories:5000", *local, "--wait"]
    assert second[1] == "run of pretrain stories-15m stories:5000"
    assert started(tree, "pretrain", "MODEL=a")[0][:4] == ["run", "pretrain", "--model", "a"]
    assert started(tree, "pretrain", "THEN=eval")[0][:6] == ["run", "pretrain", "--size", "15M", "--then", "eval"]


def test_other_flags_reach_the_command_of_every_target(tree: Path) -> None:
    commands = {"eval": "membership"}
    for target in ("ft", "pretrain", "plan", "models", "eval", "status", "logs", "cancel", "doctor", "read", "verify",
                   "report"):  # fmt: skip
        arguments = started(tree, target, "RUN=r", "ARGS=--more 1")[0]
        assert arguments[0] in (target, commands.get(target, "run"))
        assert arguments[-2:] == ["--more", "1"]


@pytest.mark.parametrize("name", ["MODLE", "FLAGS", "PY", "WELLREAD", "VENV", "SHELL", "STAMP", "THE_RUN", "data"])
def test_an_unknown_setting_is_refused(name: str, tree: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        started(tree, "ft", f"{name}=touch injected")
    assert caught.value.returncode == 2
    assert f"unknown setting {name}; choose one of MODEL DATA " in caught.value.stderr


def make(root: Path, *arguments: str, **variables: str) -> str:
    environment = {"PATH": os.environ["PATH"]} | variables  # `make test` around this test exports its own names
    command = ["make", "-s", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("target", TARGETS)
def test_names_are_not_pasted_into_commands(target: str, root: Path) -> None:
    text = make(root, "-n", target, **dict.fromkeys(SETTINGS, INJECTION))
    assert text
    assert "injected" not in text


def test_the_page_of_make_prints_names_as_they_are(root: Path) -> None:
    text = make(root, "help", MODEL="$(echo a; echo b)")
    assert "MODEL=$(echo a; echo b)" in text


def test_ft_leaves_the_run_directory_to_the_launcher(root: Path) -> None:
    print_flags = "print-flags: ; @printf '[%s]' $(FLAGS)"
    assert "[--out]" not in make(root, "--eval", print_flags, "print-flags")
    assert "[--out][runs/a b]" in make(root, "--eval", print_flags, "print-flags", "RUN=runs/a b")
    print_run = "print-run: ; @echo $(THE_RUN)"
    assert make(root, "--eval", print_run, "print-run") == "runs/tiny-sample\n"
    assert make(root, "--eval", print_run, "print-run", "MODEL=pythia-70m") == "runs/pythia-70m-dolly\n"
    assert make(root, "--eval", print_run, "print-run", "RUN=runs/a b") == "runs/a b\n"
