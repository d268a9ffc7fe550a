"""The command `wellread`: its table, help, flags, and how it finds the program of a model."""

import argparse
import re
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
from support.commands import COMMANDS as COMMANDS_OF_PROGRAMS
from support.commands import OLD_RUN, arguments, flags_of, parser_of

import wellread
from eval.registry import EVALUATIONS
from launch.__main__ import MODULES
from wellread import programs
from wellread.__main__ import COMMANDS, GROUPS, main, usage
from wellread.config import RunConfig
from wellread.errors import UserError
from wellread.recipes.registry import RECIPES

HEAVY = {"torch", "transformers", "numpy", "pyarrow", "jsonargparse", "yaml", "argcomplete", "psutil"}
NAMES = [*COMMANDS_OF_PROGRAMS, "sample finetune"]


# --- the table and the help


def test_help_is_one_screen_that_imports_nothing_heavy(root: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "wellread", "--help"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "wellread" in modules
    assert not modules & (HEAVY | {"launch", "eval", "finetune", "pretrain", "argparse"})
    lines = result.stdout.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    listed = re.findall(r"^  ([a-z]+)\b.*  +\S", result.stdout.partition("examples:")[0], re.MULTILINE)
    assert list(dict.fromkeys(listed)) == list(COMMANDS)


def test_the_table_agrees_with_the_programs() -> None:
    assert EVALUATIONS.keys() <= GROUPS["ask"].keys()
    assert MODULES.keys() <= COMMANDS.keys()
    assert all(set(RECIPES) <= set(COMMANDS[name].kinds) for name in ("run", "plan", "prepare"))
    for name, command in COMMANDS.items():
        assert callable(programs.load(command.target, name))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["stauts"], "wellread stauts: unknown command; did you mean status?"),
        (["xyzzy"], "wellread xyzzy: unknown command; see wellread --help"),
        (["--verison"], "wellread --verison: unknown command; see wellread --help"),
        (["prepare", "dance"], "wellread prepare dance: unknown kind of training; use finetune or pretrain"),
        (["run", "dance"], "wellread run dance: unknown kind of training; use finetune, pretrain or eval"),
        (["run", "finetun"], "wellread run finetun: unknown kind of training; did you mean finetune?"),
        (["plan", "finetun"], "wellread plan finetun: unknown kind of training; did you mean finetune?"),
        (["prepare", "finetun"], "wellread prepare finetun: unknown kind of training; did you mean finetune?"),
        (["finetune"], "wellread finetune: unknown command; did you mean wellread run finetune?"),
        (["pretrain", "--steps", "3"], "wellread pretrain: unknown command; did you mean wellread run pretrain?"),
        (["eval"], "wellread eval: unknown command; did you mean wellread run eval?"),
        (
            ["export", "runs/none"],
            "runs/none: neither a run nor a model directory; give RUN, RUN@step-N or a model directory",
        ),
        (["export"], "missing: model, --format, --out; see wellread export --help"),
        (["--completion", "tcsh"], "--completion tcsh: name one shell: bash, zsh, fish"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        main(argv)
    assert str(error.value) == message


def test_help_without_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    assert capsys.readouterr().out == usage()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"wellread {wellread.__version__}\n"


def test_a_program_that_is_not_installed_needs_a_checkout() -> None:
    with pytest.raises(UserError, match=r"^wellread logs: needs a checkout of wellread"):
        programs.load("not_installed.__main__:main", "logs")
    with pytest.raises(ModuleNotFoundError):  # a fault of the program
        programs.load("launch.not_there:main", "logs")


# --- flags


def test_flags_are_those_of_the_golden_list(root: Path, golden, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Every command accepts the flags that it accepted as ``python -m PROGRAM``."""
    monkeypatch.chdir(root)
    text = "\n".join(
        f"[{name}]\n" + "".join(f"{line}\n" for line in flags_of(parser_of(main, arguments(name))))
        for name in COMMANDS_OF_PROGRAMS
    )
    golden("flags.txt", text)


@pytest.mark.parametrize("name", COMMANDS_OF_PROGRAMS)
def test_python_m_accepts_the_same_flags(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    module, *words = COMMANDS_OF_PROGRAMS[name]
    assert flags_of(parser_of(import_module(module).main, words)) == flags_of(parser_of(main, arguments(name)))


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_has_a_default(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    from wellread.help import with_default

    parser = parser_of(main, arguments(name))
    flags = [action for action in parser._actions if action.option_strings and not action.required]
    flags = [action for action in flags if action.help != argparse.SUPPRESS]
    silent = [action.dest for action in flags if "default:" not in (with_default(action) or "default:")]
    assert set(silent) <= WITHOUT_DEFAULT


WITHOUT_DEFAULT = {
    *("help", "config", "print_config", "optim", "lora"),
    # questions of `wellread read`: none of them is asked by default
    *("batch", "save", "jsonl", "call", "sample", "row", "text", "csv", "diff", "sql", "corpus", "checkpoint"),
    *("batch_size", "tokenizer"),  # of `wellread read --corpus`
    "transcript",  # of `wellread membership`
}


HIDDEN = {
    f"{command} pretrain": {"--template", "--template_date", "--loss_on", "--pack"}
    for command in ("run", "plan", "prepare")
}
"""Flags that the help does not list on purpose: settings that have no meaning for this kind of training."""


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_is_in_the_help(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    parser = parser_of(main, arguments(name))
    flags = {option for action in parser._actions for option in action.option_strings}
    # those of the table of flags: an example or another flag's text does not count
    listed = {
        option
        for line in re.findall(r"^  (-.*?)(?:  |$)", parser.format_help(), re.MULTILINE)
        for option in re.findall(r"(?<!\S)--?[\w.]+", line)
    }
    assert flags - listed == HIDDEN.get(name, set())
    assert listed <= flags


def test_flags_that_are_added_late_are_in_the_help() -> None:
    parser = parser_of(main, ["run", "finetune"])
    parser.add_argument("--late", help="Added last.")
    assert "  --late LATE " in parser.format_help()


@pytest.mark.parametrize(
    ("name", "first", "unused"),
    [
        (
            "prepare finetune",
            "model data show seq_len holdout template pack loss_on metrics corpora",
            "steps optim.lr strategy",
        ),
        ("prepare pretrain", "data vocab seq_len size model holdout packing metrics corpora", "steps order out lora"),
    ],
)
def test_prepare_lists_first_what_compiling_uses(name: str, first: str, unused: str) -> None:
    _, _, text = parser_of(main, arguments(name)).format_help().partition("most used:\n")
    text, _, _ = text.partition("example")
    used, title, last_section = text.partition("flags of run and plan (not used to compile):\n")
    assert title
    assert re.findall(r"^  --([\w.]+)", used.partition("\n\n")[0], re.MULTILINE) == first.split()
    listed = re.findall(r"^  --([\w.]+)", last_section, re.MULTILINE)
    assert {*unused.split()} <= {*listed}
    assert not {"holdout_seed", "max_bad_rows", "config"} & {*listed}


@pytest.mark.parametrize("command", ["run", "plan", "prepare"])
def test_commands_with_kinds_have_a_page(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([command], [command, "-h"], [command, "--help"]):
        assert main(argv) == 0
        text = capsys.readouterr().out
        kinds = COMMANDS[command].kinds
        assert text.startswith(f"usage: wellread {command} {'|'.join(kinds)} ...\n")
        assert re.findall(r"^  (\w+) .*  +\S", text.partition("kinds:")[2].partition("examples:")[0], re.M) == [*kinds]
        assert text.endswith(f"wellread {command} finetune --help lists all flags.\n")
        assert max(map(len, text.splitlines())) <= 100


def test_no_flag_of_an_evaluation_is_taken_for_a_mistyped_one() -> None:
    from launch.options import evaluation_flags

    for name in GROUPS["ask"]:
        keys = [option for action in parser_of(main, [name, "runs/x"])._actions for option in action.option_strings]
        flags = [key for key in keys if key.startswith("--") and key != "--help"]
        assert evaluation_flags([name, "runs/x", *flags])[1] == flags


@pytest.mark.parametrize("name", ["run finetune", "run pretrain", "plan finetune", "plan pretrain"])
def test_ten_flags_come_first(name: str) -> None:
    text = parser_of(main, arguments(name)).format_help()
    usage, _, first, *_ = text.split("\n\n")
    assert usage == f"usage: wellread {name} [FLAGS]"
    assert first.startswith("most used:\n")
    assert len(re.findall(r"^  --", first, re.MULTILINE)) == 10
    titles = re.findall(r"^(\w+): .+:$", text, re.MULTILINE)
    assert titles == ["model", "data", "canary", "schedule", "save", "watch", "cluster", "optim", "lora", "launch"]


@pytest.mark.parametrize("name", ["", "run", "plan", "prepare", "sample", "export", *NAMES])
def test_help_is_golden(name: str, root: Path, golden, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(root)
    monkeypatch.setenv("COLUMNS", "100")
    with suppress(SystemExit):  # argparse exits after its help
        main([*arguments(name), "--help"])
    golden(f"help/{name.replace(' ', '-') or 'wellread'}.txt", capsys.readouterr().out)


# --- the kind of a model


def test_the_run_determines_the_program(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(root)
    for kind in ("finetune", "pretrain"):
        assert programs.program_of(f"{OLD_RUN}/{kind}/run") == kind
        assert programs.program_of(f"{OLD_RUN}/{kind}/run@step-8") == kind
    assert programs.program_of(f"{OLD_RUN}/finetune/model") == "pretrain"  # a directory is exported by format
    assert programs.program_of(str(tmp_path / "none")) == "pretrain"
    assert programs.positionals(["--out", "a", "RUN", "--merged", "--tokens=3", "text"]) == ["RUN", "text"]


def test_a_fine_tuned_run_is_asked_with_its_template(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wellread.corpus.tokenizer import Tokenizer

    monkeypatch.chdir(root)
    texts: list[str] = []
    original = Tokenizer.prompts

    def prompts(tokenizer: Tokenizer, openings: list[str]) -> list[list[int]]:
        texts.extend(openings)
        return original(tokenizer, openings)

    monkeypatch.setattr(Tokenizer, "prompts", prompts)
    run = str(OLD_RUN / "finetune/run")
    assert main(["sample", run, "Name three rivers.", "--tokens", "3"]) == 0
    assert texts == ["### Instruction:\nName three rivers.\n\n### Response:\n"]
    greedy = capsys.readouterr().out
    assert main(["sample", run, "Name three rivers.", "--tokens", "3"]) == 0
    assert capsys.readouterr().out == greedy
    outputs = []
    for seed in (0, 0, 1, 2, 3):
        assert main(["sample", run, "x", "--tokens", "8", "--temperature", "5", "--seed", str(seed)]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert len({*outputs}) > 1


def test_a_pretrained_run_continues_a_text(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    run = str(OLD_RUN / "pretrain/run")
    assert main(["sample", run, "Once upon a time", "--tokens", "3", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_models_are_exported_by_kind(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(root)
    assert main(["export", str(OLD_RUN / "finetune/run@step-8"), "--out", str(tmp_path / "model")]) == 0
    assert (tmp_path / "model" / "config.json").is_file()
    pretrained = str(OLD_RUN / "pretrain/run")
    assert main(["export", pretrained, "--format", "llama2c-v0", "--out", str(tmp_path / "model.bin")]) == 0
    tokenizer = str(OLD_RUN / "pretrain/run/corpus/tokenizer/tokenizer.model")
    assert main(["import", str(tmp_path / "model.bin"), tokenizer, "--out", str(tmp_path / "imported")]) == 0
    exported = str(tmp_path / "hf")
    assert main(["export", str(tmp_path / "imported"), "--format", "hf", "--out", exported]) == 0
    with pytest.raises(UserError, match="--merged: only for fine-tuning runs"):
        main(["export", pretrained, "--merged", "--out", str(tmp_path / "x")])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "export finetune/run --format hf --out OUT",
            "--format: only for pretraining runs and model directories; leave",
        ),
        ("export finetune/run --merged --out OUT", "has no LoRA adapter, its weights are complete; leave --merged out"),
        ("export runs/wrong --out OUT", "runs/wrong: neither a run nor a model directory; give RUN, RUN@step-N or"),
        ("export finetune/run --out /proc/foo", "/proc/foo: cannot be created (No such file or directory); choose"),
        ("sample finetune/run Name three", "sample: unexpected 'three'; put the text in quotes: \"Name three\""),
        ("sample finetune/run/checkpoints/step-00000008 x", "a checkpoint of a run; give finetune/run@step-8"),
        ("export finetune/run@step-7 --out OUT", "finetune/run: no checkpoint step-7; it has step-0"),
    ],
)
def test_mistakes_in_names_of_models(
    command: str, message: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(OLD_RUN if OLD_RUN.is_absolute() else root / OLD_RUN)
    with pytest.raises(UserError) as refused:
        main([word.replace("OUT", str(tmp_path / "out")) for word in command.split()])
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_not_sampled(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"an adapter; export the model with wellread export RUN --merged"):
        main(["sample", str(tmp_path), "x"])


def test_units_follow_defaults() -> None:
    parser = parser_of(main, ["run", "finetune"])
    text = " ".join(parser.format_help().split())
    for default in ("(default: 10 steps)", "(default: 0.25 of the documents)", "(default: 1 node)", "(default: auto)"):
        assert default in text
    assert str(RunConfig().watch.log_every) in text
