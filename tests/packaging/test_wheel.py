"""The wheel without extras: built, installed into an empty environment, and used to read a run."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.programs import ROOT, missing

from wellread.record.reader import Record
from wellread.run import RunDirectory

CONSTRAINTS = ROOT / "constraints.txt"
OPENS = """
import importlib.util, sys
import wellread
assert "site-packages" in wellread.__file__, wellread.__file__
for name in ("torch", "transformers", "jsonargparse", "jinja2", "psutil", "duckdb", "deepspeed", "pandas"):
    assert importlib.util.find_spec(name) is None, name
run = wellread.open_run(sys.argv[1])
batch = run.history.batch(3)
assert batch.losses and run.config.schedule.steps == run.plan.steps == 12 and len(run.checkpoints) == 4
print(batch.sample_ids)
print(batch.texts[0])
"""


def run(python: Path, *arguments: object, cwd: Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
    command = [str(python), *map(str, arguments)]
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert not check or process.returncode == 0, f"{' '.join(command)}\n{process.stdout}\n{process.stderr}"
    return process


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, python = tmp_path_factory.mktemp("wheel"), Path(sys.executable)
    probe = ("-m", "pip", "download", "--no-deps", "-q", "-c", CONSTRAINTS, "-d", folder / "probe", "pyyaml")
    if run(python, *probe, cwd=folder, check=False).returncode:
        missing("no package index can be reached from here")
    run(python, "-m", "pip", "wheel", "--no-deps", "-q", "-c", CONSTRAINTS, "-w", folder, ROOT, cwd=folder)
    (built,) = folder.glob("wellread-*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Python of an environment that contains only the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("bare")
    run(Path(sys.executable), "-m", "venv", "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, wheel, cwd=folder)
    yield python
    shutil.rmtree(folder)  # it is large


@pytest.mark.slow
def test_the_wheel_is_typed_and_requires_five_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        assert "wellread/py.typed" in content.namelist()
        (metadata,) = [name for name in content.namelist() if name.endswith(".dist-info/METADATA")]
        required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", content.read(metadata).decode(), re.MULTILINE)
    assert required == ["argcomplete", "numpy", "pyarrow", "pyyaml", "tokenizers"]


@pytest.mark.long
@pytest.mark.slow
def test_a_run_is_read_and_verified_from_the_bare_wheel(bare: Path, copied_run: RunDirectory, tmp_path: Path) -> None:
    path, record = copied_run.path, Record.open(copied_run.record)
    ids, text = run(bare, "-c", OPENS, path, cwd=tmp_path).stdout.split("\n", 1)
    assert ids == str(record.sample_ids((3, 4)).tolist())
    assert "### Response:" in text
    proof = run(bare, "-m", "wellread", "verify", path, cwd=tmp_path)
    assert proof.stdout == f"verified: 12 batches, 192 readings, 4 checkpoints agree, head {record.head}\n"
    printed = run(bare, "-m", "wellread", "read", path, "--batch", 3, cwd=tmp_path).stdout
    assert printed.startswith("batch 3  step 4  16 samples, ")
    assert all(f"    {line}".rstrip() in printed for line in text.rstrip("\n").split("\n"))
    assert "--batch" in run(bare, "-m", "wellread", "read", "--help", cwd=tmp_path).stdout


@pytest.mark.long
@pytest.mark.slow
def test_commands_that_need_a_checkout_say_so(bare: Path, copied_run: RunDirectory, tmp_path: Path) -> None:
    script = bare.with_name("wellread")
    assert run(script, "--help", cwd=tmp_path).stdout.startswith("usage: wellread COMMAND")
    assert run(script, "--version", cwd=tmp_path).stdout.startswith("wellread ")
    assert run(script, "verify", copied_run.path, cwd=tmp_path).stdout.startswith("verified: ")
    for command in ("run finetune", "status", "doctor", "membership RUN", "report RUN", "sample RUN x", "import a b"):
        words = [str(copied_run.path) if word == "RUN" else word for word in command.split()]
        refused = run(script, *words, cwd=tmp_path, check=False)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        assert refused.stderr.startswith(f"error: wellread {words[0]}: needs a checkout of wellread")


@pytest.mark.long
@pytest.mark.slow
def test_mistakes_in_the_bare_wheel_are_one_line(bare: Path, copied_run: RunDirectory, tmp_path: Path) -> None:
    for flags, error in (
        (("--sql", "select 1"), "--sql: DuckDB, the extra `sql`, is not installed; run: "),
        (("--bacth", 3), "unknown setting 'bacth': did you mean --batch?"),
        (("--batch", 12), "--batch 12: out of range"),
    ):
        wrong = run(bare, "-m", "wellread.commands.read", copied_run.path, *flags, cwd=tmp_path, check=False)
        assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
        assert wrong.stderr.startswith(f"error: {error}")
    part = next(copied_run.record.glob("part-*.parquet"))
    part.unlink()
    broken = run(bare, "-m", "wellread.commands.verify", copied_run.path, cwd=tmp_path, check=False)
    assert (broken.returncode, broken.stderr) == (1, "")
    assert f"{part}: missing\n" in broken.stdout
