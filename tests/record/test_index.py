"""The index of a Megatron data set in two parts, compared with numpy; what cannot be indexed."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from wellread.__main__ import main
from wellread.corpus import suffixes
from wellread.corpus.decoder import Decoder
from wellread.corpus.read import Corpus
from wellread.data.sources.megatron import Megatron
from wellread.errors import UserError
from wellread.record.copies import Copies, copies
from wellread.record.index import open_index, problems, token_files, usable_index
from wellread.record.search import search

SAMPLES = 80


def megatron(
    folder: Path, dtype: str, sizes: list[int], first_bytes: int, unused: int = 0
) -> tuple[Megatron, list[list[int]]]:
    """A data set of sequences with many repetitions, in two parts: `first_bytes` bytes, and the rest."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 5, size).tolist() for size in sizes]
    starts = np.cumsum([0, *(size + unused for size in sizes[:-1])])
    tokens = [token for sequence in sequences for token in [*sequence, *[3] * unused]]
    return two_parts(folder, dtype, tokens, first_bytes, starts, sizes), sequences


def two_parts(
    folder: Path, dtype: str, tokens: Sequence[int], first_bytes: int, starts: ArrayLike, sizes: ArrayLike
) -> Megatron:
    """A data set whose sequences begin at any tokens, in two parts."""
    prefix, code = folder / "document", {"<u2": 8, "<i4": 4, "<i8": 5}[dtype]
    content, width = np.array(tokens, dtype=dtype).tobytes(), np.dtype(dtype).itemsize
    Path(f"{prefix}-00000-of-00001.bin").write_bytes(content[:first_bytes])
    Path(f"{prefix}-00001-of-00001.bin").write_bytes(content[first_bytes:])
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, np.size(sizes), 1)
    arrays = [np.asarray(sizes, "<i4"), np.asarray(starts, "<i8") * width, np.zeros(1, "<i8")]
    Path(f"{prefix}.idx").write_bytes(header + b"".join(array.tobytes() for array in arrays))
    return Megatron.open(prefix)


def build(reader: Megatron) -> None:
    """Write the index of each part."""
    files, dtype = token_files(reader)
    for file in files:
        suffixes.build(file, dtype)


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
    build(reader)
    index = open_index(reader)
    assert index is not None
    files, tokens_type = token_files(reader)
    tokens = np.concatenate([np.fromfile(file, tokens_type) for file in files])
    n_across = 0
    for _ in range(1000):
        size = int(rng.integers(1, 12))
        start = int(rng.integers(0, len(tokens) - size))
        window = tokens[start : start + size]
        windows = np.lib.stride_tricks.sliding_window_view(tokens, size)
        assert index.count(window.tolist()) == int((windows == window).all(1).sum())
        of_window = copies(reader, window, index)
        assert of_window == Copies(size, inside(sequences, window.tolist()), 0)
        assert of_window == copies(reader, window, None)
        n_across += index.count(window.tolist()) - of_window.total
    assert n_across > 300  # matches over the bound of two sequences are dropped


def test_a_part_that_is_damaged_is_named(tmp_path: Path) -> None:
    reader, _ = megatron(tmp_path, "<u2", [50, 50], first_bytes=100)
    build(reader)
    assert problems(reader) == {}
    index = reader.shards[1].with_suffix(".sa")
    index.write_bytes(index.read_bytes()[:-1])
    assert problems(reader) == {reader.shards[1]: "399 bytes long, not 400"}
    assert open_index(reader) is None


def test_a_token_in_two_parts_cannot_be_indexed(tmp_path: Path) -> None:
    reader, _ = megatron(tmp_path, "<u2", [50, 50], first_bytes=101)
    with pytest.raises(UserError, match=r"00000-of-00001.bin: ends 1 byte after a token, so it cannot be indexed"):
        token_files(reader)
    assert usable_index(reader, "document") == (None, [])


# --- searching for text


def samples_in_two_parts(folder: Path, dtype: str, corpus: Corpus, *, split: int, shuffled: bool) -> Megatron:
    """The first samples of a corpus; sample `split` begins in the first part and ends in the second.

    With `shuffled`, the sequences have other numbers than their place in the .bin.
    """
    sizes, starts = corpus.lengths(np.arange(SAMPLES)), corpus.offsets[:SAMPLES]
    tokens = np.concatenate([corpus.tokens(i) for i in range(SAMPLES)]).tolist()
    numbers = np.random.default_rng(2).permutation(SAMPLES) if shuffled else np.arange(SAMPLES)
    first = (int(starts[split]) + int(sizes[split]) // 2) * np.dtype(dtype).itemsize
    return two_parts(folder, dtype, tokens, first, starts[numbers], sizes[numbers])


@pytest.mark.parametrize(("dtype", "shuffled"), [("<u2", False), ("<i4", False), ("<u2", True)])
def test_a_text_in_a_data_set_of_two_parts(dtype: str, shuffled: bool, tmp_path: Path, corpus: Corpus) -> None:
    """The same samples with the index of each part as without: in both parts, over their bound, over samples."""
    reader = samples_in_two_parts(tmp_path, dtype, corpus, split=40, shuffled=shuffled)
    assert usable_index(reader, "document") == (None, [])
    build(reader)
    index, lines = usable_index(reader, "document")
    assert index is not None
    assert not lines
    decoder, rng = Decoder.load(corpus.tokenizer), np.random.default_rng(3)
    texts = [decoder.decode(corpus.tokens(i).tolist()) for i in range(SAMPLES)]
    middle = len(decoder.decode(corpus.tokens(40)[: len(corpus.tokens(40)) // 2].tolist()))
    pieces = ["e", "th", "Response:\n", "xyzzy", texts[40][middle - 8 : middle + 8], texts[40]]
    pieces += [text[start : start + 12] for text in texts for start in rng.integers(0, len(text) - 12, 1).tolist()]
    scans = list[int]()
    for piece in pieces:
        hits = search(reader, decoder, piece, index=index, progress=scans.append)
        assert hits == search(reader, decoder, piece), piece
        ids = [decoder.decode(reader.tokens(i).tolist()) for i in range(SAMPLES)]
        assert [hit.sample_id for hit in hits] == [i for i, text in enumerate(ids) if piece in text], piece
    assert not scans
    for i in (7, 39, 40):
        across = texts[i][-12:] + texts[i + 1][:12]
        assert index.count(np.concatenate([corpus.tokens(i)[-2:], corpus.tokens(i + 1)[:2]]).tolist()) >= 1
        assert search(reader, decoder, across, index=index) == []


def test_sequences_that_overlap_are_scanned(tmp_path: Path, corpus: Corpus) -> None:
    """An index has one place for tokens of two sequences."""
    tokens, decoder = corpus.tokens(0).tolist() + corpus.tokens(1).tolist(), Decoder.load(corpus.tokenizer)
    n = len(corpus.tokens(0))
    reader = two_parts(tmp_path, "<u2", tokens, 2 * n, [0, 4, n], [n, n - 4, len(tokens) - n])
    build(reader)
    text = decoder.decode(corpus.tokens(0)[8:14].tolist())
    assert [hit.sample_id for hit in search(reader, decoder, text, index=open_index(reader))][:2] == [0, 1]


def test_reading_a_data_set_whose_index_is_damaged_or_foreign(
    tmp_path: Path, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    """`read --text` says so, scans, and has the same answer; `index` writes it again."""
    reader = samples_in_two_parts(tmp_path, "<u2", corpus, split=40, shuffled=False)
    n_tokens, prefix = int(reader.sizes.sum()), str(reader.path)
    text = Decoder.load(corpus.tokenizer).decode(corpus.tokens(20)[5:15].tolist())

    def ask() -> tuple[str, str]:
        words = ["--corpus", prefix, "--batch_size", "16", "--tokenizer", str(corpus.tokenizer), "--text", text]
        assert main(["read", *words]) == 0
        printed = capsys.readouterr()
        return printed.out, printed.err

    answer, err = ask()
    assert (err, "sample 20  " in answer) == ("", True)
    assert main(["index", prefix]) == 0
    capsys.readouterr()
    assert ask() == (answer, "")
    first, second = (shard.with_suffix(".sa") for shard in reader.shards)
    content = bytearray(first.read_bytes())
    content[100] ^= 1
    first.write_bytes(content)
    np.fromfile(reader.shards[1], "<u2")[::-1].tofile(reader.shards[1])
    _, err = ask()
    assert err == (
        f"{first}: damaged; scanning {n_tokens:,} tokens instead; run wellread index {prefix}\n"
        f"{second}: an index of other tokens than those of {reader.shards[1].name}; scanning {n_tokens:,} tokens "
        f"instead; run wellread index {prefix}\n"
    )
    assert main(["index", prefix]) == 0
    printed = capsys.readouterr().out
    assert printed.count("; the previous one was unusable: ") == 2
    assert ask()[1] == ""
