"""Hundreds of wrong settings, files and paths for all commands: never a traceback; one line that names what and where.

Each table is built from what the program declares (types of settings, shapes of files, path arguments), so that a new
setting is tested as soon as it exists.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.outcomes import outcome
from support.programs import missing

from wellread.config import PretrainConfig, RunConfig
from wellread.config.flat import hints_of, shape_of
from wellread.data.sets import KEYS as OF_A_SET
from wellread.errors import BAD_INPUT
from wellread.models.families import INNER_KEYS, KEYS, OPTIONAL_KEYS
from wellread.shapes import mismatch

Row = tuple[str, list[object], str]
"""Label, arguments, and what the error must name."""
VALUES: tuple[Any, ...] = (None, True, -1, 1.5, 10**30, "x", [], [1], {}, {"a": 1}, [[None]])


def faults(rows: list[Row]) -> list[str]:
    """What is wrong with the answers to these rows."""
    problems = []
    for label, argv, name in rows:
        try:
            code, message = outcome([str(word) for word in argv])
        except Exception as error:
            problems.append(f"{label}: {type(error).__name__}: {error}"[:200])
            continue
        if code != BAD_INPUT:
            problems.append(f"{label}: exit code {code}")
        elif name not in message or "\n" in message:
            problems.append(f"{label}: {message}")
    return problems


def settings_of_wrong_types(folder: Path) -> Iterator[Row]:
    for program, kind in (("finetune", RunConfig), ("pretrain", PretrainConfig)):
        for key, hint in hints_of(kind).items():
            if program == "pretrain" and key in hints_of(RunConfig):
                continue
            shape = shape_of(hint)
            wrong = [value for value in VALUES if mismatch(value, shape, key)]
            if shape is bool or isinstance(shape, tuple):  # the parser reads a text as any of them
                wrong = [value for value in wrong if isinstance(value, dict | list)]
            if shape is str:  # numbers are texts, too, for the parser
                wrong = [value for value in wrong if isinstance(value, dict | list) or value is None]
            for i, value in enumerate(wrong):
                path = folder / f"{program}-{key}-{i}.yaml"
                path.write_text(yaml.safe_dump({key: value}))
                yield f"{key}: {value!r}", ["plan", program, "--config", path], key


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.long), 6])
def test_settings_of_wrong_types(every: int, tmp_path: Path) -> None:
    rows = list(settings_of_wrong_types(tmp_path))
    assert len(rows) > 200
    assert faults(rows[::every]) == []


TEXTS = ["", "- 1", "5", "null", "1: 2", "null: 3", '"": 5', "config: x", "a: [", "a: &a [*a]", "a: " + "9" * 5000,
         "steps: 1\nsteps: {", "[" * 100_000, "!!python/object/apply:os.system [true]", "optim: x", "? [1]\n: 3",
         "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12"]  # fmt: skip


def test_yaml_without_settings(tmp_path: Path) -> None:
    rows: list[Row] = []
    for i, text in enumerate(TEXTS):
        path = tmp_path / f"{i}.yaml"
        path.write_text(text)
        rows.append((f"config {text[:20]!r}", ["plan", "finetune", "--config", path], "--"))
        rows.append((f"data {text[:20]!r}", ["plan", "finetune", "--data", path], f"{i}.yaml"))
        rows.append((f"cluster {text[:20]!r}", ["plan", "finetune", "--cluster", path], f"{i}.yaml"))
        rows.append((f"ds_config {text[:20]!r}", ["plan", "finetune", "--ds_config", path], f"{i}.yaml"))
    assert faults(rows) == []


def test_descriptions_of_data_with_wrong_types(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    rows: list[Row] = []
    for key, shape in OF_A_SET.items():
        for i, value in enumerate(value for value in VALUES if mismatch(value, shape, key)):
            path = tmp_path / f"{key}-{i}.yaml"
            path.write_text(yaml.safe_dump({"file": "rows.jsonl"} | {key: value}))
            rows.append((f"{key}: {value!r}", ["plan", "finetune", "--data", path], f"{key}:"))
    assert len(rows) > 70
    assert faults(rows) == []


MODEL = {
    "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 300,
    "max_position_embeddings": 64, "intermediate_size": 32, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
REQUIRED = {key for keys in KEYS.values() for key in keys} & MODEL.keys() | {"model_type"}


def test_configurations_of_models_with_wrong_values(tmp_path: Path) -> None:
    keys = [*REQUIRED, *(key for key in INNER_KEYS if key in MODEL), *OPTIONAL_KEYS.values()]
    rows: list[Row] = []
    for key in dict.fromkeys(keys):
        is_size = key not in ("model_type", "tie_word_embeddings", "attention_bias")
        wrong = [value for value in (*VALUES, 0, "9", "") if not (value is True and not is_size)]
        for i, value in enumerate(wrong):
            if (key == "model_type" and value == "9") or (value is None and key not in REQUIRED):
                continue
            if (key == "model_type" and value == "x") or (key in INNER_KEYS and not value):
                continue
            model = tmp_path / f"{key}-{i}"
            model.mkdir()
            (model / "config.json").write_text(json.dumps(MODEL | {key: value}))
            rows.append((f"{key}: {value!r}", ["plan", "finetune", "--model", model, "--data", "sample"], key))
    for i, text in enumerate(["", "[]", "5", "null", "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\0"]):
        model = tmp_path / f"text-{i}"
        model.mkdir()
        (model / "config.json").write_text(text)
        rows.append((text[:20], ["plan", "finetune", "--model", model, "--data", "sample"], "config.json"))
    assert len(rows) > 100
    assert faults(rows) == []


PATHS: dict[str, list[str]] = {
    "config": ["plan", "finetune", "--config", "PATH"],
    "data": ["plan", "finetune", "--data", "PATH"],
    "data of pretraining": ["plan", "pretrain", "--data", "PATH"],
    "model": ["plan", "finetune", "--data", "sample", "--model", "PATH"],
    "cluster": ["plan", "finetune", "--cluster", "PATH.yaml"],
    "ds_config": ["plan", "finetune", "--ds_config", "PATH"],
    "template": ["plan", "finetune", "--template", "PATH.txt"],
    "status": ["status", "PATH"],
    "runs": ["status", "--runs", "PATH"],
    "logs": ["logs", "PATH"],
    "cancel": ["cancel", "PATH"],
    "read": ["read", "PATH"],
    "corpus": ["read", "--corpus", "PATH", "--batch_size", "4", "--batch", "0"],
    "verify": ["verify", "PATH"],
    "index": ["index", "PATH"],
    "trace": ["trace", "PATH", "a text of more than six tokens"],
    "membership": ["membership", "PATH"],
    "forgetting": ["forgetting", "PATH"],
    "memorization": ["memorization", "PATH"],
    "canaries": ["canaries", "PATH"],
    "marks": ["marks", "PATH"],
    "generations": ["generations", "PATH"],
    "saturation": ["saturation", "PATH"],
    "report": ["report", "PATH"],
    "sample": ["sample", "PATH", "text"],
    "export": ["export", "PATH", "--format", "hf", "--out", "OUT"],
    "import": ["import", "PATH", "PATH", "--out", "OUT"],
    "run eval": ["run", "eval", "membership", "PATH"],
}
"""Arguments that are paths, by what is asked of them."""
FINE = {("runs", "folder"), ("config", "pipe"), ("ds_config", "pipe"), ("import", "pipe")}
"""What is not a mistake: a folder without runs, and a pipe that somebody may write to."""
PLACES = ("missing", "long", "loop", "/dev/null", "file", "folder", "pipe", "file/inside", "loop/inside")


def place(folder: Path, kind: str) -> str:
    """A path where nothing useful is."""
    if kind == "loop" and not (folder / kind).is_symlink():
        (folder / kind).symlink_to(folder / kind)
    if kind == "file":
        (folder / kind).write_bytes(b"\xff\xfe\0not text")
    if kind == "folder":
        (folder / kind).mkdir(exist_ok=True)
    if kind == "pipe" and not (folder / kind).exists():
        os.mkfifo(folder / kind)
    return kind if kind.startswith("/") else str(folder / ("n" * 300 if kind == "long" else kind))


def paths(folder: Path) -> Iterator[Row]:
    for name, words in PATHS.items():
        for kind in PLACES:
            if (name, kind) in FINE:
                continue
            path = place(folder, kind)
            argv: list[object] = [word.replace("PATH", path).replace("OUT", str(folder / "out")) for word in words]
            yield f"{name} {kind}", argv, path[:40]


def test_paths_where_nothing_useful_is(tmp_path: Path) -> None:
    rows = list(paths(tmp_path))
    assert len(rows) > 150
    assert faults(rows) == []
    assert not (tmp_path / "out").exists()


COMMANDS = """
finetunee | run finetune
verfy x | verify
statsu | status
run finetunee | finetune
plan pretrian | pretrain
prepare finetun | finetune
plan finetune --learning_rat 1 | --learning_rate
plan finetune --lr | --optim.lr
plan finetune --lr fast | --optim.lr fast
plan finetune --warmup x | --optim.warmup x
plan finetune --data dollly | dolly
plan finetune --data alpacca@x.jsonl | alpaca
plan finetune --model pythia70m | pythia-70m-v0
plan finetune --model qqq | stories-15m
plan finetune --tracker wandbb | tensorboard, wandb
plan finetune --strategy zero4 | --strategy zero4
plan finetune --template_date 2024-02-30 | --template_date 2024-02-30
plan finetune --holdout 2 | --holdout 2
plan finetune --holdout nan | --holdout nan
plan finetune --steps 0 | --steps 0
plan finetune --steps 9999999999999999999999 --order shuffle:x | --order
plan finetune --nodes 0 | --nodes 0
plan finetune --gpu_mem -1 | --gpu_mem -1
plan finetune --time never | --time never
plan finetune --data sample:0 | sample:0
plan finetune --data sample:nan,dolly:0.1 | sample:nan
plan finetune --data ,, | ,,
plan pretrain --size 3B | --size 3B
plan pretrain --vocab 3 | 3
models --jsn | --json
doctor --nodes x | --nodes x
status --runs /nowhere | /nowhere
read | run directory
read /nowhere --batch x | /nowhere
trace RUN | text
trace RUN few | RUN
trace RUN word --min 0 | --min
trace RUN word --min x | --min
index | run
run eval membershp | RUN
--completion tcsh | tcsh
sample | model
import | checkpoint
""".strip().splitlines()


def commands() -> list[Row]:
    """Mistakes in the words of a command line."""
    rows: list[Row] = []
    for line in COMMANDS:
        words, _, name = line.partition(" | ")
        rows.append((words, list(words.split()), name))
    return rows


def test_mistakes_in_a_command_line() -> None:
    assert faults(commands()) == []


BYTES = """
read RUN --text \udcff
read RUN --row \udcff:1
read RUN --sql \udcff
sample RUN \udcff
trace RUN \udcff
status \udcff
verify \udcff
plan finetune --data caf\udce9.jsonl
plan finetune --out \udcff
plan pretrain --config=\udcff.yaml
prepare finetune --data caf\udce9.jsonl
membership --model tiny --members \udcff --nonmembers x
""".strip().splitlines()
"""Words with bytes that are not UTF-8."""


def test_words_that_are_not_utf_8() -> None:
    rows: list[Row] = []
    for line in BYTES:
        words = line.split()
        (name,) = (word for word in words if not word.isascii())
        rows.append((line, list(words), f"{name!r}: is not UTF-8; "))
    assert faults(rows) == []


@pytest.mark.slow
def test_the_same_as_processes(tmp_path: Path, root: Path) -> None:
    """What the user sees: one line on stderr, nothing on stdout, exit code 2. Above, all lines are compared."""
    rows = commands()[::4] + list(paths(tmp_path))[::26]
    assert len(rows) >= 20
    problems = []
    for label, argv, name in rows:
        command = [sys.executable, "-m", "wellread", *map(str, argv)]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
        if result.returncode != 2 or result.stderr.count("\n") != 1 or name not in result.stderr or result.stdout:
            problems.append(f"{label}: {result.returncode} {result.stderr}")
    assert problems == []


AS_NOBODY = """
import os, sys
from support.outcomes import outcome
path, *argv = sys.argv[1:]
outcome([word.replace("PATH", path) for word in argv])  # imports what the command needs
os.chmod(path, 0)
os.setresgid(65534, 65534, 0)
os.setresuid(65534, 65534, 0)
print(outcome([word.replace("PATH", path) for word in argv]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config", "data", "model", "cluster", "status", "read", "verify", "template"])
def test_a_file_that_may_not_be_read(name: str, tmp_path: Path, root: Path) -> None:
    """As another user: root may read everything."""
    if os.geteuid():
        missing("only root can become another user")
    path = tmp_path / f"secret{''.join(part for part in PATHS[name] if part.startswith('PATH'))[4:]}"
    if name in ("model", "status", "read", "verify"):
        path.mkdir()
    else:
        path.write_text('{"instruction": "a", "response": "b"}\n')
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    words = [word.replace("PATH.yaml", "PATH").replace("PATH.txt", "PATH") for word in PATHS[name]]
    if name == "data":
        path = path.rename(path.with_suffix(".jsonl"))
    command = [sys.executable, "-c", AS_NOBODY, str(path), *words]
    environment = os.environ | {"PYTHONPATH": f"{root / 'tests'}:{root}"}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert f"({BAD_INPUT}, " in result.stdout, result.stdout + result.stderr
    assert str(path) in result.stdout
    assert "write" not in result.stdout
