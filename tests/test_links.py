"""Links in place of files of a run or a corpus: their targets stay as they are."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wellread.checkpoint import clear_staging
from wellread.corpus.building import building, only_builder
from wellread.errors import UserError
from wellread.files import open_unlinked, refuse_links, remove, replacing, write_atomic
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
    with pytest.raises(UserError, match=REFUSED), only_builder(tmp_path / "corpus"):
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


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "file").write_text("precious")
    return folder


PLACES = ["checkpoints", "record", "log", "eval", "report", "tb", "code", "submit", ".code.new", "order.npy", "log/x",
          "checkpoints/.step-00000001.tmp", "checkpoints/step-00000001/model", "anything"]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_run_with_a_link_is_refused_before_anything_is_written(place: str, elsewhere: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    (run.path / place).parent.mkdir(parents=True)
    (run.path / place).symlink_to(elsewhere)
    with pytest.raises(UserError, match=REFUSED) as caught, run.lock():
        raise AssertionError("locked")
    assert str(caught.value).startswith(str(run.path / place))
    assert not (run.path / "lock").exists()
    assert [path.name for path in elsewhere.iterdir()] == ["file"]


def test_links_to_the_run_its_corpus_and_inside_its_code_are_allowed(elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "run" / "code").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    run = RunDirectory(tmp_path / "runs" / "run")
    run.corpus.symlink_to(elsewhere)
    (run.code / "tracked").symlink_to("nowhere")
    with run.lock():
        pass
    run.config_file.touch()
    refuse_links(run.record.parent, allowed={"corpus"}, foreign={"code"})


def test_a_build_does_not_leave_its_folder(elsewhere: Path, tmp_path: Path) -> None:
    target = tmp_path / "corpora" / "c"
    target.parent.mkdir()
    (target.parent / ".c.building").symlink_to(elsewhere)
    with building(target) as build:
        assert build is not None
        assert not build.is_symlink()
        (build / "corpus.json").write_text("{}")
    assert [path.name for path in elsewhere.iterdir()] == ["file"]
    for name in ("shards", "tokens.bin"):
        (target.parent / ".d.building").mkdir()
        (target.parent / ".d.building" / name).symlink_to(elsewhere)
        with pytest.raises(UserError, match=REFUSED), building(target.with_name("d")):
            raise AssertionError("built")
        remove(target.parent / ".d.building")
    assert [path.name for path in elsewhere.iterdir()] == ["file"]


def test_only_a_link_is_removed_not_its_target(elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.tmp").symlink_to(elsewhere)
    (tmp_path / ".step-00000002.tmp" / "state").mkdir(parents=True)
    (tmp_path / ".step-00000002.tmp" / "link").symlink_to(elsewhere)
    clear_staging(tmp_path)
    clear_staging(tmp_path)
    remove(tmp_path / "absent")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert (elsewhere / "file").read_text() == "precious"


def test_ranks_clear_the_same_staging_at_once(tmp_path: Path) -> None:
    """Each of several ranks whose save has failed removes it, while another still writes."""
    for _ in range(20):
        staging = tmp_path / ".step-00000001.tmp"
        (staging / "state").mkdir(parents=True)
        for number in range(200):
            (staging / "state" / str(number)).touch()
        stopped: list[Exception] = []

        def write(staging: Path = staging, stopped: list[Exception] = stopped) -> None:
            try:
                for number in range(10_000):
                    (staging / "state" / f"late-{number}").touch()
            except FileNotFoundError as error:
                stopped.append(error)

        with ThreadPoolExecutor(5) as pool:
            writing = pool.submit(write)
            clearing = [pool.submit(clear_staging, tmp_path) for _ in range(4)]
            assert [future.result() for future in [*clearing, writing]] == [None] * 5
        assert len(stopped) == 1
        assert list(tmp_path.iterdir()) == []
