"""Completion: the words that the completer prints, and what TAB then does in a real bash."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from select import select

import pytest
from support.commands import COMMANDS as COMMANDS_OF_PROGRAMS
from support.commands import arguments, parser_of

from wellread.__main__ import COMMANDS, main
from wellread.completion import SHELLS, completer_of

BREAKS = " \t\n\"'@><=;|&(:"
"""COMP_WORDBREAKS of bash."""
SORTED = {"sorted:n_tokens:asc", "sorted:n_tokens:desc", "sorted:n_targets:asc", "sorted:n_targets:desc"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, one of them with checkpoints, a directory in runs/ that is not a run, and files."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("tiny-sample", "dolly-70m"):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "config.yaml").write_text("steps: 3\n")
    (folder / "runs" / "notes").mkdir()
    for step in (0, 20, 100):
        checkpoint = folder / "runs" / "tiny-sample" / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "checkpoint.json").write_text("{}")
    (checkpoint.parent / "step-00000200").mkdir()  # not complete: it has no manifest
    for name in ("mine.yaml", "words.txt", "ids.npy", "spm.model", "rows.jsonl"):
        (folder / name).write_text("")
    return folder


def complete(line: str, folder: Path, root: Path, shell: str = "bash") -> list[str]:
    """Words that the completer of `wellread` prints for a line, as the shell's function asks for them."""
    read, write = os.pipe()
    variables = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": shell,
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_TYPE": str(ord("?")),
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_COMP_WORDBREAKS": BREAKS,
        "PYTHONPATH": str(root),
    }
    if shell == "fish":
        variables["_ARGCOMPLETE_DFS"] = "\t"
    command = f"{sys.executable} -m wellread 8>&{write} 9>&1"
    subprocess.run(["bash", "-c", command], cwd=folder, env=os.environ | variables, pass_fds=[write], check=True)
    os.close(write)
    with os.fdopen(read) as pipe:
        words = pipe.read().split("\n")
    separator = {"fish": "\t", "zsh": ":"}.get(shell, "\0")
    return [word.partition(separator)[0].rstrip() for word in words if word]


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_runs_and_models_are_completed(shell: str, workplace: Path, root: Path) -> None:
    assert set(complete("wellread ", workplace, root, shell)) >= COMMANDS.keys()
    assert complete("wellread st", workplace, root, shell) == ["status"]
    assert complete("wellread logs runs/ti", workplace, root, shell) == ["runs/tiny-sample"]
    assert set(complete("wellread run finetune --model pythia-1", workplace, root, shell)) > {"pythia-14m", "pythia-1b"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("wellread plan ", {"finetune", "pretrain"}),
        ("wellread run eval mem", {"membership", "memorization"}),
        ("wellread run finetune --optim.l", {"--optim.lr"}),
        ("wellread run finetune --data alp", {"alpaca", "alpaca-cleaned"}),
        ("wellread run finetune --strategy=zero3-", {"zero3-partial", "zero3-offload", "zero3-nvme"}),
        ("wellread run finetune --then ", {"none", "eval"}),
        ("wellread run eval membership runs/d", {"runs/dolly-70m"}),
        ("wellread sample runs/tiny-s", {"runs/tiny-sample"}),
        ("wellread export runs/tiny-sample --m", {"--merged"}),
        ("wellread read runs/tiny-sample --che", {"--checkpoint"}),
        ("wellread prepare finetune --sho", {"--show"}),
        ("wellread --completion z", {"zsh"}),
        ("wellread run finetune --cluster ", {"local", "slurm", "hostfile", "mine.yaml", "runs/"}),
        ("wellread run eval membership runs/tiny-sample --cluster s", {"slurm"}),
        ("wellread doctor --cluster m", {"mine.yaml"}),
        ("wellread run finetune --template ", {"alpaca", "dolly", "qa", "none", "chat", "words.txt", "runs/"}),
        ("wellread plan pretrain --size ", {"260K", "15M", "42M", "110M"}),
        ("wellread read runs/tiny-sample --checkpoint ", {"step-0", "step-20", "step-100"}),
        ("wellread read runs/tiny-sample --diff step-20 step-1", {"step-100"}),
        ("wellread read --checkpoint ", set()),
        ("wellread membership runs/tiny-sample --steps 0,", {"0,0", "0,20", "0,100"}),
        ("wellread sample runs/tiny-sample@step-1", {"step-100"}),
        ("wellread export runs/tiny-sample@", {"step-0", "step-20", "step-100"}),
        ("wellread read runs/tiny-sample@", set()),
        ("wellread run finetune --data dolly:0.5,al", {"0.5,alpaca", "0.5,alpaca-cleaned"}),
        ("wellread run finetune --data alpaca@r", {"runs/", "rows.jsonl"}),
        ("wellread run finetune --order s", {"shuffle", "sequential"} | SORTED),
        ("wellread run finetune --order file:", {"ids.npy", "runs/"}),
        ("wellread read --order ", {"sequential", "pythia", "megatron:"}),
        ("wellread run finetune --tracker ", {"tensorboard", "wandb", "tensorboard,wandb"}),
        ("wellread run pretrain --vocab ", {"llama2", "spm.model", "runs/"}),
        ("wellread import s", {"spm.model"}),
        ("wellread run finetune --freeze ", set()),
        ("wellread run finetune --out runs/tiny-sample --steps ", set()),
        ("wellread run finetune --optim.lr 1", set()),
        ("wellread run finetune --out runs/no", {"runs/notes/"}),
        ("wellread logs runs/tiny-sample --rank ", set()),
    ],
)
def test_arguments_are_completed(line: str, words: set[str], workplace: Path, root: Path) -> None:
    assert set(complete(line, workplace, root)) == words


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_prints_the_code_of_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--completion", shell])
    code = capsys.readouterr().out
    assert "wellread" in code
    assert ("complete --command wellread" in code) == (shell == "fish")


def installed(folder: Path, root: Path) -> dict[str, str]:
    """Environment with `wellread` on the path."""
    (folder / "wellread").write_text(f'#!/bin/sh\nexec {sys.executable} -m wellread "$@"\n')
    (folder / "wellread").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(root)}


def test_bash_completes(workplace: Path, root: Path, tmp_path: Path) -> None:
    """The function that ``--completion bash`` prints, in bash."""
    script = """
source <(wellread --completion bash)
COMP_LINE='wellread cancel runs/ti' COMP_POINT=23 COMP_TYPE=9 COMP_WORDS=(wellread cancel runs/ti) COMP_CWORD=2
_python_argcomplete wellread
printf '%s\\n' "${COMPREPLY[@]}"
"""
    variables = os.environ | installed(tmp_path, root)
    result = subprocess.run(
        ["bash", "-c", script], cwd=workplace, env=variables, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["runs/tiny-sample"], result.stderr


@pytest.mark.parametrize("name", COMMANDS_OF_PROGRAMS)
def test_no_argument_prints_a_message_of_the_parser(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The completer of jsonargparse prints the type that it expects; each of its arguments gets another."""
    monkeypatch.chdir(root)
    for action in parser_of(main, [*arguments(name), *["x"] * (name == "run eval")])._actions:
        assert completer_of(action) or action.choices or not hasattr(action, "_typehint"), action.option_strings


def after_tab(line: str, folder: Path, variables: dict[str, str]) -> str:
    """What an interactive bash shows after `line` and three TABs."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], os.environ | variables)
    try:
        os.write(terminal, b"source <(wellread --completion bash); echo rea''dy\n")
        read_until(terminal, "ready\r\nat-prompt ", seconds=60)
        os.write(terminal, f"{line}\t\t\t".encode())  # insert what is common, ring the bell, show the list
        os.write(terminal, b" \x15echo fin''ished\n")  # Ctrl-U empties the line
        return read_until(terminal, "finished", seconds=60).replace("\a", "")
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(terminal)


def read_until(terminal: int, text: str, seconds: float) -> str:
    """Output of the terminal up to `text`."""
    output, end = "", time.monotonic() + seconds
    while text not in output and (remaining := end - time.monotonic()) > 0:
        if select([terminal], [], [], remaining)[0]:
            output += os.read(terminal, 65536).decode()
    assert text in output, output
    return output


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("wellread sample runs/tiny-sample@step-1", ["runs/tiny-sample@step-100 "]),
        ("wellread export runs/tiny-sample@", ["runs/tiny-sample@step-", "step-0", "step-20", "step-100"]),
        ("wellread run finetune --cluster ", ["hostfile", "local", "slurm", "mine.yaml"]),
        ("wellread run finetune --data dolly:0.5,al", ["--data dolly:0.5,alpaca"]),
        ("wellread run finetune --steps ", []),
        ("wellread read runs/tiny-sample@", []),
    ],
)
def test_tab_in_bash(line: str, expected: list[str], workplace: Path, root: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 node-of-hosts step-host\n")
    variables = installed(tmp_path, root) | {"HOSTFILE": str(hosts), "TERM": "dumb", "PS1": "at-prompt "}
    output = after_tab(line, workplace, variables)
    for word in expected:
        assert word in output, output
    assert "node-of-hosts" not in output
    assert "step-host" not in output
    assert "valid" not in output
    if not expected:
        assert "rows.jsonl" not in output


def test_completion_takes_less_than_a_second(workplace: Path, root: Path) -> None:
    durations = []
    for _ in range(3):
        start = os.times()
        complete("wellread run finetune --cluster ", workplace, root)
        used = os.times()
        durations.append(used.children_user + used.children_system - start.children_user - start.children_system)
    assert min(durations) < 1
