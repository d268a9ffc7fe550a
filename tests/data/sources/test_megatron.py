"""Megatron files and index maps; the tests write them by themselves, because the writer may have the reader's bugs."""

import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wellread.corpus.digest import digest
from wellread.corpus.read import SampleReader
from wellread.data.sources.index_maps import IndexMaps
from wellread.data.sources.megatron import Megatron
from wellread.data.sources.megatron_write import write
from wellread.errors import UserError

CODES = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"}
"""Dtype code -> format character of struct."""
SEQUENCES = [[1, 2, 3], [65535], [], list(range(100, 140)), [7, 7]]


def write_by_hand(prefix: Path, sequences: list[list[int]], code: int = 8, modes: bool = False) -> None:
    body, sizes, pointers = b"", b"", b""
    for sequence in sequences:
        sizes += struct.pack("<i", len(sequence))
        pointers += struct.pack("<q", len(body))
        body += struct.pack(f"<{len(sequence)}{CODES[code]}", *sequence)
    header = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + bytes([code]) + struct.pack("<QQ", len(sequences), 1)
    tail = bytes(len(sequences)) if modes else b""
    Path(f"{prefix}.idx").write_bytes(header + sizes + pointers + struct.pack("<q", 0) + tail)
    Path(f"{prefix}.bin").write_bytes(body)


def shard(prefix: Path, size: int) -> int:
    """Split PREFIX.bin into parts of `size` bytes; return their number."""
    single = Path(f"{prefix}.bin")
    body = single.read_bytes()
    count = -(-len(body) // size)
    for k in range(count):
        part = body[k * size : (k + 1) * size]
        prefix.with_name(f"{prefix.name}-{k:05d}-of-{count - 1:05d}.bin").write_bytes(part)
    single.unlink()
    return count


def patch(prefix: Path, at: int, data: bytes) -> None:
    with open(f"{prefix}.idx", "r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_by_hand(tmp_path / "pile_0.87_text", SEQUENCES)
    return tmp_path / "pile_0.87_text"


def test_reads_all_properties(prefix: Path) -> None:
    reader: SampleReader = (opened := Megatron.open(prefix))
    assert [reader.tokens(i).tolist() for i in range(5)] == SEQUENCES
    assert opened.dtype == np.uint16
    assert opened.doc_idx.tolist() == [0]
    assert (reader.n, reader.n_trainable) == (5, 5)
    ids = np.array([3, 0, 2, 1])
    assert reader.lengths(ids).tolist() == [40, 3, 0, 1]
    assert reader.n_targets(ids).tolist() == [39, 2, 0, 0]
    assert reader.targets(0).tolist() == [False, True, True]
    assert reader.targets(2).tolist() == []
    assert reader.digest(0) == digest(np.array([1, 2, 3]), np.array([False, True, True]))
    assert opened.part(3, 5, 8).tolist() == [105, 106, 107]
    opened.check()


@pytest.mark.parametrize("suffix", ["", ".idx", ".bin", "-00001-of-00013.bin"])
def test_opens_by_any_of_its_files(prefix: Path, suffix: str) -> None:
    assert Megatron.open(f"{prefix}{suffix}").n == 5


@pytest.mark.parametrize("code", CODES)
def test_all_integer_codes(tmp_path: Path, code: int) -> None:
    sequences = [[1, 2, 100], [127]]
    write_by_hand(tmp_path / "x", sequences, code)
    reader = Megatron.open(tmp_path / "x")
    assert [reader.tokens(i).tolist() for i in range(2)] == sequences
    assert reader.dtype.itemsize == struct.calcsize("<" + CODES[code])


def test_modes_of_newer_writers_are_ignored(tmp_path: Path) -> None:
    write_by_hand(tmp_path / "x", SEQUENCES, modes=True)
    reader = Megatron.open(tmp_path / "x")
    assert [reader.tokens(i).tolist() for i in range(5)] == SEQUENCES


@pytest.mark.parametrize("size", [1, 3, 7, 30, 94])  # with odd sizes, tokens span two parts
def test_parts_are_read_as_one_file(prefix: Path, size: int) -> None:
    expected = Megatron.open(prefix).hash
    count = shard(prefix, size)
    sharded = Megatron.open(prefix)
    assert len(sharded.shards) == count
    assert [sharded.tokens(i).tolist() for i in range(5)] == SEQUENCES
    assert sharded.hash == expected


def test_parts_may_be_empty(prefix: Path) -> None:
    body = Path(f"{prefix}.bin").read_bytes()
    for k, part in enumerate([body[:5], b"", body[5:], b""]):
        prefix.with_name(f"{prefix.name}-{k:05d}-of-00003.bin").write_bytes(part)
    Path(f"{prefix}.bin").unlink()
    reader = Megatron.open(prefix)
    assert [reader.tokens(i).tolist() for i in range(5)] == SEQUENCES


def test_hash_changes_with_any_byte_of_a_small_file(prefix: Path) -> None:
    original = Megatron.open(prefix).hash
    assert original == Megatron.open(prefix).hash
    body = bytearray(Path(f"{prefix}.bin").read_bytes())
    for at in (0, 50, len(body) - 1):
        body[at] ^= 1
        Path(f"{prefix}.bin").write_bytes(body)
        assert Megatron.open(prefix).hash != original
        body[at] ^= 1


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (0, b"TNTIDX\0\0", r"wrong magic b'TNTIDX.*expected b'MMIDIDX"),
        (9, struct.pack("<Q", 2), r"version 2; only version 1"),
        (17, b"\x09", r"unknown dtype code 9; supported codes are 1 to 5 and 8"),
        (17, b"\x06", r"dtype code 6 means float32 or float64"),
        (17, b"\x07", r"dtype code 7 means float32"),
        (18, struct.pack("<Q", 7), r"cut off, 24 bytes too short for 7 sequences"),
        (26, struct.pack("<Q", 0), r"8 bytes too long for 5 sequences"),
        (34 + 4, struct.pack("<i", -1), r"sequence 1 is damaged: -1 tokens"),
        (
            34 + 4,
            struct.pack("<i", 1000),
            r"sequence 1 is damaged: 1,000 tokens of 2 bytes at byte 6 do not fit the 92",
        ),
        (54 + 8, struct.pack("<q", 92), r"sequence 1 is damaged: 1 tokens of 2 bytes at byte 92 do not fit"),
        (54 + 8, struct.pack("<q", 5), r"sequence 1 is damaged: 1 tokens of 2 bytes at byte 5 "),
        (54, struct.pack("<q", -2), r"sequence 0 is damaged: 3 tokens of 2 bytes at byte -2 "),
    ],
)
def test_a_damaged_index_is_a_one_line_error(prefix: Path, at: int, data: bytes, message: str) -> None:
    patch(prefix, at, data)
    with pytest.raises(UserError, match=message) as error:
        Megatron.open(prefix)
    assert "\n" not in str(error.value)
    assert f"{prefix}.idx" in str(error.value)


@pytest.mark.parametrize(("length", "message"), [(0, "wrong magic"), (20, "cut off inside its header, after 20 bytes")])
def test_an_index_cut_off_in_its_header(prefix: Path, length: int, message: str) -> None:
    with open(f"{prefix}.idx", "r+b") as file:
        file.truncate(length)
    with pytest.raises(UserError, match=message):
        Megatron.open(prefix)


def test_an_index_cut_off_in_its_body(prefix: Path) -> None:
    with open(f"{prefix}.idx", "r+b") as file:
        file.truncate(34 + 60)
    with pytest.raises(UserError, match=r"cut off, 8 bytes too short for 5 sequences"):
        Megatron.open(prefix)


def test_a_short_bin_is_an_error_with_the_missing_bytes(prefix: Path) -> None:
    with open(f"{prefix}.bin", "r+b") as file:
        file.truncate(79)
    with pytest.raises(UserError, match=r"\.bin: 79 bytes, 13 fewer than in its \.idx"):
        Megatron.open(prefix)
    shard(prefix, 20)
    with pytest.raises(UserError, match=r"-\*\.bin, 4 parts: 79 bytes, 13 fewer than in its \.idx"):
        Megatron.open(prefix)


@pytest.mark.parametrize("k", [0, 2, 4])
def test_a_missing_part_is_named_by_number(prefix: Path, k: int) -> None:
    shard(prefix, 20)
    missing = prefix.with_name(f"{prefix.name}-{k:05d}-of-00004.bin")
    missing.unlink()
    with pytest.raises(UserError, match=rf"{missing.name}: missing part {k} of 0 … 4"):
        Megatron.open(prefix)


def test_missing_files_and_mixed_parts(prefix: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.idx: does not exist"):
        Megatron.open(tmp_path / "nowhere")
    shard(prefix, 50)
    prefix.with_name(f"{prefix.name}-00000-of-00020.bin").write_bytes(b"")
    with pytest.raises(UserError, match="has parts of 2 different splits"):
        Megatron.open(prefix)
    for path in tmp_path.glob("*.bin"):
        path.unlink()
    with pytest.raises(UserError, match="does not exist, as one file or as parts"):
        Megatron.open(prefix)


@pytest.mark.parametrize("sample", [-1, 5])
def test_an_error_for_a_sample_out_of_range_names_the_range(prefix: Path, sample: int) -> None:
    reader = Megatron.open(prefix)
    for ask in (reader.tokens, reader.targets, lambda i: reader.lengths(np.array([0, i]))):
        with pytest.raises(UserError, match=rf"sample {sample}: out of range, .* has samples 0 … 4"):
            ask(sample)


@settings(max_examples=30, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, 127), max_size=9), max_size=20),
    dtype=st.sampled_from(["uint8", "int8", "int16", "int32", "int64", "uint16"]),
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, sequences: list[list[int]], dtype: str) -> None:
    folder = tmp_path_factory.mktemp("round")
    written = write(folder / "a.b", iter(sequences), dtype)
    assert [written.tokens(i).tolist() for i in range(written.n)] == sequences
    assert written.doc_idx.tolist() == list(range(len(sequences) + 1))
    assert sorted(path.name for path in folder.iterdir()) == ["a.b.bin", "a.b.idx"]
    code = {np.dtype(f"<{letter}").name: code for code, letter in CODES.items()}[dtype]
    write_by_hand(folder / "hand", sequences, code)
    assert (folder / "a.b.bin").read_bytes() == (folder / "hand.bin").read_bytes()
    upto = 34 + 12 * len(sequences)
    for part in (slice(26), slice(34, upto)):  # without doc_idx, which has one entry in the tests' files
        assert (folder / "a.b.idx").read_bytes()[part] == (folder / "hand.idx").read_bytes()[part]


@pytest.mark.parametrize(
    ("sequences", "dtype", "message"),
    [
        ([[1], [65536]], "uint16", "sequence 1: tokens 65536 … 65536 do not fit uint16"),
        ([[-1, 2]], "uint16", "sequence 0: tokens -1 … 2 do not fit uint16"),
        ([[1.5]], "int32", "sequence 0: 1-dimensional float64"),
        ([[[1]]], "int32", "sequence 0: 2-dimensional int64"),
        ([[1]], "float32", "dtype float32: unknown to Megatron; choose uint8, "),
    ],
)
def test_invalid_sequences_are_not_written(
    tmp_path: Path, sequences: list[list[int]], dtype: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write(tmp_path / "x", sequences, dtype)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(prefix: Path) -> None:
    before = Path(f"{prefix}.bin").read_bytes()
    with pytest.raises(UserError, match=r"\.bin: already exists"):
        write(prefix, SEQUENCES)
    assert Path(f"{prefix}.bin").read_bytes() == before


def sparse(prefix: Path, sizes: NDArray[np.int32], last: bytes = b"") -> None:
    """Write an index, and a .bin that is a sparse file."""
    pointers = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)[:-1] * 2]).astype("<i8")
    with open(f"{prefix}.idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(sizes), 1))
        for part in (sizes.astype("<i4"), pointers, np.zeros(1, "<i8")):
            file.write(part.tobytes())
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(int(sizes.sum()) * 2 - len(last))
        file.seek(0, 2)
        file.write(last)


def test_pythia_order_needs_2049_tokens_and_batches_of_1024(tmp_path: Path) -> None:
    sizes = np.full(200_000, 2049, dtype=np.int32)
    sparse(tmp_path / "pile", sizes)
    pile = Megatron.open(tmp_path / "pile")
    assert pile.is_pythia_shaped
    pile.check_pythia_order(1024)
    with pytest.raises(UserError, match="--batch_size 512: not Pythia's order"):
        pile.check_pythia_order(512)
    sizes[131_071] = 2048
    sparse(tmp_path / "odd", sizes)
    odd = Megatron.open(tmp_path / "odd")
    assert not odd.is_pythia_shaped
    with pytest.raises(UserError, match="not Pythia's order: sequence 131071 has 2,048 tokens"):
        odd.check_pythia_order(1024)


def test_empty_files_can_be_opened_and_are_not_pythias(tmp_path: Path) -> None:
    write_by_hand(tmp_path / "x", [])
    empty = Megatron.open(tmp_path / "x")
    assert empty.n == 0
    assert not empty.is_pythia_shaped
    with pytest.raises(UserError, match="it contains no sequence"):
        empty.check_pythia_order(1024)
    with pytest.raises(UserError, match="sample 0: out of range"):
        empty.tokens(0)


def test_memory_is_constant_for_five_million_sequences(tmp_path: Path) -> None:
    n = 5_000_000  # more than `open` checks completely
    sizes = np.full(n, 2049, dtype=np.int32)
    sparse(tmp_path / "pile", sizes, last=b"\x2a\x00")
    del sizes
    tracemalloc.start()
    pile = Megatron.open(tmp_path / "pile")
    assert pile.tokens(n - 1)[-1] == 42
    assert pile.lengths(np.array([0, n // 2])).tolist() == [2049, 2049]
    pile.check()
    assert pile.is_pythia_shaped
    assert len(pile.hash) == 64
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20, f"{peak / 2**20:.1f} MiB for an index of {12 * n / 2**20:.0f} MiB"


def test_damage_outside_the_blocks_is_found_on_reading_and_by_check(tmp_path: Path) -> None:
    n = 5_000_000
    sparse(tmp_path / "pile", np.full(n, 2049, dtype=np.int32))
    place = (n - 65536) // 63 - 1000  # between the first two blocks that `open` checks
    patch(tmp_path / "pile", 34 + 4 * place, struct.pack("<i", -5))
    pile = Megatron.open(tmp_path / "pile")
    with pytest.raises(UserError, match=f"sequence {place} is damaged: -5 tokens"):
        pile.tokens(place)
    with pytest.raises(UserError, match=f"sequence {place} is damaged: -5 tokens"):
        pile.check()


# ---- GPT-NeoX's index maps, built from their definition: one long stream of tokens, cut every seq_length tokens


def build_maps(folder: Path, documents: list[list[int]], seq_length: int, epochs: int, seed: int) -> list[list[int]]:
    """Write the three maps, in pure Python, and return the samples in the order of training."""
    rng = random.Random(seed)
    doc_idx = list(range(len(documents))) * epochs
    rng.shuffle(doc_idx)
    stream = [token for document in doc_idx for token in documents[document]]
    homes = [(place, at) for place, document in enumerate(doc_idx) for at in range(len(documents[document]))]
    rows = (len(stream) - 1) // seq_length
    sample_idx = [homes[row * seq_length] for row in range(rows + 1)]
    shuffle_idx = list(range(rows))
    rng.shuffle(shuffle_idx)
    np.save(folder / "doc_idx.npy", np.array(doc_idx, dtype=np.int32))
    np.save(folder / "sample_idx.npy", np.array(sample_idx, dtype=np.int32))
    np.save(folder / "shuffle_idx.npy", np.array(shuffle_idx, dtype=np.uint32))
    return [stream[row * seq_length : (row + 1) * seq_length + 1] for row in shuffle_idx]


def maps_of(folder: Path) -> str:
    return "megatron:" + ",".join(str(folder / f"{name}_idx.npy") for name in ("doc", "sample", "shuffle"))


def some_documents(count: int, longest: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(60_000) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize(
    ("count", "longest", "seq_length", "epochs"), [(300, 40, 16, 1), (40, 300, 16, 3), (500, 3, 32, 2), (2, 65, 64, 1)]
)
@pytest.mark.parametrize("sharded", [False, True])
def test_index_maps_give_the_samples_of_training(
    tmp_path: Path, count: int, longest: int, seq_length: int, epochs: int, sharded: bool
) -> None:
    documents = some_documents(count, longest, seed=count)
    documents[-1] = documents[-1] * (seq_length + 1)
    write_by_hand(tmp_path / "docs", documents)
    expected = build_maps(tmp_path, documents, seq_length, epochs, seed=7)
    if sharded:
        shard(tmp_path / "docs", 1001)
    reader: SampleReader = (maps := IndexMaps.open(Megatron.open(tmp_path / "docs"), maps_of(tmp_path)))
    assert reader.n == len(expected) >= 1
    assert [reader.tokens(i).tolist() for i in range(reader.n)] == expected
    assert [[t for s, a, b in maps.pieces(i) for t in documents[s][a:b]] for i in range(reader.n)] == expected
    ids = np.arange(reader.n)
    assert set(reader.lengths(ids).tolist()) == {seq_length + 1}
    assert set(reader.n_targets(ids).tolist()) == {seq_length}
    assert reader.targets(0).tolist() == [False] + [True] * seq_length
    assert reader.digest(0) == digest(np.array(expected[0]), reader.targets(0))
    maps.check()


def test_empty_documents_are_skipped(tmp_path: Path) -> None:
    documents = [document for full in some_documents(60, 9, seed=3) for document in ([], full, [])]
    write_by_hand(tmp_path / "docs", documents)
    expected = build_maps(tmp_path, documents, 8, 2, seed=1)
    first = np.load(tmp_path / "sample_idx.npy")
    first[0] = (0, 0)  # GPT-NeoX writes this even if the first document is empty
    np.save(tmp_path / "sample_idx.npy", first)
    maps = IndexMaps.open(Megatron.open(tmp_path / "docs"), maps_of(tmp_path))
    assert [maps.tokens(i).tolist() for i in range(maps.n)] == expected


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    documents = some_documents(300, 40, seed=1)
    write_by_hand(tmp_path / "docs", documents)
    build_maps(tmp_path, documents, 16, 1, seed=1)
    return tmp_path


def reopen(folder: Path) -> IndexMaps:
    return IndexMaps.open(Megatron.open(folder / "docs"), maps_of(folder))


def test_the_hash_of_maps_changes_with_each_file(mapped: Path) -> None:
    hashes = {reopen(mapped).hash}
    for name, at in (("doc", 0), ("shuffle", 5)):
        values = np.load(mapped / f"{name}_idx.npy")
        values[[at, at + 1]] = values[[at + 1, at]]
        original = (mapped / f"{name}_idx.npy").read_bytes()
        np.save(mapped / f"{name}_idx.npy", values)
        if name == "shuffle":  # swapped documents change the lengths of rows, which is an error
            hashes.add(reopen(mapped).hash)
        (mapped / f"{name}_idx.npy").write_bytes(original)
    body = bytearray((mapped / "docs.bin").read_bytes())
    body[3] ^= 1
    (mapped / "docs.bin").write_bytes(body)
    hashes.add(reopen(mapped).hash)
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("doc", lambda a: a.astype(np.float32), r"not a valid doc_idx: float32\[300\], expected integers, \(n,\)"),
        ("sample", lambda a: a.ravel(), r"not a valid sample_idx: int32\[\d+\], expected integers, \(n \+ 1, 2\)"),
        ("sample", lambda a: np.hstack([a, a]), r"not a valid sample_idx: int32\[\d+, 4\]"),
        ("shuffle", lambda a: a[:-1], r"shuffle_idx.npy: \d+ entries, but sample_idx.npy has \d+ rows, expected one"),
        ("doc", lambda a: np.where(a == 7, 300, a), r"doc_idx.npy: entry \d+ is 300, but docs.idx has 0 … 299"),
        ("doc", lambda a: np.where(a == 7, -1, a), r"doc_idx.npy: entry \d+ is -1"),
        ("shuffle", lambda a: a + 1, r"shuffle_idx.npy: entry \d+ is (\d+), but sample_idx.npy has 0 … "),
        ("sample", lambda a: a[::-1], r"row \d+ is .* document indices must be sorted"),
        ("sample", lambda a: a + np.array([[300, 0]]), r"row 0 is \(300, 0\)"),
        ("sample", lambda a: a - [[0, 1]], r"row 0 is \(0, -1\)"),
        (
            "sample",
            lambda a: a + (np.arange(len(a)) == 9)[:, None] * [0, 100],
            r"row 9 starts after the end of its doc",
        ),
        ("doc", lambda a: a[::-1], r"row \d+ (has \d+ tokens|starts after)"),
    ],
)
def test_maps_that_do_not_match_are_a_one_line_error(mapped: Path, name: str, values, message: str) -> None:  # type: ignore[no-untyped-def]
    path = mapped / f"{name}_idx.npy"
    np.save(path, values(np.load(path)))
    with pytest.raises(UserError, match=message) as error:
        reopen(mapped)
    assert "\n" not in str(error.value)


def test_maps_that_cannot_be_read(mapped: Path) -> None:
    sequences = Megatron.open(mapped / "docs")
    with pytest.raises(UserError, match="2 files, expected three: doc_idx, sample_idx, shuffle_idx"):
        IndexMaps.open(sequences, "megatron:a.npy,b.npy")
    (mapped / "shuffle_idx.npy").rename(mapped / "kept.npy")
    with pytest.raises(UserError, match=r"shuffle_idx .*shuffle_idx\.npy does not exist"):
        reopen(mapped)
    data = (mapped / "kept.npy").read_bytes()
    for damaged in (b"", b"hello", data[:40], data[:-1]):
        (mapped / "shuffle_idx.npy").write_bytes(damaged)
        with pytest.raises(UserError, match=r"not a valid shuffle_idx: not a complete \.npy file") as error:
            reopen(mapped)
        assert "\n" not in str(error.value)
    np.save(mapped / "shuffle_idx.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"not a complete \.npy file"):  # pickled data is not executed
        reopen(mapped)


def test_an_error_of_maps_names_the_range_of_samples(mapped: Path) -> None:
    maps = reopen(mapped)
    with pytest.raises(UserError, match=rf"sample {maps.n}: out of range, docs has samples 0 … {maps.n - 1}"):
        maps.tokens(maps.n)
