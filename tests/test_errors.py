"""Whose fault an error is: a bug shows its traceback and exits 1, a user's mistake is one line and exits 2.

Bugs are planted where no program looks: a module ``sitecustomize``, which Python imports first, changes a function of
numpy or torch in every process below; the programs run as they are, from their own command lines.
"""

from __future__ import annotations

import errno
import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.programs import Program

from wellread.corpus.read import Corpus
from wellread.errors import BAD_INPUT, FAILURE, UserError, print_error, user_message
from wellread.run import RunDirectory

# --- planted errors

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
"""For each library a real ValueError out of one of its operations: how to have it, and how its last line begins."""
MISTAKE = "row 3: planted; take it out"
IN_A_RANK = "'RANK' in os.environ and __import__('torch').is_grad_enabled()"
"""In a training step: not at start, where the sealed holdout is scored, nor in an evaluation."""
IN_AN_EVALUATION = "'RANK' not in os.environ"

Plant = Callable[..., dict[str, str | None]]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Plant an error into a function of a library; return the variables of programs that then fall over it."""

    def into(module: str, function: str, error: str, when: str = "True") -> dict[str, str | None]:
        here = tmp_path / "planted"
        here.mkdir()
        code = SITECUSTOMIZE.format(module=module, function=function, when=when, error=error)
        (here / "sitecustomize.py").write_text(code)
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))}

    return into


def mistake() -> str:
    return f"from wellread.errors import UserError; raise UserError({MISTAKE!r})"


def errors_in(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error:")]


def prepares(corpora: Path) -> dict[str, list[object]]:
    """Commands that compile a corpus, the launcher's among them, which prepares first."""
    tiny = ["--steps", 1, "--corpora", corpora, "--out", corpora / "run"]
    return {
        "finetune": ["finetune", "prepare", "--corpora", corpora],
        "pretrain": ["pretrain", "prepare", "--corpora", corpora, "--data", "stories:60", "--vocab", 512],
        "launch": ["launch", "run", "finetune", *tiny],
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", ["finetune", "pretrain", "launch"])
def test_a_bug_in_a_prepare(command: str, program: Program, plant: Plant, tmp_path: Path) -> None:
    """It happens where shards are written, in the midst of the rows' way into the corpus."""
    cause, last = BUGS["numpy"]
    done = program(*prepares(tmp_path / "corpora")[command], env=plant("numpy", "savez", cause))
    assert done.returncode == FAILURE, done.stderr
    assert "Traceback (most recent call last):" in done.stderr
    assert f"\n{last}" in done.stderr
    assert errors_in(done.stderr) == []
    assert list((tmp_path / "corpora").glob("*/corpus.json")) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["finetune", "pretrain", "launch"])
def test_a_mistake_in_a_prepare(command: str, program: Program, plant: Plant, tmp_path: Path) -> None:
    done = program(*prepares(tmp_path / "corpora")[command], env=plant("numpy", "savez", mistake()))
    assert (done.returncode, errors_in(done.stderr)) == (BAD_INPUT, [f"error: {MISTAKE}"])
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "corpora").glob("*/corpus.json")) == []


def training(corpora: Path, out: Path) -> list[object]:
    small = ["--steps", 2, "--save_every", 2, "--batch_size", 2, "--seq_len", 256, "--generations", 0]
    return ["launch", "run", "finetune", *small, "--ranks_per_node", 1, "--corpora", corpora, "--out", out]


@pytest.mark.slow
def test_a_bug_in_a_rank(program: Program, plant: Plant, corpora: Path, corpus: Corpus, tmp_path: Path) -> None:
    cause, last = BUGS["torch"]
    fallen = plant("torch.nn.functional", "embedding", cause, IN_A_RANK)
    done = program(*training(corpora, tmp_path / "run"), env=fallen)
    assert done.returncode == FAILURE, done.stderr
    assert "saved step-00000000" in done.stdout
    trace, _, rest = done.stderr.partition(last)
    assert "Traceback (most recent call last):" in trace
    assert rest, done.stderr
    (shown,) = errors_in(done.stderr)
    assert last in shown
    assert "rank 0" in shown
    assert last in next((tmp_path / "run" / "log").glob("*rank-0.log")).read_text()
    assert RunDirectory.open(tmp_path / "run").manifest()["attempts"][-1]["exit_code"] == FAILURE


@pytest.mark.slow
def test_a_mistake_in_a_rank(program: Program, plant: Plant, corpora: Path, corpus: Corpus, tmp_path: Path) -> None:
    fallen = plant("torch.nn.functional", "embedding", mistake(), IN_A_RANK)
    done = program(*training(corpora, tmp_path / "run"), env=fallen)
    assert done.returncode == BAD_INPUT, done.stderr
    assert "Traceback" not in done.stderr
    (shown,) = errors_in(done.stderr)
    assert MISTAKE in shown


@pytest.mark.slow
@pytest.mark.parametrize("start", [["eval", "membership"], ["launch", "run", "eval", "membership"]])
def test_a_bug_in_an_evaluation(start: list[str], program: Program, plant: Plant, copied_run: RunDirectory) -> None:
    cause, last = BUGS["torch"]
    fallen = plant("torch.nn.functional", "embedding", cause, IN_AN_EVALUATION)
    done = program(*start, copied_run.path, "--steps", 12, env=fallen)
    assert done.returncode == FAILURE, done.stderr
    assert "Traceback (most recent call last):" in done.stderr
    assert f"\n{last}" in done.stderr
    assert errors_in(done.stderr) == []
    assert not (copied_run.eval / "membership.parquet").exists()


@pytest.mark.slow
def test_a_bug_in_the_evaluation_after_a_run(
    program: Program, plant: Plant, corpora: Path, corpus: Corpus, tmp_path: Path
) -> None:
    cause, last = BUGS["torch"]
    fallen = plant("torch.nn.functional", "embedding", cause, IN_AN_EVALUATION)
    done = program(*training(corpora, tmp_path / "run"), "--then", "eval", env=fallen)
    assert done.returncode == FAILURE, done.stderr
    assert "finished at step 2" in done.stdout
    assert f"\n{last}" in done.stderr
    assert errors_in(done.stderr) == []


@pytest.mark.slow
def test_a_mistake_in_an_evaluation(program: Program, plant: Plant, copied_run: RunDirectory) -> None:
    fallen = plant("torch.nn.functional", "embedding", mistake(), IN_AN_EVALUATION)
    done = program("eval", "membership", copied_run.path, "--steps", 12, env=fallen)
    assert (done.returncode, errors_in(done.stderr)) == (BAD_INPUT, [f"error: {MISTAKE}"])
    assert "Traceback" not in done.stderr


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
    ("launch run finetune --out DIR/thesis", "holds thesis.tex"),
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
    ("eval membership RUN --steps 4,last", "last"),
    ("eval membership RUN --bootstrap 5", "--bootstrap 5"),
    ("eval membership RUN --steps 5", "5"),
    ("eval verify DIR/nowhere", "DIR/nowhere"),
    ("eval verify", "run"),
    ("eval report DIR/thesis", "DIR/thesis"),
]
"""Command, and what its one line names. DIR holds what `surroundings` puts there, RUN is a finished run."""
STARTED = [MISTAKES[i] for i in (0, 3, 12, 18, 25, 33, 39, 44, 48)]
"""Those that are given to a new process as well; the others, for speed, to the same programs inside this one."""


@pytest.fixture
def surroundings(tmp_path: Path) -> Path:
    (tmp_path / "list.yaml").write_text("- steps\n")
    (tmp_path / "cut.jsonl").write_text(f'{json.dumps(ROW)}\n{{"instruction": "cut o')
    (tmp_path / "wrong.jsonl").write_text('{"topic": "x", "answer": "y"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    return tmp_path


def words(command: str, here: Path, run: Path) -> list[str]:
    """The command's words; what it makes, it makes in DIR."""
    found = command.replace("DIR", str(here)).replace("RUN", str(run)).split()
    takes_corpora = found[1:2] == ["prepare"] or found[1:3] in (["run", "finetune"], ["plan", "finetune"])
    return [*found, *(["--corpora", str(here / "corpora")] if takes_corpora else [])]


def one_line(stderr: str, code: object) -> str:
    assert code == BAD_INPUT, stderr
    assert "Traceback" not in stderr
    assert stderr.startswith("error: "), stderr
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1, stderr
    return stderr


@pytest.mark.parametrize(("command", "named"), MISTAKES)
def test_a_mistake_is_one_line(
    command: str,
    named: str,
    surroundings: Path,
    tiny_run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shown = started_here(words(command, surroundings, tiny_run.path), monkeypatch, capfd)
    assert named.replace("DIR", str(surroundings)) in shown
    assert [path.name for path in (surroundings / "thesis").iterdir()] == ["thesis.tex"]


def started_here(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """Do in this process what ``python -m`` does; return the one line of error."""
    monkeypatch.setattr(sys, "argv", list(arguments))
    monkeypatch.delitem(sys.modules, f"{arguments[0]}.__main__", raising=False)
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    return one_line(capfd.readouterr().err, left.value.code)


@pytest.mark.parametrize(("command", "named"), STARTED)
def test_so_it_is_in_a_process_of_its_own(
    command: str, named: str, surroundings: Path, tiny_run: RunDirectory, program: Program
) -> None:
    done = program(*words(command, surroundings, tiny_run.path))
    assert named.replace("DIR", str(surroundings)) in one_line(done.stderr, done.returncode)


@pytest.fixture(scope="module")
def damageable(tiny_run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """What is small of the finished run, copied."""
    large = shutil.ignore_patterns("code", "state", "*.safetensors")
    copy = shutil.copytree(tiny_run.path, tmp_path_factory.mktemp("damageable") / "run", ignore=large)
    return RunDirectory.open(copy)


@pytest.mark.parametrize(
    ("damaged", "command"),
    [
        ("manifest.json", "eval read RUN"),
        ("config.yaml", "eval membership RUN"),
        ("plan.json", "eval report RUN"),
        ("record/head.json", "eval verify RUN"),
        ("corpus/corpus.json", "eval read RUN --batch 3"),
    ],
)
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_file_of_a_run_is_one_line(
    damaged: str,
    command: str,
    cut: bool,
    damageable: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = damageable.path / damaged
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + b"{[" if cut else b"\xff" + whole)
    try:
        shown = started_here(words(command, damageable.path.parent, damageable.path), monkeypatch, capfd)
    finally:
        file.write_bytes(whole)
    assert file.name in shown


# --- what is shown of an error


class Refused(UserError):
    """A more particular mistake of the user's."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("row 3: no\n 'response';\tadd it"), "row 3: no 'response'; add it"),
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
def test_what_the_user_is_told(error: BaseException, line: str | None) -> None:
    assert user_message(error) == line


def test_a_user_error_is_a_value_error() -> None:
    """So that code from before it, and that of users, goes on catching it."""
    assert issubclass(UserError, ValueError)
    with pytest.raises(ValueError, match=r"^row 3$"):
        raise UserError("row 3")


def test_an_error_is_printed_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("row 3: add it")
    assert capsys.readouterr() == ("", "error: row 3: add it\n")
