"""Links in place of files of a run or a corpus: their targets stay as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wellread.corpus.building import _only_builder
from wellread.errors import UserError
from wellread.files import open_unlinked, replacing, write_atomic
from wellread.run import RunDirectory

REFUSED = "a link or a special file in place of a file of wellread; remove it"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.mark.parametrize("mode", ["r", "w", "a", "a+", "ab", "wb"])
def test_a_link_is_refused(mode: str, victim: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(victim)
    with pytest.raises(UserError, match=REFUSED) as caught:
        open_unlinked(link, mode)
    assert str(link) in str(caught.value)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("mode", ["r", "w", "a", "wb"])
def test_a_pipe_or_a_device_is_refused_at_once(mode: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=REFUSED):
        open_unlinked(tmp_path / "pipe", mode)
    with pytest.raises(UserError, match=REFUSED):
        open_unlinked(Path(os.devnull), mode)


def test_a_broken_link_creates_nothing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(UserError, match=REFUSED):
        open_unlinked(tmp_path / "link", "w")
    assert not (tmp_path / "absent").exists()


def test_a_file_is_opened_as_usual(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for mode, expected in (("w", "x"), ("a", "xx"), ("w", "x"), ("a+", "xx")):
        with open_unlinked(path, mode) as file:
            file.write("x")
        assert path.read_text() == expected
    with open_unlinked(path, "r") as file:
        assert file.read() == "xx"
    with pytest.raises(FileNotFoundError):
        open_unlinked(tmp_path / "absent", "r")


def test_a_link_as_the_lock_of_a_run_is_refused(victim: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    (run.path / "lock").symlink_to(victim)
    with pytest.raises(UserError, match=REFUSED), run.lock():
        raise AssertionError("locked")
    with pytest.raises(UserError, match=REFUSED):
        run.holder()
    assert victim.read_text() == "precious"


def test_a_link_as_the_lock_of_a_corpus_is_refused(victim: Path, tmp_path: Path) -> None:
    (tmp_path / ".corpus.lock").symlink_to(victim)
    with pytest.raises(UserError, match=REFUSED), _only_builder(tmp_path / "corpus"):
        raise AssertionError("locked")
    assert victim.read_text() == "precious"


def test_a_temporary_file_replaces_a_link(victim: Path, tmp_path: Path) -> None:
    (tmp_path / f".new.{os.getpid()}.tmp").symlink_to(victim)
    write_atomic(tmp_path / "new", "content")
    assert (victim.read_text(), (tmp_path / "new").read_text()) == ("precious", "content")
    (tmp_path / "linked").symlink_to(victim)
    with replacing(tmp_path / "linked") as file:
        file.write(b"new")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "linked").is_symlink()
