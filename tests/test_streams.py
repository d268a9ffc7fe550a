"""Standard streams: closed ones, readers that go away, locales without UTF-8."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
