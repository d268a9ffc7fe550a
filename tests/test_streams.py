"""Standard streams: closed ones, readers that go away, locales without UTF-8."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wellread.streams import json_line

START = "import os, sys; from wellread import streams; streams.set_up(); "
OUTLIVE = START + "streams.outlive_reader(); "


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_text_is_utf_8_in_any_locale(locale: str, root: Path) -> None:
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", START + r"print('\u27e6Z\xfcrich\udcff\u27e7')"]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=False)
    assert (result.stderr, result.stdout.decode()) == (b"", "⟦Zürich\\udcff⟧\n")


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_takes_what_is_written(closed: int, root: Path, tmp_path: Path) -> None:
    program = OUTLIVE + f"open('{tmp_path}/file', 'w').write('content')\n"
    program += "sys.stdout.write('a'); sys.stderr.write('b'); os.write(1, b'c'); sys.exit(7)"
    command = [sys.executable, "-c", program]
    result = subprocess.run(["sh", "-c", f'exec "$@" {closed}>&-', "sh", *command], cwd=root, check=False)
    assert (result.returncode, (tmp_path / "file").read_text()) == (7, "content")


@pytest.mark.parametrize("flags", [[], ["-u"]])
def test_a_program_outlives_its_reader(flags: list[str], root: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    program = OUTLIVE + "print('x' * 100000); print('y', flush=True); print('after', file=sys.stderr); "
    program += "import subprocess; child = subprocess.run(['echo', 'z']); sys.exit(3 + child.returncode)"
    command = [sys.executable, *flags, "-c", program]
    with os.fdopen(write, "w") as pipe:
        result = subprocess.run(command, cwd=root, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (result.returncode, result.stderr) == (3, b"after\n")


FOREIGN = "name\x1b]0;title\x07\x1b[2J\x9b1A\rforged\u202edesrever"
SHOWN = r"name\x1b]0;title\x07\x1b[2J\x9b1A\x0dforged\u202edesrever"


@pytest.mark.parametrize(
    "statement",
    [
        "print(text)",
        "print(text, file=sys.stderr)",
        "print('b', text, sep=text)",
        "sys.stderr.writelines([text])",
        "import warnings; warnings.warn(text)",
        "import logging; logging.error('%s', text)",
        "from rich.console import Console; Console().print(text)",
        "raise ValueError(text)",
        "from wellread.streams import print_error; print_error(text)",
    ],
)
@pytest.mark.parametrize("start", [START, OUTLIVE])
def test_foreign_text_does_not_control_the_terminal(statement: str, start: str, root: Path) -> None:
    command = [sys.executable, "-c", f"{start}\ntext = {FOREIGN!r}\n{statement}"]
    result = subprocess.run(command, cwd=root, capture_output=True, check=False)
    written = (result.stdout + result.stderr).decode()
    assert "\\x1b]0;title" in written
    assert not [c for c in written if (c < " " and c not in "\n\t") or "\x7f" <= c < "\xa0" or c == "\u202e"], written


UNSEEN = "na\ufeffm\u200be\xa0"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("print(text)", r"na\ufeffm\u200be\xa0"),
        ("print(text, file=sys.stderr)", r"na\ufeffm\u200be\xa0"),
        ("from wellread.terminal import say_table; say_table([text], [[text]])", (r"na\ufeffm\u200be\xa0" + "\n") * 2),
        (
            "streams.print_error(str(user_message(UserError(f'a  {text}:\\n   b'))))",
            r"error: a  na\ufeffm\u200be\xa0: b",
        ),
        ("from wellread.terminal import say_text; say_text(text + '.')", f"    {UNSEEN}."),
        ("from wellread.terminal import say_table; say_table(['a'], [[prose(text)]])", f"a\n{UNSEEN.rstrip()}"),
    ],
)
def test_what_cannot_be_seen_is_escaped_in_names_and_stays_in_samples(
    statement: str, expected: str, root: Path
) -> None:
    imports = "from wellread.errors import UserError, user_message; from wellread.escapes import prose"
    command = [sys.executable, "-c", f"{START}{imports}\ntext = {UNSEEN!r}\n{statement}"]
    result = subprocess.run(command, cwd=root, capture_output=True, check=True)
    assert (result.stdout + result.stderr).decode().rstrip("\n") == expected.rstrip("\n")


def test_text_of_this_program_may(root: Path) -> None:
    program = START + (
        f"from wellread.escapes import *; text = {FOREIGN!r}; print(joined([styled('error:', 31), text], ' ')); "
        "print(Own(text)); print('a\\tb\\r\\nc'); streams.Data().write(text); streams.OfRich(sys.stdout).write("
        "'\\n\\x1b[1;31mred\\x1b[0m\\r\\x1b[2K\\x1b[1A\\x1b[?25l' + text)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, check=True)
    bar = "\x1b[1;31mred\x1b[0m\r\x1b[2K\x1b[1A\x1b[?25l"
    of_rich = SHOWN.replace(r"\x0d", "\r")  # rich returns to the start of a line itself
    expected = f"\x1b[31merror:\x1b[0m {SHOWN}\n{FOREIGN}\na\tb\r\nc\n{FOREIGN}\n{bar}{of_rich}"
    assert result.stdout.decode() == expected


@pytest.mark.parametrize("name", ["console", "say", "table", "bar"])
def test_rich_colors_only_what_is_visible(name: str, root: Path) -> None:
    import pty

    statements = {
        "console": "terminal.console().print(text, markup=False)",
        "say": "terminal.say(text, 'bold')",
        "table": "terminal.say_table(['a'], [[text]])",
        "bar": "from rich.progress import Progress\nwith Progress(console=terminal.console()) as bar:\n"
        "    bar.add_task(text); print(text)",
    }
    program = f"{START}\nfrom wellread import terminal\ntext = {FOREIGN!r}\n{statements[name]}"
    master, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "200"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, env=environment, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    written = bytearray()
    try:
        while block := os.read(master, 65536):
            written += block
    except OSError:  # closed by the process
        pass
    os.close(master)
    assert process.wait() == 0, written
    text = written.decode()
    assert "title" in text
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text
    assert "\x07" not in text


def test_a_long_error_is_cut(root: Path) -> None:
    program = START + "streams.print_error('a' * 10**6 + 'b' * 10**6)"
    result = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert result.stderr == f"error: {'a' * 2000} … {'b' * 2000}\n"


def test_json_for_other_programs_has_no_nan() -> None:
    """JSON has no NaN and no infinity; a skipped batch may have such a loss."""
    value = {
        "loss": float("nan"),
        "readings": [{"loss": -math.inf, "step": 3}],
        "at": (1.5, np.float64("inf")),
        "t": "é",
    }
    line = json_line(value)
    assert line == '{"loss": null, "readings": [{"loss": null, "step": 3}], "at": [1.5, null], "t": "é"}\n'
    with pytest.raises(TypeError):
        json_line({"value": object()})
