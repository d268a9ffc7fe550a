import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wellread.data.sources import text
from wellread.data.sources.text import Document, documents
from wellread.errors import UserError

Compress = Callable[[bytes], bytes]
COMPRESSORS: dict[str, Compress] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def texts(path: Path) -> list[str | None]:
    return [document.text for document in documents(path)]


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# ---- kinds of files


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_jsonl_with_and_without_compression(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, object]] = [
        {"text": "Zürich\n\n", "meta": {"pile_set_name": "Pile-CC"}, "id": 7},
        {"text": "", "meta": "plain"},
    ]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESSORS[suffix](jsonl(rows)))
    assert list(documents(path)) == [
        Document(1, "Zürich\n\n", {"id": 7, "pile_set_name": "Pile-CC"}),
        Document(2, "", {"meta": "plain"}),
    ]


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_plain_text_with_and_without_compression(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESSORS[suffix]("\nOne\n<|endoftext|>\n\n<|endoftext|>Zwei ä<|endoftext|>cu".encode()))
    assert list(documents(path)) == [Document(1, "\nOne\n"), Document(3, "Zwei ä"), Document(4, "cu")]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    body=st.lists(st.sampled_from(["<", "|", ">", "<|>", "ä", "b", "\n"]), max_size=30).map("".join),
    size=st.integers(1, 7),
)
def test_separators_are_found_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, size: int
) -> None:
    monkeypatch.setattr(text, "READ", size)
    monkeypatch.setattr(text, "SEPARATOR", "<|>")
    path = tmp_path / "a.txt"
    path.write_text("x" + body, newline="")
    expected = [document for document in ("x" + body).split("<|>") if document.strip(" \n")]
    assert texts(path) == expected


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": [f"t{i}" for i in range(200)] + [None], "source": ["web"] * 201})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    parsed = list(documents(tmp_path / "a.parquet"))
    assert parsed[:200] == [Document(i + 1, f"t{i}", {"source": "web"}) for i in range(200)]
    assert parsed[200] == Document(201, None, {"source": "web"}, "no 'text'; its fields are text, source")


def test_several_frames_of_zstd(tmp_path: Path) -> None:
    compress = zstandard.ZstdCompressor().compress
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"meta"  # as pzstd writes them
    (tmp_path / "a.txt.zst").write_bytes(compress(b"one<|endo") + skippable + compress(b"") + compress(b"ftext|>two"))
    assert texts(tmp_path / "a.txt.zst") == ["one", "two"]


def test_zstd_with_a_long_window(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(compressor.compress(b"one<|endoftext|>two") + compressor.flush())
    assert texts(tmp_path / "a.txt.zst") == ["one", "two"]


# ---- malformed documents are yielded with their number


def test_malformed_lines_are_yielded_with_their_number_and_reading_continues(tmp_path: Path) -> None:
    lines = [b'{"text": "a"}', b"", b'{"text": ', b'{"text": "\xff"}', b"[1]", b'{"txt": "b"}', b'{"text": 5}']
    lines += [rb'{"text": "\ud800x"}', b"{}", b'{"text": "z"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    parsed = list(documents(tmp_path / "a.jsonl"))
    assert [(d.number, d.text) for d in parsed if d.error is None] == [(1, "a"), (10, "z")]
    assert {d.number: d.error for d in parsed if d.error} == {
        3: "not JSON: Expecting value at column 9",
        4: "not UTF-8 at byte 10 of the line",
        5: "not a JSON object",
        6: "no 'text'; its fields are txt",
        7: "'text' is int, not text",
        8: "'text' has half of a surrogate pair at character 0",
        9: "no 'text'; its fields are none",
    }
    assert all(d.text is None for d in parsed if d.error)


def test_errors_of_utf8_have_the_position_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "ä b<|endoftext|>".encode() * 3 + b"c\xffd<|endoftext|>e"
    (tmp_path / "a.txt").write_bytes(body)
    monkeypatch.setattr(text, "READ", 10)
    parsed = list(documents(tmp_path / "a.txt"))
    at = body.index(b"\xff")
    assert parsed[3] == Document(4, None, error=f"not UTF-8 at byte {at} of the file")
    assert [d.text for d in parsed] == ["ä b", "ä b", "ä b", None, "e"]


def test_a_file_that_ends_inside_a_character_loses_only_this_character(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("a<|endoftext|>bä".encode()[:-1])
    assert list(documents(tmp_path / "a.txt")) == [Document(1, "a"), Document(2, "b")]
    (tmp_path / "b.txt").write_bytes("bä".encode()[:-1] + b"<|endoftext|>c")
    assert [d.error for d in documents(tmp_path / "b.txt")] == ["not UTF-8 at byte 1 of the file", None]


# ---- damaged, missing or unknown files are one-line errors that name the file


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.txt.zst"])
def test_compressed_files_that_are_cut_off_are_named(tmp_path: Path, name: str) -> None:
    rng = random.Random(0)
    body = jsonl([{"text": "".join(rng.choices("abcdef ", k=300))} for _ in range(200)])
    compressed = COMPRESSORS[Path(name).suffix](body)
    for length in {4, 9, len(compressed) // 3, len(compressed) // 2, len(compressed) - 9, len(compressed) - 1}:
        (tmp_path / name).write_bytes(compressed[:length])
        with pytest.raises(UserError, match=r"damaged \(cut off\); copy or download it again") as error:
            list(documents(tmp_path / name))
        assert str(error.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.zst", "a.parquet"])
def test_files_that_do_not_match_their_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no packed file at all")
    with pytest.raises(UserError, match=r"damaged \(|not a Parquet file") as error:
        list(documents(tmp_path / name))
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_flipped_bytes_in_compressed_files_are_detected(tmp_path: Path) -> None:
    with_checksum = zstandard.ZstdCompressor(write_checksum=True).compress
    for name, compress in (("a.txt.gz", gzip.compress), ("a.txt.zst", with_checksum)):
        data = bytearray(compress(bytes(random.Random(1).choices(b"abcdefg ", k=5000))))
        data[len(data) // 2] ^= 16
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}: damaged \("):
            list(documents(tmp_path / name))


def test_damage_inside_a_parquet_file_is_detected(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [str(random.Random(i).random()) for i in range(5000)]})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    body = bytearray(path.read_bytes())
    body[100:400] = bytes(300)
    path.write_bytes(body)
    with pytest.raises(UserError, match=r"a\.parquet: damaged \(") as error:
        list(documents(path))
    assert "\n" not in str(error.value)


def test_sources_are_checked_immediately(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "a.parquet.gz").write_text("a")
    for name, message in {
        "gone.jsonl": "does not exist",
        "empty.jsonl": "is empty",
        "a.csv": r"known kind of file \(\.jsonl \.json \.txt \.parquet; all except \.parquet also as \.gz and \.zst; "
        r"\.dat\.zst \.zip \.tar\.gz\)",
        "a.parquet.gz": "not a known kind of file",
        ".": "not a file",
    }.items():
        with pytest.raises(UserError, match=message):
            documents(tmp_path / name)


# ---- memory


class Stream(io.RawIOBase):
    """File of generated documents; they are generated while they are compressed, so that they are never in memory."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.buffer = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while not self.buffer:
            chunk = next(self.chunks, None)
            if chunk is None:
                return 0
            self.buffer = chunk
        n = min(len(buffer), len(self.buffer))
        buffer[:n], self.buffer = self.buffer[:n], self.buffer[n:]
        return n


def generated(size: int, end: bytes) -> Iterator[bytes]:
    """About `size` bytes of documents of 20 kB each, which compress to about a third."""
    rng = random.Random(5)
    words = [bytes(rng.choices(b"abcdefghijklmnop", k=rng.randint(2, 12))) for _ in range(5000)]
    for _ in range(size // 20_000):
        yield b'{"text": "' + b" ".join(rng.choices(words, k=2500))[:19_980] + b'"}' + end


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl.zst",
        "a.txt",
        *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.long]) for name in ("a.jsonl.gz", "a.txt.zst")),
    ],
)
def test_memory_stays_flat_over_100_megabytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    stream = Stream(generated(100_000_000, b"\n" if ".jsonl" in name else b"<|endoftext|>"))
    with open(path, "wb") as file:
        if name.endswith(".zst"):
            zstandard.ZstdCompressor(level=1).copy_stream(stream, file)
        elif name.endswith(".gz"):
            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as compressed:
                while block := stream.read(1 << 20):
                    compressed.write(block)
        else:
            while block := stream.read(1 << 20):
                file.write(block)
    tracemalloc.start()
    count = sum(len(document.text or "") > 10_000 for document in documents(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5000
    assert peak < 3 << 20, f"{peak / 2**20:.1f} MiB"


def test_memory_stays_flat_for_text_that_compresses_a_thousandfold(tmp_path: Path) -> None:
    body = b"again and again " * 100 + b"<|endoftext|>"
    compressed = zstandard.ZstdCompressor().compress(body * 50_000)
    (tmp_path / "a.txt.zst").write_bytes(compressed)
    assert len(body) * 50_000 > 1000 * len(compressed)
    tracemalloc.start()
    assert sum(1 for _ in documents(tmp_path / "a.txt.zst")) == 50_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20, f"{peak / 2**20:.1f} MiB"


# ---- real data


@pytest.mark.shared
@pytest.mark.parametrize("name", ["pubmed_abstracts", "stackexchange"])
def test_pile_text_from_another_field_and_as_lm_dataformat(shared: Path, tmp_path: Path, name: str) -> None:
    path = shared / "pile_nonmembers" / f"{name}.ngram7.test_raw.jsonl.gz"
    original = [document.text or "" for document in documents(path, text="original")]
    assert len(original) == 1000
    assert min(map(len, original)) > 100
    lines = gzip.decompress(path.read_bytes()).splitlines()
    assert original == [json.loads(line)["original"] for line in lines]
    pile = {"pubmed_abstracts": "PubMed Abstracts", "stackexchange": "StackExchange"}[name]
    rows: list[dict[str, object]] = [{"text": t, "meta": {"pile_set_name": pile}} for t in original]
    (tmp_path / "00.jsonl.zst").write_bytes(COMPRESSORS[".zst"](jsonl(rows)))
    parsed = list(documents(tmp_path / "00.jsonl.zst"))
    assert [d.text for d in parsed] == original
    assert {d.meta["pile_set_name"] for d in parsed} == {pile}
    assert [d.number for d in parsed] == list(range(1, 1001))


@pytest.mark.shared
def test_tinystories_with_a_last_story_that_is_cut_off(shared: Path) -> None:
    path = shared / "tinystories" / "train_head_2MiB.txt"
    stories = [(document.text or "").strip() for document in documents(path)]
    assert len(stories) == path.read_text().count("<|endoftext|>") + 1 == 2317
    assert stories[0].startswith("One day, a little girl named Lily found a needle in her room.")
    assert stories[-1].endswith("She said it was")
    assert "<|endoftext|>".join(d.text or "" for d in documents(path)) == path.read_text()


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_byte_order_mark_is_removed(tmp_path: Path, suffix: str) -> None:
    for name, content in (("a.txt", "One."), ("a.jsonl", '{"text": "One."}\n'), ("a.json", '[{"text": "One."}]')):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(COMPRESSORS[suffix](f"\ufeff{content}".encode()))
        assert texts(path) == ["One."]
