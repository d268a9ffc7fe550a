"""Command lines: YAML first, then flags; a mistake is one line that names the nearest valid flag; exit codes."""

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from wellread.cli import add_dataclass, new_parser, parse, parse_dataclass, run_program
from wellread.config import OptimConfig, RunConfig
from wellread.errors import BAD_INPUT, UserError, user_message


def parsed(*argv: object) -> RunConfig:
    parser = new_parser("prog", "", "")
    add_dataclass(parser, RunConfig)
    config, _ = parse_dataclass(parser, RunConfig, [str(word) for word in argv])
    assert isinstance(config, RunConfig)
    return config


def refused(*argv: object) -> str:
    with pytest.raises(UserError) as error:
        parsed(*argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_flags_override_yaml_in_any_position(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("steps: 7\nseed: 3\noptim:\n  lr: 0.5\n  clip: 0.25\n")
    for argv in (["--config", file, "--steps", 9], ["--steps", 9, "--config", file], ["--steps=9", f"--config={file}"]):
        config = parsed(*argv, "--optim.clip", 2)
        assert (config.schedule.steps, config.schedule.seed, config.optim.lr, config.optim.clip) == (9, 3, 0.5, 2.0)


def test_the_last_yaml_file_overrides_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("steps: 1\nseed: 5\n")
    (tmp_path / "b.yaml").write_text("steps: 2\n")
    config = parsed("--config", tmp_path / "a.yaml", "--config", tmp_path / "b.yaml")
    assert (config.schedule.steps, config.schedule.seed) == (2, 5)


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        (["--lr", "3e-4"], "lr", 3e-4),
        (["--learning_rate=0.5"], "lr", 0.5),
        (["--warmup", "0.5"], "warmup", 0.5),
        (["--weight_decay=0"], "weight_decay", 0.0),
    ],
)
def test_short_names_of_settings(flags: list[str], key: str, value: float) -> None:
    assert getattr(parsed(*flags).optim, key) == value


def test_home_directories_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("out: ~/run\nsteps: 4\n")
    config = parsed("--config=~/run.yaml", "--corpora=~/c", "--template=~/t.txt", "--nvme_path", "~/n")
    assert (config.save.out, config.schedule.steps) == (f"{tmp_path}/run", 4)
    assert (config.data.corpora, config.data.template) == (f"{tmp_path}/c", f"{tmp_path}/t.txt")
    assert config.cluster.nvme_path == f"{tmp_path}/n"


def test_scientific_notation_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("optim: {lr: 2e-5}\nsteps: null\nranks_per_node: auto\n")
    config = parsed("--config", tmp_path / "a.yaml")
    assert (config.optim.lr, config.schedule.steps, config.cluster.ranks_per_node) == (2e-5, None, "auto")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stpes", "3"], "unknown setting 'stpes': did you mean --steps?"),
        (["--step", "3"], "unknown setting 'step': did you mean --steps?"),  # flags cannot be abbreviated
        (["--optim.lrr=3"], "unknown setting 'optim.lrr': did you mean --optim.lr?"),
        (["--xyzzy", "3"], "unknown setting 'xyzzy': see --help for the valid ones"),
        (["extra"], "unknown setting 'extra': see --help for the valid ones"),
        (["--steps", "3.5"], "--steps 3.5: expected a whole number"),
        (["--steps", "many"], "--steps many: expected a whole number"),
        (["--optim.lr", "inf"], "--optim.lr inf: expected a number"),
        (["--dtype", "fp16"], "--dtype fp16: expected bf16, fp32"),
        (["--ranks_per_node", "all"], "--ranks_per_node all: expected a whole number or auto"),
        (["--pack", "maybe"], "--pack maybe: expected true or false"),
        (["--steps"], "argument --steps: expected one argument"),
        (["--steps", "0"], "--steps 0: must be at least 1"),
    ],
)
def test_errors_say_what_to_write(argv: list[str], message: str) -> None:
    assert refused(*argv) == message


def test_missing_arguments_have_the_names_of_the_help() -> None:
    parser = new_parser("prog", "", "")
    parser.add_argument("model")
    parser.add_argument("--out", required=True)
    with pytest.raises(UserError) as error:
        parse(parser, [])
    assert str(error.value) == "missing: model, --out; see prog --help"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepps: 7\n", "unknown setting 'stepps': did you mean --steps?"),
        ("optim:\n  lrr: 0.5\n", "unknown setting 'optim.lrr': did you mean --optim.lr?"),
        ("steps: many\n", "--steps many: expected a whole number"),
        ("steps: 0\n", "--steps 0: must be at least 1"),
        ("", "--config FILE: contains no settings; write one per line, e.g. steps: 200"),
        ("- 1\n", "--config FILE: contains no settings; write one per line, e.g. steps: 200"),
    ],
)
def test_mistakes_in_yaml(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert refused("--config", file) == message.replace("FILE", str(file))


def test_files_that_are_not_yaml(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("steps: [1\n")
    assert refused("--config", file).startswith(f"--config {file}: not YAML (")
    file.write_bytes(b"steps: \xff\n")
    assert refused(f"--config={file}").startswith(f"--config {file}: not YAML (")
    missing = tmp_path / "lost.yaml"
    assert refused("--config", missing) == (
        f"--config {missing}: cannot be read (No such file or directory); name a YAML file"
    )


def test_yaml_files_are_not_executed(tmp_path: Path) -> None:
    file, trace = tmp_path / "run.yaml", tmp_path / "trace"
    file.write_text(f"data: !!python/object/apply:os.mkdir ['{trace}']\n")
    assert "not YAML" in refused("--config", file)
    assert not trace.exists()


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A toy."""

    size: int = 1
    """How big."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Nested."""


def test_arguments_that_are_not_settings_are_separate() -> None:
    parser = new_parser("prog", "", "")
    add_dataclass(parser, Toy)
    parser.add_argument("--json", action="store_true")
    toy, extra = parse_dataclass(parser, Toy, ["--size=3", "--json"])
    assert toy == Toy(size=3)
    assert extra == {"config": None, "json": True}


def test_help_ends_with_the_examples() -> None:
    parser = new_parser("prog", "What it does.", "examples:\n  prog --size 3\n")
    add_dataclass(parser, Toy)
    text = parser.format_help()
    assert "--size N How big (default: 1)." in " ".join(text.split())
    assert text.rstrip().endswith("examples:\n  prog --size 3")
    assert parse(parser, []).size == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a\n  b"), "a b"),
        (ValueError("shapes differ"), None),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
            None,
        ),  # raised by a library: a fault of the program, so with a traceback
        (KeyError("x"), None),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            "disk full: runs/x: free some space, then run the same command again; earlier checkpoints are intact",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),  # e.g. standard output is /dev/full
            "disk full: the output cannot be written; free some space, then run the same command again",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "xx"),
            "a name is too long: xx: file systems allow at most 255 bytes per name; choose a shorter one",
        ),
        (
            OSError(errno.ELOOP, "Too many levels of symbolic links", "x"),
            "its symbolic links form a loop: x: name the file itself",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "not allowed to write: x: choose another directory"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "No such file or directory: x"),
        (OSError(errno.EIO, "Input/output error"), None),
    ],
)
def test_only_errors_of_the_user_become_a_line(error: BaseException, line: str | None) -> None:
    assert user_message(error) == line


def test_permission_to_read_is_not_permission_to_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "file"))
    assert user_message(error) == f"not allowed to write: {tmp_path}/file: choose another directory"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for a user who is not root
    assert user_message(error) == (
        f"not allowed to read: {tmp_path}/file: ask its owner for permission, or name another path"
    )


def exit_code(main, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as exited:
        run_program(main)
    assert isinstance(exited.value.code, int)
    return exited.value.code, capsys.readouterr().err


def test_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def user_error(_: list[str]) -> int:
        raise UserError("row 3: no 'instruction'; add one")

    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    assert exit_code(lambda _: None, capsys) == (0, "")
    assert exit_code(lambda _: 143, capsys) == (143, "")
    assert exit_code(user_error, capsys) == (BAD_INPUT, "error: row 3: no 'instruction'; add one\n")
    assert exit_code(interrupted, capsys) == (130, "")
    monkeypatch.setenv("WELLREAD_DEBUG", "1")
    with pytest.raises(UserError, match="row 3"):
        run_program(user_error)


def test_faults_of_the_program_keep_their_traceback() -> None:
    def broken(_: list[str]) -> int:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_program(broken)


def test_no_color_in_a_pipe(program) -> None:  # type: ignore[no-untyped-def]
    result = program("launch", "fly")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: launch fly: unknown command; use run, plan, ")


def test_a_closed_pipe_is_not_an_error(root: Path) -> None:
    import subprocess
    import sys

    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        result = subprocess.run(
            [sys.executable, "-m", "launch", "--help"], cwd=root, stdout=pipe, stderr=subprocess.PIPE, check=False
        )
    assert (result.returncode, result.stderr) == (0, b"")
