"""Whole files: what never ends, never begins or cannot fit is refused in one line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from wellread import whole
from wellread.errors import user_message
from wellread.whole import read_whole, unusable


def test_a_file_and_a_pipe_are_read_to_their_end(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    assert read_whole(tmp_path / "file") == read_whole(str(tmp_path / "file")) == content
    os.mkfifo(tmp_path / "pipe")
    for command in (
        f"cat '{tmp_path}/file' > '{tmp_path}/pipe'",
        f"(sleep .1; cat '{tmp_path}/file') > '{tmp_path}/pipe'",
    ):
        with subprocess.Popen(command, shell=True):
            assert read_whole(tmp_path / "pipe") == content


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(whole.MOST + 1)  # takes no space on the disk
    monkeypatch.setattr(whole, "SECONDS", 0.05)
    for path, reason in (
        (Path("/dev/zero"), "is a device, not a file; name a file"),
        (tmp_path / "pipe", "is a pipe that nobody writes to; name a file"),
        (tmp_path / "large", "is larger than 2 GiB; name another file"),
    ):
        with pytest.raises(OSError, match="is ") as refused:
            read_whole(path)
        assert user_message(refused.value) == f"{path}: {reason}"
    for path, kind in ((tmp_path, IsADirectoryError), (tmp_path / "missing", FileNotFoundError)):
        with pytest.raises(kind) as error:
            read_whole(path)
        assert error.value.filename == str(path)


def test_why_something_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("good", "file"), ("loop", "loop"), ("dangling", "nothing"), ("zero", "/dev/zero")):
        (tmp_path / name).symlink_to(target)
    assert {name: unusable(tmp_path / name).partition(";")[0] for name in sorted(os.listdir(tmp_path))} == {
        "dangling": "is a link to a file that does not exist",
        "file": "",
        "folder": "is a folder, not a file",
        "good": "",
        "loop": "is a link to a file that does not exist",
        "pipe": "is a pipe or a device, not a file",
        "zero": "is a pipe or a device, not a file",
    }
    assert unusable(tmp_path / "missing") == ""
