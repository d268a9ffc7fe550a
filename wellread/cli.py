"""Command lines: how parsers are built, and where errors become exit codes."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from wellread import processes, starting, streams
from wellread.errors import BAD_INPUT, UserError, user_message
from wellread.streams import print_error
from wellread.text_io import load_yaml
from wellread.whole import read_whole

if TYPE_CHECKING:
    import argparse

    from jsonargparse import ArgumentParser


TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
"""Types as messages name them."""
PATHS = {
    "canary_text", "checkpoint", "corpora", "corpus", "csv", "influence", "jsonl", "marks", "members", "model",
    "more_runs", "nonmembers", "nvme_path", "out", "perplexity", "reference", "run", "runs", "save", "template",
    "threshold", "tokenizer", "transcript", "word_list",
}  # fmt: skip
"""Arguments that are paths, in which ~ is expanded; others, such as --data, expand it in their own syntax."""
SURROGATE = re.compile("[\ud800-\udfff]")
"""What Python makes of bytes on the command line that are not UTF-8."""
SHORT = {"lr": "optim.lr", "learning_rate": "optim.lr", "warmup": "optim.warmup", "weight_decay": "optim.weight_decay"}
"""Short names of flags."""


def new_parser(prog: str, description: str, examples: str) -> ArgumentParser:
    """Return a parser that raises UserError for mistakes and that ends its help with `examples`."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return ArgumentParser(prog=prog, description=description, epilog=examples, **_common())


def plain_parser(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Return such a parser for commands that work without jsonargparse: without dataclasses and YAML."""
    from argparse import ArgumentError, ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ArgumentError(None, message)  # `parse` expects it; argparse would print the usage and exit

    return Parser(prog=prog, description=description, epilog=examples, **_common())


def _common() -> dict[str, Any]:
    """What all parsers share: mistakes are raised, no flag may be shortened, one layout of the help."""
    from wellread.help import Formatter

    return {"exit_on_error": False, "allow_abbrev": False, "formatter_class": Formatter}


def add_dataclass(parser: ArgumentParser, kind: type[Any], hidden: Sequence[str] = ()) -> None:
    """Give `parser` one flag per key of dataclass `kind`, and ``--config`` and ``--print_config``.

    Parameters
    ----------
    hidden : sequence of str
        Keys that the help does not list; `kind` refuses values for them.
    """
    from argparse import SUPPRESS

    from wellread.config.flat import sections_of
    from wellread.help import describe

    parser.add_argument("--config", action="config", help="YAML file with values for these flags; flags override it.")
    sections = sections_of(kind)
    for name, section in sections.items():
        hints = get_type_hints(section)
        if "name" in hints:
            text = _documented(section, "name")
            parser.add_argument(f"--{name}", type=hints["name"], default=section.name, help=text)
        _add_fields(parser, section, {"name"} & hints.keys())
    _add_fields(parser, kind, set(sections))
    for action in parser._actions:
        if action.dest in hidden:
            action.help = SUPPRESS
    describe(parser, kind)


def _add_fields(parser: ArgumentParser, kind: type[Any], without: set[str]) -> None:
    parser.add_class_arguments(kind, nested_key=None, as_group=False, skip=without)
    bare = {f"--{name}": True for name, hint in get_type_hints(kind).items() if hint is bool}
    bare |= {f"--{f.name}": f.metadata["bare"] for f in fields(kind) if "bare" in f.metadata}
    for action in parser._actions:
        for option in bare.keys() & {*action.option_strings}:  # --pack is short for --pack=true
            action.nargs, action.const = "?", bare[option]


def _documented(kind: type[Any], name: str) -> str:
    """The docstring under a field of a dataclass."""
    import ast
    import inspect

    (class_,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(class_, ast.ClassDef)
    for field, text in pairwise(class_.body):
        if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == name:
            return inspect.cleandoc(ast.literal_eval(ast.unparse(text)))
    raise AssertionError(f"{kind.__name__}.{name} has no docstring")


def parse_dataclass(parser: ArgumentParser, kind: type[Any], argv: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Parse `argv`, YAML first, then flags.

    Returns
    -------
    config : an instance of `kind`, whose flags `add_dataclass` added
    extra : values of the parser's other arguments

    Raises
    ------
    UserError
        One line; for an unknown key it names the nearest valid one.
    """
    from wellread.config.flat import from_dict, hints_of

    _refuse_foreign_bytes(argv)
    ordered = _config_first([_long(argument) for argument in argv])
    typed: dict[str, Any] = {}
    for path in _config_files(ordered):
        typed |= _config_file(path)
    typed |= _flags(ordered)
    values = parse(parser, ordered).as_dict()
    # The parser reads texts as YAML, in which null and ~ mean nothing; a setting that is a text keeps them as text.
    hints = hints_of(kind)
    values |= {k: _with_home(k, typed[k]) for k in typed if hints.get(k) == str | None and values[k] is None}
    settings = {k: v for k, v in values.items() if k in hints}
    _check_types(settings, hints)
    return from_dict(kind, settings), {k: v for k, v in values.items() if k not in hints}


def _check_types(settings: dict[str, Any], hints: dict[str, Any]) -> None:
    """Refuse what the parser accepts from YAML, although it has another type: null, and a section that is a value."""
    from wellread.config.flat import shape_of
    from wellread.shapes import mismatch

    for key, value in settings.items():
        shape = shape_of(hints[key])
        problem = "" if value is None and isinstance(shape, dict) else mismatch(value, shape, key)
        if problem:
            name, expected, text = re.split(r": (?=expected)|, found ", problem, maxsplit=2)
            of_section = "settings, one per line below it"
            text = "null" if text == "None" else text
            raise UserError(
                f"--{name} {text}: {expected.replace('an object', of_section)}; leave it out for the default"
            )


def parse(parser: ArgumentParser | argparse.ArgumentParser, argv: Sequence[str]) -> Any:
    """Parse `argv`; a mistake is a one-line UserError that names the nearest valid flag."""
    _refuse_foreign_bytes(argv)
    with _explained(parser):
        return _with_homes(parser.parse_args(list(argv)))


def parse_known(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """As `parse`; arguments that the parser does not know are returned, for another parser."""
    _refuse_foreign_bytes(argv)
    with _explained(parser):
        parsed, unknown = parser.parse_known_args(list(argv))
        return _with_homes(parsed), unknown


def _refuse_foreign_bytes(argv: Sequence[str]) -> None:
    """Refuse words that are not UTF-8: they can be neither tokenized nor written to the files of a run."""
    for word in filter(SURROGATE.search, argv):
        raise UserError(f"{word!r}: is not UTF-8; rename the file, or give the text in UTF-8")


def _with_homes(parsed: Any) -> Any:
    """The same arguments, with ~ expanded in paths: shells leave ``--out=~/run`` as it is."""
    for name, value in vars(parsed).items():
        setattr(parsed, name, _with_home(name, value))
    return parsed


def _with_home(name: str, value: Any) -> Any:
    if name in PATHS and isinstance(value, list):
        return [_with_home(name, each) for each in value]
    return os.path.expanduser(value) if name in PATHS and isinstance(value, str) else value


def _long(argument: str) -> str:
    """A flag with its long name, and the path of a YAML file with ~ expanded."""
    flag, equals, value = argument.partition("=")
    if flag == "--config" and equals:
        return f"{flag}={os.path.expanduser(value)}"
    return f"--{SHORT[flag[2:]]}{equals}{value}" if flag.startswith("--") and flag[2:] in SHORT else argument


@contextmanager
def _explained(parser: ArgumentParser | argparse.ArgumentParser) -> Iterator[None]:
    from argparse import ArgumentError

    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        from wellread.completion import complete

        complete(parser)
    try:
        yield
    except (ArgumentError, TypeError, KeyError) as error:
        raise UserError(_explain(str(error), parser)) from error


def _keys(parser: ArgumentParser | argparse.ArgumentParser) -> list[str]:
    return [option[2:] for action in parser._actions for option in action.option_strings if option.startswith("--")]


def _config_first(argv: Sequence[str]) -> list[str]:
    first: list[str] = []
    last: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            first += [argument, *(value for value in [next(arguments, None)] if value is not None)]
        elif argument.startswith("--config="):
            first.append(argument)
        else:
            last.append(argument)
    return first + last


def _config_files(argv: Sequence[str]) -> list[str]:
    """Values of ``--config`` in `argv`, where they come first."""
    separate = [argv[i + 1] for i, argument in enumerate(argv[:-1]) if argument == "--config"]
    return separate + [argument.partition("=")[2] for argument in argv if argument.startswith("--config=")]


def _flags(argv: Sequence[str]) -> dict[str, str]:
    """Flags in `argv` with the text of their values."""
    texts = {}
    for argument, following in zip(argv, [*argv[1:], ""], strict=False):  # not strict: `argv` may be empty
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            texts[flag[2:]] = value if equals else following
    return texts


def _config_file(path: str) -> dict[str, Any]:
    """Settings in a YAML file; errors name the file, which the parser's own messages do not."""
    import yaml

    try:
        values = load_yaml(read_whole(path))
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror}); name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: contains no settings; write one per line, e.g. steps: 200")
    if wrong := [key for key in values if not isinstance(key, str) or key in ("", "config")]:
        raise UserError(f"--config {path}: {wrong[0]!r} is not a setting; write one per line, e.g. steps: 200")
    return values


def refuse_typo(argument: str, parser: argparse.ArgumentParser) -> None:
    """Refuse an argument that is nearly a flag of `parser`; other arguments may be those of another parser.

    Raises
    ------
    UserError
        It names the flag.
    """
    name = argument.partition("=")[0]
    near = difflib.get_close_matches(name[2:], _keys(parser), n=1, cutoff=0.8) if name.startswith("--") else []
    if near:
        raise UserError(f"unknown setting {name[2:]!r}: did you mean --{near[0]}?")


def _missing(names: str, parser: ArgumentParser | argparse.ArgumentParser) -> str:
    flags = {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}
    listed = ", ".join(flags.get(name, name) for name in names.split(", "))
    return f"missing: {listed}; see {parser.prog} --help"


def _explain(message: str, parser: ArgumentParser | argparse.ArgumentParser) -> str:
    """A parser's message as one line, with the nearest valid key if a key is unknown."""
    line, keys = " ".join(message.split()), _keys(parser)
    if required := re.search(r"the following arguments are required: (.*)", line):
        return _missing(required.group(1), parser)
    unknown = re.search(r"[Uu]nrecognized arguments:? (?:--)?([\w.]+)", line) or re.search(
        r"(?:Option|Key) '([\w.]+)' (?:is not accepted|is not expected|does not exist)", line
    )
    nested = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", line)
    if match := unknown or nested:
        name = ".".join(match.groups())
        near = difflib.get_close_matches(name, [*keys, *SHORT] if "optim.lr" in keys else keys, n=1, cutoff=0.6)
        hint = f"did you mean --{near[0]}?" if near else "see --help for the valid ones"
        return f"unknown setting {name!r}: {hint}"
    if plain := re.fullmatch(r"argument (--[\w.]+): invalid (\w+) value: '(.*)'", line):
        return f"{plain.group(1)} {plain.group(3)}: expected {_plain(plain.group(2))}"
    if choice := re.fullmatch(r"argument (--[\w.]+): invalid choice: '?(.*?)'? \(choose from (.*)\)", line):
        return f"{choice.group(1)} {choice.group(2)}: not a valid value; choose {_plain(choice.group(3))}"
    if section := re.match(r'Parser key "([\w.]+)": Unable to load config \'?(.*?)\'? - ', line):
        return f"--{section.group(1)} {section.group(2)}: expected settings, one per line below it"
    wrong = re.search(r'Parser key "([\w.]+)":(.*)', line)
    if wrong:
        value = re.search(r"(?:Given value|Got value): (\S+)", line)
        kinds = re.findall(r"Expected a (?:<class ')?(?:typing\.)?([^'>]+?(?:\[.*?\])?)['. ]", line)
        expected = [kind for kind in dict.fromkeys(kinds) if kind != "NoneType"]
        if value and expected:
            return f"--{wrong.group(1)} {value.group(1).rstrip(':')}: expected {' or '.join(map(_plain, expected))}"
    return line


def _plain(kind: str) -> str:
    """A type in words: ``Literal['bf16', 'fp32']`` -> ``bf16, fp32``."""
    return TYPES.get(kind) or kind.removeprefix("Literal[").removesuffix("]").replace("'", "")


def run_program(main: Callable[[list[str]], int | None]) -> None:
    """Run `main` on the command line and exit: 2 for bad input, 1 for failure, else what `main` returns."""
    processes.die_with_parent()
    ends_at_once = starting.is_ending_at_once()
    try:
        if ends_at_once:  # since the program began to start
            signal.signal(signal.SIGINT, signal.default_int_handler)
        streams.set_up()
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the pipe has closed it, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = 130
    except (ValueError, OSError, RuntimeError) as error:
        if (message := user_message(error)) is None or os.environ.get("WELLREAD_DEBUG"):
            raise
        print_error(message)
        code = BAD_INPUT
    finally:
        if ends_at_once:  # while Python ends, too, Ctrl-C shows no traceback
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)
