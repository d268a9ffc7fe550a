"""The index of a Megatron data set in two parts, compared with numpy; what cannot be indexed."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from wellread.corpus import suffixes
from wellread.data.sources.megatron import Megatron
from wellread.errors import UserError
from wellread.record.index import copies, open_index, problems, token_files


def megatron(
    folder: Path, dtype: str, sizes: list[int], first_bytes: int, unused: int = 0
) -> tuple[Megatron, list[list[int]]]:
    """A data set of sequences with many repetitions, in two parts: `first_bytes` bytes, and the rest."""
    rng, prefix = np.random.default_rng(0), folder / "document"
    code = {"<u2": 8, "<i4": 4, "<i8": 5}[dtype]
    sequences = [rng.integers(0, 5, size).tolist() for size in sizes]
    between = [] if not unused else [3] * unused
    tokens: list[int] = []
    starts = []
    for sequence in sequences:
        starts.append(len(tokens))
        tokens += sequence + between
    content, width = np.array(tokens, dtype=dtype).tobytes(), np.dtype(dtype).itemsize
    Path(f"{prefix}-00000-of-00001.bin").write_bytes(content[:first_bytes])
    Path(f"{prefix}-00001-of-00001.bin").write_bytes(content[first_bytes:])
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(sizes), 1)
    arrays = [np.array(sizes, "<i4"), np.array(starts, "<i8") * width, np.zeros(1, "<i8")]
    Path(f"{prefix}.idx").write_bytes(header + b"".join(array.tobytes() for array in arrays))
    return Megatron.open(prefix), sequences


def inside(sequences: list[list[int]], window: list[int]) -> int:
    """Places of a window inside sequences."""
    text, word = (
        "\n".join("".join(chr(97 + token) for token in s) for s in sequences),
        "".join(chr(97 + t) for t in window),
    )
    count, place = 0, text.find(word)
    while place >= 0:
        count, place = count + 1, text.find(word, place + 1)
    return count


@pytest.mark.parametrize(("dtype", "unused"), [("<u2", 0), ("<i4", 0), ("<u2", 3)])
def test_copies_equal_those_of_numpy(dtype: str, unused: int, tmp_path: Path) -> None:
    """1,000 windows, some of which are in both parts; with `unused` tokens between sequences that no sequence has."""
    rng = np.random.default_rng(1)
    sizes = [0, *rng.integers(1, 60, 80).tolist(), 0, 0, 40]
    width = np.dtype(dtype).itemsize
    reader, sequences = megatron(
        tmp_path, dtype, sizes, first_bytes=(sum(sizes[:41]) + 41 * unused + 5) * width, unused=unused
    )
    assert list(problems(reader).values()) == ["missing", "missing"]
    files, tokens_type = token_files(reader)
    for file in files:
        suffixes.build(file, tokens_type)
    index = open_index(reader)
    assert index is not None
    tokens = np.concatenate([np.fromfile(file, tokens_type) for file in files])
    n_across = 0
    for _ in range(1000):
        size = int(rng.integers(1, 12))
        start = int(rng.integers(0, len(tokens) - size))
        window = tokens[start : start + size]
        windows = np.lib.stride_tricks.sliding_window_view(tokens, size)
        assert index.count(window.tolist()) == int((windows == window).all(1).sum())
        assert copies(reader, index, window) == inside(sequences, window.tolist())
        n_across += index.count(window.tolist()) - copies(reader, index, window)
    assert n_across > 300  # matches over the bound of two sequences are dropped


def test_a_part_that_is_damaged_is_named(tmp_path: Path) -> None:
    reader, _ = megatron(tmp_path, "<u2", [50, 50], first_bytes=100)
    for file in reader.shards:
        suffixes.build(file, np.dtype("<u2"))
    assert problems(reader) == {}
    index = reader.shards[1].with_suffix(".sa")
    index.write_bytes(index.read_bytes()[:-1])
    assert problems(reader) == {reader.shards[1]: "399 bytes long, not 400"}
    assert open_index(reader) is None


def test_a_token_in_two_parts_cannot_be_indexed(tmp_path: Path) -> None:
    reader, _ = megatron(tmp_path, "<u2", [50, 50], first_bytes=101)
    with pytest.raises(UserError, match=r"00000-of-00001.bin: ends 1 byte after a token, so it cannot be indexed"):
        token_files(reader)
