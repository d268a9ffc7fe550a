"""Shell completion with argcomplete: what may follow on a command line that is still being typed.

The shell starts the command with the line in the environment (``_ARGCOMPLETE``, ``COMP_LINE``, ``COMP_POINT``).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wellread.config.folder import CONFIGS

SHELLS = ("bash", "zsh", "fish")
RUNS = Path("runs")
FIRST_WORD = "_ARGCOMPLETE"
"""Environment variable: number of words before the arguments, the program's name included."""
Completer = Callable[..., list[str]]
"""What argcomplete calls with prefix, action, parser and parsed_args."""
IN_BASH = """
# $2 is the word that bash replaces, $3 the word before it. Bash keeps the @ of RUN@step-N in $2, argcomplete
# removes it. Bash would complete host names after an @, and files after a flag that takes none.
_wellread() {
    _python_argcomplete "$@"
    if [[ "$2" == @* && ${#COMPREPLY[@]} -gt 0 ]]; then
        COMPREPLY=("${COMPREPLY[@]/#/@}")
    fi
    if [[ "$2" == *@* ]]; then
        compopt +o default +o bashdefault
    elif [[ "$3" == --* && "$2" != [~$]* ]]; then
        compopt +o default +o bashdefault
    fi
}
complete -o nospace -o default -o bashdefault -F _wellread wellread
"""


def script(shell: str) -> str:
    """Code that makes `shell` complete the arguments of `wellread`."""
    from argcomplete.shell_integration import shellcode

    return str(shellcode(["wellread"], shell=shell)) + IN_BASH * (shell == "bash")


def words_before() -> list[str]:
    """Complete words after the program's name, without the one that is being typed."""
    from argcomplete.lexers import split_line

    _, _, _, words, _ = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    return [str(word) for word in words[int(os.environ[FIRST_WORD]) :]]


def skip(count: int) -> None:
    """Let the arguments begin `count` words later: those words have chosen the command."""
    os.environ[FIRST_WORD] = str(int(os.environ[FIRST_WORD]) + count)


def choose(names: Iterable[str], *flags: str) -> None:
    """Complete one of these names, or a flag, and exit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=list(names))
    for flag in flags:
        parser.add_argument(flag, choices=SHELLS if flag == "--completion" else None)
    complete(parser)


def complete(parser: argparse.ArgumentParser) -> None:
    """Complete an argument of `parser`, and exit; a parser of jsonargparse exits when it parses."""
    import argcomplete

    for action in parser._actions:
        if completer := completer_of(action):
            action.completer = completer  # type: ignore[attr-defined]
    if type(parser).__module__.startswith("jsonargparse"):
        return
    argcomplete.autocomplete(parser, always_complete_options=False)  # flags only after a dash


def completer_of(action: argparse.Action) -> Completer | None:
    """What completes the values of an argument; None where argcomplete completes its choices, or files."""
    if action.choices or action.nargs == 0:
        return None
    name = action.dest
    if name == "model" and action.option_strings:
        return lambda prefix, **_: [*registered("models.yaml"), *paths(prefix, ())]
    if name in ("run", "model"):
        takes_checkpoint = name == "model" or "@" in str(action.metavar)
        return lambda prefix, **_: run_names(prefix, takes_checkpoint)
    hint = getattr(action, "_typehint", None)
    if action.type in (int, float) or hint not in (None, str, str | None):
        values = values_of(hint)
        return lambda **_: values
    # Without a completer of its own, jsonargparse would print the type that it expects.
    return BY_NAME.get(name, any_path) if action.option_strings else any_path


def values_of(hint: Any) -> list[str]:
    """Words that a setting of this type accepts; empty for numbers."""
    if hint is bool:
        return ["true", "false"]
    inside = getattr(hint, "__args__", ())
    return [word for part in inside for word in ([part] if isinstance(part, str) else values_of(part))]


def registered(file: str) -> list[str]:
    """Names in a file of ``configs/``."""
    import yaml

    return list(yaml.safe_load((CONFIGS / file).read_text(encoding="utf-8")))


def runs() -> list[str]:
    """Run directories below ``runs/``."""
    return sorted(str(path.parent) for path in RUNS.glob("*/config.yaml"))


def run_names(prefix: str, takes_checkpoint: bool) -> list[str]:
    """Runs and directories; after ``RUN@`` its checkpoints, if the argument may name one."""
    run, at, _ = prefix.rpartition("@")
    if at and takes_checkpoint:
        return [f"{run}@{step}" for step in checkpoints(Path(run).expanduser())]
    return [*runs(), *(path for path in paths(prefix, ()) if path.rstrip("/") not in runs())]


def checkpoints(run: Path) -> list[str]:
    """Names of the checkpoints of a run directory, by step."""
    names = [path.parent.name.removeprefix("step-") for path in run.glob("checkpoints/step-*/checkpoint.json")]
    return [f"step-{step}" for step in sorted(int(name) for name in names if name.isdecimal())]


def checkpoints_of_run(**_: Any) -> list[str]:
    """Checkpoints of the run on the command line."""
    # The parser of jsonargparse does not give its completers the arguments that it has parsed.
    folders = [Path(word).expanduser() for word in words_before()]
    return next((checkpoints(folder) for folder in folders if (folder / "config.yaml").is_file()), [])


def steps_of_run(prefix: str, **_: Any) -> list[str]:
    """Steps of the run on the command line, after those of a list that is complete up to its last comma."""
    before = prefix[: prefix.rfind(",") + 1]
    return [before + name.removeprefix("step-") for name in checkpoints_of_run()]


def clusters(prefix: str, **_: Any) -> list[str]:
    """Names in ``configs/clusters/``, and YAML files."""
    names = sorted(path.stem for path in (CONFIGS / "clusters").glob("*.yaml"))
    return [*names, *paths(prefix, (".yaml", ".yml"))]


def templates(prefix: str, **_: Any) -> list[str]:
    """Names in ``configs/templates/``, and text files."""
    names = {path.stem.removesuffix("_context") for path in (CONFIGS / "templates").iterdir()}
    return [*sorted(names), *paths(prefix, (".txt",))]


def sizes(**_: Any) -> list[str]:
    """Sizes of the models ``stories-SIZE``, as ``--size`` writes them."""
    prefix = "stories-"
    return [name.removeprefix(prefix).upper() for name in registered("models.yaml") if name.startswith(prefix)]


def mixture(prefix: str, **_: Any) -> list[str]:
    """The last data set of a mixture: NAME, PATH or NAME@PATH."""
    before, part = prefix[: prefix.rfind(",") + 1], prefix[prefix.rfind(",") + 1 :]
    name, at, path = part.partition("@")
    if at:
        return [f"{before}{name}@{file}" for file in paths(path)]
    return [before + word for word in (*registered("data.yaml"), *paths(part))]


def orders(prefix: str, parser: argparse.ArgumentParser, **_: Any) -> list[str]:
    """Forms of an order: of a run, or of the data set that ``wellread read --corpus`` names."""
    if "--corpus" in parser._option_string_actions:
        return ["sequential", "pythia", "megatron:"]
    kind, colon, path = prefix.partition(":")
    if colon and kind in ORDER_FILES:
        return [f"{kind}:{file}" for file in paths(path, (ORDER_FILES[kind],))]
    by_metric = [f"sorted:{metric}:{way}" for metric in METRICS for way in ("asc", "desc")]
    return ["shuffle", "sequential", *by_metric, *(f"filter:{m}" for m in METRICS), *(f"{k}:" for k in ORDER_FILES)]


def one_of(*values: str) -> Completer:
    """Complete one of these words."""
    return lambda **_: list(values)


def word_or_file(values: Iterable[str], suffixes: tuple[str, ...]) -> Completer:
    """Complete one of these words, or a file with one of these suffixes."""
    return lambda prefix, **_: [*values, *paths(prefix, suffixes)]


def any_path(prefix: str, **_: Any) -> list[str]:
    """Complete the path of a file or directory."""
    return paths(prefix)


def paths(prefix: str, suffixes: tuple[str, ...] | None = None) -> list[str]:
    """Directories that begin with `prefix`, and files with one of these suffixes; all files if it is None."""
    typed, start = os.path.split(prefix)
    folder = Path(typed).expanduser()
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []  # no such directory: nothing to complete
    return [
        os.path.join(typed, entry.name) + "/" * entry.is_dir()
        for entry in entries
        if entry.name.startswith(start)
        and (start.startswith(".") or not entry.name.startswith("."))
        and (entry.is_dir() or suffixes is None or entry.name.endswith(suffixes))
    ]


METRICS = ("n_tokens", "n_targets")
"""Metrics of every corpus."""
ORDER_FILES = {"file": ".npy", "curriculum": ".yaml"}
BY_NAME: dict[str, Completer] = {
    "array_parallelism": one_of(),
    "batch": one_of(),
    "call": one_of(),
    "checkpoint": checkpoints_of_run,
    "cluster": clusters,
    "data": mixture,
    "diff": checkpoints_of_run,
    "ds_config": word_or_file((), (".json",)),
    "format": one_of("llama2c-v0", "llama2c-v1", "llama2c-int8", "hf"),
    "freeze": one_of(),
    "lora.targets": one_of("all-linear"),
    "order": orders,
    "partition": one_of(),
    "row": one_of(),
    "sample": one_of(),
    "size": sizes,
    "sql": one_of(),
    "steps": steps_of_run,
    "template": templates,
    "text": one_of(),
    "time": one_of(),
    "tracker": one_of("tensorboard", "wandb", "tensorboard,wandb"),
    "vocab": word_or_file(("llama2",), (".model",)),
}
"""Name of a flag -> what completes its values."""
