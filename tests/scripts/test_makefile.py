"""The Makefile: names never become part of a shell command, and the run directory is the launcher's."""

import os
import subprocess
from pathlib import Path

import pytest

NAMES = ("MODEL", "DATA", "RUN", "CLUSTER", "VOCAB", "SIZE")
INJECTION = '$(touch injected)`touch injected`"; touch injected #'
TARGETS = ("ft", "pretrain", "plan", "eval", "status", "logs", "cancel", "doctor", "read", "verify", "report", "help")


def make(root: Path, *arguments: str, **variables: str) -> str:
    environment = {"PATH": os.environ["PATH"]} | variables  # `make test` around this test exports its own names
    command = ["make", "-s", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("target", TARGETS)
def test_names_are_not_pasted_into_commands(target: str, root: Path) -> None:
    text = make(root, "-n", target, **dict.fromkeys(NAMES, INJECTION))
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
