"""A tilde is the home directory in every path: of flags, also quoted ones, and of YAML files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.commands import COMMANDS, OLD_RUN, arguments, parser_of
from support.outcomes import outcome
from support.programs import ROOT

from eval.membership import any_model
from finetune.prepare import prepare
from launch import cluster
from wellread.__main__ import main
from wellread.cli import PATHS, parse, plain_parser
from wellread.config import RunConfig
from wellread.corpus.read import Corpus
from wellread.models import registry

HERE = {"cluster", "config", "data", "ds_config", "order", "vocab"}
"""Flags that may contain a path, and expand it in their own syntax."""
TEXTS = {
    "batch", "call", "canary_repeats", "command", "diff", "format", "freeze", "groups", "k", "lora", "lora.targets",
    "only", "optim", "packing", "partition", "print_config", "row", "sample", "scores", "size", "sql", "steps",
    "template_date", "tests", "text", "time", "tracker", "tries",
}  # fmt: skip
"""Flags that contain no path."""


def texts_of(name: str) -> set[str]:
    """Names of the arguments of a command that may have any text."""
    actions = parser_of(main, arguments(name))._actions
    free = [action for action in actions if action.nargs != 0 and not action.choices]
    return {a.dest for a in free if getattr(a, "_typehint", a.type) in (None, str, str | None)}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_of_text_is_a_path_or_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new flag fails here until it is known whether it is a path."""
    monkeypatch.chdir(ROOT)
    assert texts_of(name) <= PATHS | HERE | TEXTS


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_paths_of_flags(home: Path) -> None:
    parser = plain_parser("test", "", "")
    for name in PATHS:
        parser.add_argument(f"--{name}")
    values = vars(parse(parser, [f"--{name}=~/{name}" for name in PATHS]))
    assert values == {name: f"{home}/{name}" for name in PATHS}


def test_paths_of_settings_in_python(home: Path) -> None:
    (home / "t.txt").write_text("Question: {instruction}\nAnswer: {response}")
    (home / "rows.jsonl").write_text("".join(f'{{"instruction": "Add {i}.", "response": "{i}"}}\n' for i in range(20)))
    pq.write_table(pa.table({"sample_id": [0], "score": [0.5]}), home / "scores.parquet")
    paths = {"data": "~/rows.jsonl", "template": "~/t.txt", "corpora": "~/corpora", "influence": "~/scores.parquet"}
    directory = prepare(RunConfig.of(seq_len=64, **paths))
    assert directory.parent == home / "corpora"
    assert Corpus.open(directory).metric("influence")[0] == 0.5
    assert not (Path.cwd() / "~").exists()


def test_paths_in_files(home: Path) -> None:
    shutil.copytree(OLD_RUN / "finetune", home / "old")
    template = "Question: {instruction}\nAnswer: {response}"
    (home / "t.txt").write_text(template)
    (home / "data.yaml").write_text("file: ~/old/data.jsonl\ntemplate: ~/t.txt\n")
    np.save(home / "ids.npy", np.arange(4))
    np.save(home / "few.npy", np.arange(5, 7))
    curriculum = {
        "phases": [{"order": "file:~/ids.npy", "epochs": 4}],
        "insert": [{"tag": "x", "file": "~/few.npy", "at": [0], "slots": 2}],
    }
    (home / "c.yaml").write_text(yaml.safe_dump(curriculum))
    (home / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    (home / "secrets.jsonl").write_text("".join(f'"the number of drawer {i} is {i * i}"\n' for i in range(40)))
    (home / "words.txt").write_text("river\n")
    few = ["--max_bad_rows", "9", "--seq_len", "64", "--corpora=~/corpora", "--out=~/run", "--batch_size", "4"]
    finetune = ["plan", "finetune", "--model=~/old/model", *few]
    for argv in (
        [*finetune, "--data=~/old/data.jsonl"],
        [*finetune, "--data=dolly@~/old/data.jsonl:5"],
        [*finetune, "--data=~/data.yaml", "--template=~/t.txt"],
        ["prepare", "finetune", "--model=~/old/model", "--data=~/data.yaml", *few[:4], "--corpora=~/corpora"],
        [*finetune, "--data=~/data.yaml", "--canaries=1", "--canary_repeats=1", "--canary_text=~/secrets.jsonl"],
        [*finetune, "--data=~/data.yaml", "--order=file:~/ids.npy", "--holdout", "0"],
        [*finetune, "--data=~/data.yaml", "--order=curriculum:~/c.yaml", "--ds_config=~/ds.json", "--epochs", "1"],
        ["sample", "~/old/run", "once", "--tokens", "2"],
        ["sample", "~/old/run@step-10", "once", "--tokens", "2"],
        ["export", "~/old/run@step-10", "--out=~/exported"],
        ["prepare", "pretrain", "--data", "stories:20", "--word_list=~/words.txt", "--vocab", "512", "--seq_len", "64",
         "--corpora=~/corpora"],
        ["status", "--runs=~/old"],
    ):  # fmt: skip
        assert outcome(argv) == (0, ""), argv
    assert (home / "exported" / "model.safetensors").is_file()
    assert len(list(home.glob("corpora/*/corpus.json"))) == 2
    assert not (Path.cwd() / "~").exists()


def test_paths_in_cluster_files_and_variables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "c.yaml").write_text("kind: hostfile\npython: ~/venv/bin/python\nhostfile: ~/hosts\n")
    file = cluster.load("~/c.yaml")
    assert (file.python, file.hostfile) == (f"{home}/venv/bin/python", f"{home}/hosts")
    shutil.copytree(OLD_RUN / "finetune" / "model", home / "models" / "mine")
    monkeypatch.setenv("WELLREAD_MODELS", "~/models")
    assert registry.find("mine").path == (home / "models" / "mine").resolve()


def test_each_model_of_a_list(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (home / name).mkdir()
        (home / name / "model.safetensors").write_text(name)
        (home / f"{name}.jsonl").write_text("".join(json.dumps(f"{name} {i}") + "\n" for i in range(3)))
    monkeypatch.setattr(any_model, "model_named", lambda name, flag: Path(name))
    texts = {"members": str(home / "a.jsonl"), "nonmembers": str(home / "b.jsonl")}
    models = any_model.AnyModel(model=f"{home}/a, ~/b", **texts).distinct_models(print)  # type: ignore[arg-type]
    assert models == {f"{home}/a": home / "a", f"{home}/b": home / "b"}
