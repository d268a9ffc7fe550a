"""Bugs and mistakes: a bug shows its traceback and exits with 1, a mistake of the user is one line and exits with 2.

A module ``sitecustomize``, which Python imports first, replaces a function of numpy or torch with one that fails, in
every process of a program. The programs themselves are unchanged.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.programs import Program

from wellread.corpus.read import Corpus
from wellread.errors import BAD_INPUT, FAILURE, UserError, user_message
from wellread.record.reader import Record
from wellread.run import RunDirectory
from wellread.streams import print_error

# --- injected errors

SITECUSTOMIZE = '''
"""Put a function that fails into the place of {module}.{function}, once that module is imported."""
import importlib.util
import os
import sys


class Planter:
    def find_spec(self, name, path=None, target=None):
        if name != "{module}":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def planted(module):
            load(module)
            unchanged = module.{function}

            def failing(*arguments, **settings):
                if {when}:
                    {error}
                return unchanged(*arguments, **settings)

            module.{function} = failing

        spec.loader.exec_module = planted
        return spec


sys.meta_path.insert(0, Planter())
'''
BUGS = {
    "numpy": (
        "import numpy; numpy.zeros((2, 3)) @ numpy.zeros((2, 3))",
        "ValueError: matmul: Input operand 1 has a mis",
    ),
    "torch": (
        "import torch; torch.nn.functional.cross_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))",
        "ValueError: Expected input batch_size (2) to match target batch_size (3).",
    ),
}
"""For each library a real ValueError of one of its operations: code that raises it, and the start of its last line."""
MISTAKE = "row 3: planted; take it out"
IN_A_RANK = "'RANK' in os.environ and __import__('torch').is_grad_enabled()"
"""In a training step: not at the start, where the holdout is scored, and not in an evaluation."""
IN_AN_EVALUATION = "'RANK' not in os.environ"

Plant = Callable[..., dict[str, str | None]]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Let a function of a library fail; return the environment variables with which programs get that error."""

    def into(module: str, function: str, error: str, when: str = "True") -> dict[str, str | None]:
        folder = tmp_path / "planted"
        folder.mkdir()
        code = SITECUSTOMIZE.format(module=module, function=function, when=when, error=error)
        (folder / "sitecustomize.py").write_text(code)
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}

    return into


def mistake() -> str:
    return f"from wellread.errors import UserError; raise UserError({MISTAKE!r})"


def errors_in(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error:")]


def prepares(corpora: Path) -> dict[str, list[object]]:
    """Commands that compile a corpus; the launcher does that first."""
    tiny = ["--steps", 1, "--corpora", corpora, "--out", corpora / "run"]
    return {
        "finetune": ["finetune", "prepare", "--corpora", corpora],
        "pretrain": ["pretrain", "prepare", "--corpora", corpora, "--data", "stories:60", "--vocab", 512],
        "launch": ["launch", "run", "finetune", *tiny],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["launch", *(pytest.param(command, marks=pytest.mark.long) for command in ("finetune", "pretrain"))]
)
def test_a_bug_in_a_prepare(command: str, program: Program, plant: Plant, tmp_path: Path) -> None:
    """It occurs while shards are written."""
    cause, last = BUGS["numpy"]
    result = program(*prepares(tmp_path / "corpora")[command], env=plant("numpy", "savez", cause))
    assert result.returncode == FAILURE, result.stderr
    assert "Traceback (most recent call last):" in result.stderr
    assert f"\n{last}" in result.stderr
    assert errors_in(result.stderr) == []
    assert list((tmp_path / "corpora").glob("*/corpus.json")) == []


@pytest.mark.slow
def test_a_mistake_in_a_prepare(program: Program, plant: Plant, tmp_path: Path) -> None:
    result = program(*prepares(tmp_path / "corpora")["launch"], env=plant("numpy", "savez", mistake()))
    assert (result.returncode, errors_in(result.stderr)) == (BAD_INPUT, [f"error: {MISTAKE}"])
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "corpora").glob("*/corpus.json")) == []


def training(corpora: Path, out: Path) -> list[object]:
    small = ["--steps", 2, "--save_every", 2, "--batch_size", 2, "--seq_len", 256, "--generations", 0]
    return ["launch", "run", "finetune", *small, "--ranks_per_node", 1, "--corpora", corpora, "--out", out]


@pytest.mark.slow
def test_a_bug_in_a_rank(program: Program, plant: Plant, corpora: Path, corpus: Corpus, tmp_path: Path) -> None:
    cause, last = BUGS["torch"]
    fallen = plant("torch.nn.functional", "embedding", cause, IN_A_RANK)
    result = program(*training(corpora, tmp_path / "run"), env=fallen)
    assert result.returncode == FAILURE, result.stderr
    assert "saved step-00000000" in result.stdout
    trace, _, after = result.stderr.partition(last)
    assert "Traceback (most recent call last):" in trace
    assert after, result.stderr
    (line,) = errors_in(result.stderr)
    assert last in line
    assert "rank 0" in line
    assert last in next((tmp_path / "run" / "log").glob("*rank-0.log")).read_text()
    assert RunDirectory.open(tmp_path / "run").manifest()["attempts"][-1]["exit_code"] == FAILURE


@pytest.mark.long
@pytest.mark.slow
def test_a_mistake_in_a_rank(program: Program, plant: Plant, corpora: Path, corpus: Corpus, tmp_path: Path) -> None:
    fallen = plant("torch.nn.functional", "embedding", mistake(), IN_A_RANK)
    result = program(*training(corpora, tmp_path / "run"), env=fallen)
    assert result.returncode == BAD_INPUT, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = errors_in(result.stderr)
    assert MISTAKE in line


@pytest.mark.slow
def test_a_bug_in_an_evaluation(program: Program, plant: Plant, copied_run: RunDirectory) -> None:
    cause, last = BUGS["torch"]
    fallen = plant("torch.nn.functional", "embedding", cause, IN_AN_EVALUATION)
    result = program("eval", "membership", copied_run.path, "--steps", 12, env=fallen)
    assert result.returncode == FAILURE, result.stderr
    assert "Traceback (most recent call last):" in result.stderr
    assert f"\n{last}" in result.stderr
    assert errors_in(result.stderr) == []
    assert not (copied_run.eval / "membership.parquet").exists()


@pytest.mark.long
@pytest.mark.slow
def test_a_bug_in_the_evaluation_after_a_run(
    program: Program, plant: Plant, corpora: Path, corpus: Corpus, tmp_path: Path
) -> None:
    cause, last = BUGS["torch"]
    fallen = plant("torch.nn.functional", "embedding", cause, IN_AN_EVALUATION)
    result = program(*training(corpora, tmp_path / "run"), "--then", "eval", env=fallen)
    assert result.returncode == FAILURE, result.stderr
    assert "finished at step 2" in result.stdout
    assert f"\n{last}" in result.stderr
    assert errors_in(result.stderr) == []


@pytest.mark.long
@pytest.mark.slow
def test_a_mistake_in_an_evaluation(program: Program, plant: Plant, copied_run: RunDirectory) -> None:
    fallen = plant("torch.nn.functional", "embedding", mistake(), IN_AN_EVALUATION)
    result = program("eval", "membership", copied_run.path, "--steps", 12, env=fallen)
    assert (result.returncode, errors_in(result.stderr)) == (BAD_INPUT, [f"error: {MISTAKE}"])
    assert "Traceback" not in result.stderr


# --- mistakes of users

ROW = {"instruction": "Name a color.", "context": "", "response": "Blue."}
MISTAKES = [
    ("launch fly", "fly"),
    ("launch run finetun", "finetun"),
    ("launch run eval fly RUN", "fly"),
    ("launch run finetune --batchsize 16", "--batch_size"),
    ("launch run finetune --steps many", "--steps many"),
    ("launch run finetune --optim.lr fast", "--optim.lr fast"),
    ("launch run finetune --config DIR/none.yaml", "DIR/none.yaml"),
    ("launch run finetune --config DIR/list.yaml", "DIR/list.yaml"),
    ("launch run finetune --data DIR/none.jsonl", "DIR/none.jsonl"),
    ("launch run finetune --model pythia70m", "pythia-70m"),
    ("launch run finetune --out DIR/thesis", "contains thesis.tex"),
    ("launch run finetune --batch_size 9 --ranks_per_node 2", "--batch_size 9"),
    ("launch run finetune --data DIR/cut.jsonl --out DIR/run", "DIR/cut.jsonl row 2"),
    ("launch plan finetune --seq_len 4096", "--seq_len 4096"),
    ("launch plan finetune --strategy zero9", "zero9"),
    ("launch plan finetune --cluster DIR/none.yaml", "DIR/none.yaml"),
    ("launch plan finetune --order upwards", "upwards"),
    ("launch plan pretrain --size 3B", "--size 3B"),
    ("launch status DIR/thesis", "DIR/thesis"),
    ("launch status --jsn", "jsn"),
    ("launch logs DIR/nowhere", "DIR/nowhere"),
    ("launch logs RUN --rank first", "first"),
    ("launch cancel DIR/thesis", "DIR/thesis"),
    ("launch models --jsn", "jsn"),
    ("finetune fly", "fly"),
    ("finetune prepare --data DIR/cut.jsonl", "DIR/cut.jsonl row 2"),
    ("finetune prepare --data DIR/wrong.jsonl", "DIR/wrong.jsonl"),
    ("finetune prepare --data DIR/empty.jsonl", "DIR/empty.jsonl"),
    ("finetune prepare --holdout 2", "--holdout 2"),
    ("finetune prepare --data sample:0.0", "sample:0.0"),
    ("pretrain fly", "fly"),
    ("pretrain prepare --data DIR/none.txt", "DIR/none.txt"),
    ("pretrain prepare --loss_on all", "loss_on"),
    ("pretrain sample DIR/nowhere", "DIR/nowhere"),
    ("pretrain sample RUN@step-7", "step-7"),
    ("pretrain export RUN --format gguf --out DIR/model", "gguf"),
    ("pretrain import DIR/empty.jsonl DIR/empty.jsonl --out DIR/model", "DIR/empty.jsonl"),
    ("eval fly RUN", "fly"),
    ("eval read DIR/nowhere", "DIR/nowhere"),
    ("eval read DIR/thesis", "DIR/thesis"),
    ("eval read RUN --batch 12", "12"),
    ("eval read RUN --batc 3", "batc"),
    ("eval membership DIR/thesis", "DIR/thesis"),
    ("eval membership RUN --steps 4,all", "all"),
    ("eval membership RUN --bootstrap 5", "--bootstrap 5"),
    ("eval membership RUN --steps 5", "5"),
    ("eval membership RUN --vulnerable 50", "--vulnerable"),
    ("eval membership RUN --vulnerable 0", "--vulnerable 0"),
    ("eval forgetting DIR/thesis", "DIR/thesis"),
    ("eval forgetting RUN --steps 5", "5"),
    ("eval forgetting RUN --seed -1", "--seed -1"),
    ("eval generations DIR/thesis", "DIR/thesis"),
    ("eval generations RUN --prompts 1", "--prompts 1"),
    ("eval generations RUN --new_tokens 0", "--new_tokens 0"),
    ("eval generations RUN --steps 5", "5"),
    ("eval saturation DIR/thesis", "DIR/thesis"),
    ("eval saturation RUN", "wellread generations"),
    ("eval saturation RUN --margin 1", "--margin 1"),
    ("eval saturation RUN --margi 0.1", "margi"),
    ("eval verify DIR/nowhere", "DIR/nowhere"),
    ("eval verify", "run"),
    ("eval report DIR/thesis", "DIR/thesis"),
]
"""Command, and what its one line names. DIR contains the files of `surroundings`, RUN is a finished run."""
STARTED = [MISTAKES[i] for i in (0, 3, 12, 18, 25, 33, 39, 44, 48)]
"""These run in a new process, too. In this process all run, which is faster."""


@pytest.fixture
def surroundings(tmp_path: Path) -> Path:
    (tmp_path / "list.yaml").write_text("- steps\n")
    (tmp_path / "cut.jsonl").write_text(f'{json.dumps(ROW)}\n{{"instruction": "cut o')
    (tmp_path / "wrong.jsonl").write_text('{"topic": "x", "answer": "y"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    return tmp_path


def words(command: str, folder: Path, run: Path) -> list[str]:
    """The words of the command. All that it creates is in DIR."""
    arguments = command.replace("DIR", str(folder)).replace("RUN", str(run)).split()
    takes_corpora = arguments[1:2] == ["prepare"] or arguments[1:3] in (["run", "finetune"], ["plan", "finetune"])
    return [*arguments, *(["--corpora", str(folder / "corpora")] if takes_corpora else [])]


def one_line(stderr: str, code: object) -> str:
    assert code == BAD_INPUT, stderr
    assert "Traceback" not in stderr
    assert stderr.startswith("error: "), stderr
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1, stderr
    return stderr


@pytest.mark.parametrize(("command", "mention"), MISTAKES)
def test_a_mistake_is_one_line(
    command: str,
    mention: str,
    surroundings: Path,
    tiny_run: RunDirectory,
    in_process: Program,
) -> None:
    result = in_process(*words(command, surroundings, tiny_run.path))
    assert mention.replace("DIR", str(surroundings)) in one_line(result.stderr, result.returncode)
    assert [path.name for path in (surroundings / "thesis").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("command", "mention"), STARTED)
def test_a_mistake_is_one_line_in_a_new_process(
    command: str, mention: str, surroundings: Path, tiny_run: RunDirectory, program: Program
) -> None:
    result = program(*words(command, surroundings, tiny_run.path))
    assert mention.replace("DIR", str(surroundings)) in one_line(result.stderr, result.returncode)


@pytest.fixture(scope="module")
def damageable(tiny_run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A copy of the small files of the finished run."""
    large = shutil.ignore_patterns("code", "state", "*.safetensors")
    copy = shutil.copytree(tiny_run.path, tmp_path_factory.mktemp("damageable") / "run", ignore=large)
    return RunDirectory.open(copy)


@pytest.mark.parametrize(
    ("damaged", "command"),
    [
        ("manifest.json", "eval read RUN"),
        ("config.yaml", "eval membership RUN"),
        ("plan.json", "eval report RUN"),
        ("record/head.json", "eval read RUN"),
        ("corpus/corpus.json", "eval read RUN --batch 3"),
        ("record/PART", "eval read RUN"),
    ],
)
@pytest.mark.parametrize("truncated", [True, False])
def test_a_damaged_file_of_a_run_is_one_line(
    damaged: str,
    command: str,
    truncated: bool,
    damageable: RunDirectory,
    in_process: Program,
) -> None:
    file = damageable.path / damaged.replace("PART", Record.open(damageable.record).parts[0]["name"])
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + b"\n{[" if truncated else b"\xff" + content)
    try:
        result = in_process(*words(command, damageable.path.parent, damageable.path))
    finally:
        file.write_bytes(content)
    assert file.name in one_line(result.stderr, result.returncode)


@pytest.mark.parametrize(
    ("damaged", "command"),
    [
        ("samples.parquet", "eval membership RUN"),
        ("samples.parquet", "eval read RUN"),
        ("samples.parquet", "eval verify RUN"),
        ("offsets.npy", "eval read RUN --batch 3"),
        ("offsets.npy", "eval verify RUN"),
    ],
)
def test_a_damaged_table_of_a_corpus_is_one_line(
    damaged: str, command: str, damageable: RunDirectory, in_process: Program
) -> None:
    file = damageable.corpus / damaged
    content = file.read_bytes()
    file.write_bytes(b"\xff" * 8 + content[8:-8] + b"\xff" * 8)
    try:
        result = in_process(*words(command, damageable.path.parent, damageable.path))
    finally:
        file.write_bytes(content)
    if "verify" in command:
        assert (result.returncode, result.stderr) == (FAILURE, "")
        assert f"{damaged}: damaged (" in result.stdout
    else:
        assert f"{damaged}: damaged (" in one_line(result.stderr, result.returncode)


# --- messages


class Refused(UserError):
    """A subclass of UserError."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("row 3: no\n 'response';\r\n\tadd it\n"), "row 3: no 'response'; add it"),
        (UserError("a\tb  c\xa0d: is empty"), "a\\tb  c\xa0d: is empty"),  # a name stays as it is
        (Refused("no"), "no"),
        (ValueError("invalid literal for int()"), None),
        (TypeError("x"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (AssertionError(), None),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded", "runs/x"),
            "disk full: runs/x: free some space, then run the same command again; earlier checkpoints are intact",
        ),
        (OSError(errno.EROFS, "Read-only file system", "x"), "not allowed to write: x: choose another directory"),
        (PermissionError(errno.EPERM, "not permitted", "x"), "not allowed to write: x: choose another directory"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), "Is a directory: x"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), "Not a directory: x"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "No such file or directory"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), None),
        (OSError("no number"), None),
    ],
)
def test_the_message_of_an_error(error: BaseException, line: str | None) -> None:
    assert user_message(error) == line


def test_a_user_error_is_a_value_error() -> None:
    """Older code and code of users catches ValueError."""
    assert issubclass(UserError, ValueError)
    with pytest.raises(ValueError, match=r"^row 3$"):
        raise UserError("row 3")


def test_an_error_is_printed_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("row 3: add it")
    assert capsys.readouterr() == ("", "error: row 3: add it\n")


@pytest.mark.parametrize("code", [*range(9), *range(11, 32), *range(127, 160)])
def test_an_error_does_not_control_the_terminal(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    print_error(f"name{chr(code)}[31m: absent")
    assert capsys.readouterr().err == f"error: name\\x{code:02x}[31m: absent\n"
