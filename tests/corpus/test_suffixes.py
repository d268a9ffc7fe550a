"""Suffix arrays: counts equal numpy's; a damaged or foreign index is recognized."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wellread.corpus import suffixes
from wellread.corpus.suffixes import Index, build, index_file, open_suffixes, problem
from wellread.errors import UserError

N = 5000


def some_tokens(dtype: str) -> NDArray[Any]:
    """Tokens with many repetitions, and with values whose bytes sort differently than the values."""
    rng = np.random.default_rng(0)
    values = np.array([0, 1, 2, 255, 256, 257, 65535] + [65536, 2**24] * (dtype == "<u4"), dtype=dtype)
    tokens = values[rng.integers(0, len(values), N)]
    tokens[1000:1100] = tokens[3000:3100]
    return tokens


def write(path: Path, tokens: NDArray[Any]) -> Path:
    tokens.tofile(path)
    build(path, tokens.dtype)
    return path


def places_of(tokens: NDArray[Any], window: NDArray[Any]) -> list[int]:
    """All places of a window, as numpy finds them."""
    return np.flatnonzero((np.lib.stride_tricks.sliding_window_view(tokens, len(window)) == window).all(1)).tolist()


def some_windows(tokens: NDArray[Any], n: int, size: int, rng: np.random.Generator) -> NDArray[Any]:
    """Windows of the tokens; every fourth is altered, so that most of those occur nowhere."""
    windows = np.array([tokens[i : i + size] for i in rng.integers(0, len(tokens) - size + 1, n)])
    windows[::4, size // 2] = 1
    return windows


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_places_equal_those_of_numpy(dtype: str, tmp_path: Path) -> None:
    """1,000 windows of 1 to 100 tokens, one by one and many at once."""
    tokens, rng = some_tokens(dtype), np.random.default_rng(1)
    array = open_suffixes(write(tmp_path / "tokens.bin", tokens), tokens.dtype)
    assert array.suffixes.tolist() == sorted(range(N), key=lambda i: tokens[i:].tolist())
    for size in (1, 2, 3, 4, 6, 8, 12, 25, 50, 100):
        windows = some_windows(tokens, 100, size, rng)
        expected = [places_of(tokens, window) for window in windows]
        assert [array.places(window).tolist() for window in windows.tolist()] == expected
        assert [array.count(window) for window in windows.tolist()] == list(map(len, expected))
        numbers, places = Index((array,)).matches(windows)
        assert sorted(zip(numbers.tolist(), places.tolist(), strict=True)) == [
            (k, place) for k, each in enumerate(expected) for place in each
        ]


def test_several_files_are_one_sequence_of_tokens(tmp_path: Path) -> None:
    """Windows that begin in one file and end in the next, or two files later, count once."""
    tokens, rng = some_tokens("<u2"), np.random.default_rng(2)
    bounds = [0, 1, 4, 2000, 2001, 2003, N]
    files = [write(tmp_path / f"{a}.bin", tokens[a:b]) for a, b in itertools.pairwise(bounds)]
    index = Index(tuple(open_suffixes(file, tokens.dtype) for file in files))
    for size in (1, 2, 3, 7, 20):
        windows = some_windows(tokens, 40, size, rng)
        windows[:20] = [tokens[i : i + size] for i in [*range(10), *range(1994, 2004)]]
        for window in windows:
            assert index.places(window.tolist()).tolist() == places_of(tokens, window)
            assert index.count(window.tolist()) == len(places_of(tokens, window))
        numbers, places = index.matches(windows)
        assert sorted(zip(numbers.tolist(), places.tolist(), strict=True)) == [
            (k, place) for k, window in enumerate(windows) for place in places_of(tokens, window)
        ]


def test_an_index_that_cannot_be_used(tmp_path: Path) -> None:
    file = write(tmp_path / "tokens.bin", some_tokens("<u2"))
    index, description = index_file(file), suffixes.description_file(file)
    dtype, content, text = np.dtype("<u2"), index.read_bytes(), description.read_text()
    assert problem(file, dtype) == problem(file, dtype, again=True) == ""

    index.write_bytes(content[:-8])
    assert problem(file, dtype) == "39,992 bytes long, not 40,000"
    index.write_bytes(content[:8] + content[16:24] + content[8:16] + content[24:])  # two places swapped
    assert problem(file, dtype) == "damaged"
    index.write_bytes(content)
    assert problem(file, dtype) == ""  # hashed again, because its time of change is another

    other = some_tokens("<u2")
    other[0] += 1
    other.tofile(file)
    assert problem(file, dtype) == "an index of other tokens than those of tokens.bin"
    some_tokens("<u2").tofile(file)
    for damaged in ("", "{}", text.replace('"version": 1', '"version": 2'), text[:-20]):
        description.write_text(damaged)
        assert problem(file, dtype) == "its description is damaged"
    description.unlink()
    assert problem(file, dtype) == "tokens.sa.json is missing"
    description.write_text(text)
    index.unlink()
    assert problem(file, dtype) == "tokens.sa is missing"
    description.unlink()
    assert problem(file, dtype) == suffixes.MISSING


def test_a_change_that_keeps_size_and_time_is_seen_when_hashed_again(tmp_path: Path) -> None:
    file = write(tmp_path / "tokens.bin", some_tokens("<u2"))
    index = index_file(file)
    content, times = bytearray(index.read_bytes()), index.stat()
    content[0] ^= 1
    index.write_bytes(content)
    os.utime(index, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert problem(file, np.dtype("<u2")) == ""
    assert problem(file, np.dtype("<u2"), again=True) == "damaged"


def test_equal_tokens_give_equal_files(tmp_path: Path) -> None:
    file = write(tmp_path / "tokens.bin", some_tokens("<u4"))
    content = index_file(file).read_bytes()
    build(file, np.dtype("<u4"))
    assert index_file(file).read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens.bin", "tokens.sa", "tokens.sa.json"]
    assert json.loads(suffixes.description_file(file).read_text())["tokengrams"] == "0.3.3"


@pytest.mark.parametrize(
    ("content", "dtype", "message"),
    [
        (b"", "<u2", "0 bytes are not tokens of 2 bytes"),
        (b"abc", "<u2", "3 bytes are not tokens of 2 bytes"),
        (b"abcdefgh", "<i8", "tokens of type int64; only uint16 and uint32 can be indexed"),
    ],
)
def test_tokens_that_cannot_be_indexed(content: bytes, dtype: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokens.bin").write_bytes(content)
    with pytest.raises(UserError) as error:
        build(tmp_path / "tokens.bin", np.dtype(dtype))
    assert str(error.value) == f"{tmp_path / 'tokens.bin'}: {message}"


def test_without_the_library_or_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "tokens.bin", some_tokens("<u2"))
    usage = os.statvfs(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: os.statvfs_result((*usage[:4], 1, *usage[5:])))
        with pytest.raises(UserError, match=r"tokens\.sa: needs 40,000 bytes, but only [\d,]+ are free; make space$"):
            build(file, np.dtype("<u2"))
    monkeypatch.setattr(suffixes, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        build(file, np.dtype("<u2"))
    assert str(error.value) == (
        "index: needs tokengrams, which is not installed; run make setup, or pip install tokengrams"
    )
    assert problem(file, np.dtype("<u2")) == ""  # the index that exists is read without it


def test_a_failure_of_the_library_leaves_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "tokens.bin", some_tokens("<u2"))
    monkeypatch.setattr(suffixes, "BUILD", "raise SystemExit('no such luck')")
    with pytest.raises(RuntimeError, match="exit code 1: no such luck"):
        build(file, np.dtype("<u2"))
    assert problem(file, np.dtype("<u2"), again=True) == ""
    assert len(list(tmp_path.iterdir())) == 3


def test_the_library_is_installed() -> None:
    assert importlib.util.find_spec(suffixes.LIBRARY) is not None


def test_an_index_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(suffixes, "find_spec", lambda name: name)
    monkeypatch.setattr(suffixes, "replacing", refuse)
    (tmp_path / "tokens.bin").write_bytes(bytes(8))
    with pytest.raises(
        UserError, match=r"tokens\.sa: cannot be written \(Read-only .*\), .*; make the folder writable"
    ):
        build(tmp_path / "tokens.bin", np.dtype("<u2"))
