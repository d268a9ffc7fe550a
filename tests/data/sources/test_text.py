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

Pack = Callable[[bytes], bytes]
PACKS: dict[str, Pack] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def texts(source: str | Path, **options: str) -> list[str | None]:
    return [document.text for document in documents(source, **options)]  # type: ignore[arg-type]


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# ---- kinds of files


@pytest.mark.parametrize("suffix", PACKS)
def test_jsonl_packed_and_not(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, object]] = [
        {"text": "Zürich\n\n", "meta": {"pile_set_name": "Pile-CC"}, "id": 7},
        {"text": "", "meta": "plain"},
    ]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACKS[suffix](jsonl(rows)))
    assert list(documents(path)) == [
        Document(1, "Zürich\n\n", {"id": 7, "pile_set_name": "Pile-CC"}),
        Document(2, "", {"meta": "plain"}),
    ]


@pytest.mark.parametrize("suffix", PACKS)
def test_running_text_packed_and_not(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACKS[suffix]("\nOne\n<|endoftext|>\n\n<|endoftext|>Zwei ä<|endoftext|>cu".encode()))
    assert list(documents(path)) == [Document(1, "\nOne\n"), Document(3, "Zwei ä"), Document(4, "cu")]
    assert [d.text for d in documents(path, strip=True)] == ["One", "Zwei ä", "cu"]


def test_separator_is_free(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n\nb\nc\n\n\n\nd\n")
    assert [d.text for d in documents(tmp_path / "a.txt", separator="\n\n", strip=True)] == ["a", "b\nc", "d"]
    with pytest.raises(UserError, match="separator of documents: empty"):
        documents(tmp_path / "a.txt", separator="")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    body=st.lists(st.sampled_from(["<", "|", ">", "<|>", "ä", "b", "\n"]), max_size=30).map("".join),
    size=st.integers(1, 7),
)
def test_separators_are_found_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, size: int
) -> None:
    monkeypatch.setattr(text, "READ", size)
    path = tmp_path / "a.txt"
    path.write_text("x" + body, newline="")
    expected = [piece for piece in ("x" + body).split("<|>") if piece.strip(" \n")]
    assert texts(path, separator="<|>") == expected


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": [f"t{i}" for i in range(200)] + [None], "source": ["web"] * 201})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = list(documents(tmp_path / "a.parquet"))
    assert found[:200] == [Document(i + 1, f"t{i}", {"source": "web"}) for i in range(200)]
    assert found[200] == Document(201, None, {"source": "web"}, "no 'text'; its fields are text, source")


def test_frames_of_zstd_that_follow_one_another(tmp_path: Path) -> None:
    pack = zstandard.ZstdCompressor().compress
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"meta"  # as pzstd writes them
    (tmp_path / "a.txt.zst").write_bytes(pack(b"one<|endo") + skippable + pack(b"") + pack(b"ftext|>two"))
    assert texts(tmp_path / "a.txt.zst") == ["one", "two"]


def test_zstd_with_a_long_window(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(packer.compress(b"one<|endoftext|>two") + packer.flush())
    assert texts(tmp_path / "a.txt.zst") == ["one", "two"]


# ---- broken documents are yielded with their number


def test_broken_lines_are_yielded_with_their_number_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = [b'{"text": "a"}', b"", b'{"text": ', b'{"text": "\xff"}', b"[1]", b'{"txt": "b"}', b'{"text": 5}']
    lines += [rb'{"text": "\ud800x"}', b"{}", b'{"text": "z"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    found = list(documents(tmp_path / "a.jsonl"))
    assert [(d.number, d.text) for d in found if d.error is None] == [(1, "a"), (10, "z")]
    assert {d.number: d.error for d in found if d.error} == {
        3: "not JSON: Expecting value at column 9",
        4: "not UTF-8 at byte 10 of the line",
        5: "not a JSON object",
        6: "no 'text'; its fields are txt",
        7: "'text' is int, not text",
        8: "'text' has half of a surrogate pair at character 0",
        9: "no 'text'; its fields are none",
    }
    assert all(d.text is None for d in found if d.error)


def test_bytes_that_are_not_utf8_are_placed_in_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "ä b<|endoftext|>".encode() * 3 + b"c\xffd<|endoftext|>e"
    (tmp_path / "a.txt").write_bytes(body)
    monkeypatch.setattr(text, "READ", 10)
    found = list(documents(tmp_path / "a.txt"))
    at = body.index(b"\xff")
    assert found[3] == Document(4, None, error=f"not UTF-8 at byte {at} of the file")
    assert [d.text for d in found] == ["ä b", "ä b", "ä b", None, "e"]


def test_a_file_cut_inside_a_character_loses_that_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("a<|endoftext|>bä".encode()[:-1])
    assert list(documents(tmp_path / "a.txt")) == [Document(1, "a"), Document(2, "b")]
    (tmp_path / "b.txt").write_bytes("bä".encode()[:-1] + b"<|endoftext|>c")
    assert [d.error for d in documents(tmp_path / "b.txt")] == ["not UTF-8 at byte 1 of the file", None]


# ---- files that are damaged, missing or of another kind: one line that names them


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.txt.zst"])
def test_packed_files_cut_off_at_any_place_are_named(tmp_path: Path, name: str) -> None:
    rng = random.Random(0)
    body = jsonl([{"text": "".join(rng.choices("abcdef ", k=300))} for _ in range(200)])
    packed = PACKS[Path(name).suffix](body)
    for length in {4, 9, len(packed) // 3, len(packed) // 2, len(packed) - 9, len(packed) - 1}:
        (tmp_path / name).write_bytes(packed[:length])
        with pytest.raises(UserError, match=r"damaged \(cut off\); copy or download it again") as error:
            list(documents(tmp_path / name))
        assert str(error.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.zst", "a.parquet"])
def test_files_that_are_not_what_their_name_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no packed file at all")
    with pytest.raises(UserError, match=r"damaged \(|not a Parquet file") as error:
        list(documents(tmp_path / name))
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_flipped_bytes_in_packed_files_are_noticed(tmp_path: Path) -> None:
    checked = zstandard.ZstdCompressor(write_checksum=True).compress
    for name, pack in (("a.txt.gz", gzip.compress), ("a.txt.zst", checked)):
        packed = bytearray(pack(bytes(random.Random(1).choices(b"abcdefg ", k=5000))))
        packed[len(packed) // 2] ^= 16
        (tmp_path / name).write_bytes(packed)
        with pytest.raises(UserError, match=rf"{name}: damaged \("):
            list(documents(tmp_path / name))


def test_damage_inside_a_parquet_file_is_named(tmp_path: Path) -> None:
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


def test_sources_are_checked_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "a.parquet.gz").write_text("a")
    for name, message in {
        "gone.jsonl": "does not exist",
        "empty.jsonl": "is empty",
        "a.csv": r"known kind of file \(\.jsonl \.json \.txt \.parquet; all but \.parquet also as \.gz and \.zst\)",
        "a.parquet.gz": "not a known kind of file",
        ".": "not a file",
    }.items():
        with pytest.raises(UserError, match=message):
            documents(tmp_path / name)
    for spec in ("hub:", "hub:a::b", "hub:a:b:c:d"):
        with pytest.raises(UserError, match=f"{spec}: expected hub:NAME, hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT"):
            documents(spec)


# ---- the hub


def test_hub_sets_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a folder for a hub set, which spares the network; a set with an endless end is read lazily."""
    import datasets

    folder = tmp_path / "someset"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(jsonl([{"text": f"t{i}", "k": i} for i in range(50)]))
    (folder / "test.jsonl").write_bytes(jsonl([{"text": "held out", "k": 0}]))
    assert list(documents(f"hub:{folder}"))[:2] == [Document(1, "t0", {"k": 0}), Document(2, "t1", {"k": 1})]
    assert texts(f"hub:{folder}:test") == ["held out"]
    assert texts(f"hub:{folder}:default:test") == ["held out"]
    with pytest.raises(UserError, match=r":dev: cannot be had from the hub \(Bad split: dev"):
        texts(f"hub:{folder}:dev")
    asked: list[bool] = []
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append(k["streaming"]) or load(*a, **k))
    assert next(documents(f"hub:{folder}")).text == "t0"
    assert asked == [True]


def test_hub_without_a_network_is_one_clear_line() -> None:
    with pytest.raises(
        UserError, match=r"hub:nobody/no-such-set: cannot be had from the hub \(.*\); download"
    ) as error:
        texts("hub:nobody/no-such-set")
    assert "\n" not in str(error.value)


# ---- memory


class Stream(io.RawIOBase):
    """Bytes of generated documents, made while they are packed, so that the test itself holds none of them."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces = pieces
        self.held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while not self.held:
            piece = next(self.pieces, None)
            if piece is None:
                return 0
            self.held = piece
        n = min(len(buffer), len(self.held))
        buffer[:n], self.held = self.held[:n], self.held[n:]
        return n


def generated(size: int, end: bytes) -> Iterator[bytes]:
    """About `size` bytes of documents of 20 kB, of words that pack to about a third."""
    rng = random.Random(5)
    words = [bytes(rng.choices(b"abcdefghijklmnop", k=rng.randint(2, 12))) for _ in range(5000)]
    for _ in range(size // 20_000):
        yield b'{"text": "' + b" ".join(rng.choices(words, k=2500))[:19_980] + b'"}' + end


@pytest.mark.parametrize(
    "name",
    ["a.jsonl.zst", "a.txt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a.jsonl.gz", "a.txt.zst"))],
)
def test_memory_stays_flat_over_100_megabytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    stream = Stream(generated(100_000_000, b"\n" if ".jsonl" in name else b"<|endoftext|>"))
    with open(path, "wb") as file:
        if name.endswith(".zst"):
            zstandard.ZstdCompressor(level=1).copy_stream(stream, file)
        elif name.endswith(".gz"):
            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
                while block := stream.read(1 << 20):
                    packed.write(block)
        else:
            while block := stream.read(1 << 20):
                file.write(block)
    tracemalloc.start()
    count = sum(len(document.text or "") > 10_000 for document in documents(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5000
    assert peak < 3 << 20, f"{peak / 2**20:.1f} MiB"


def test_memory_stays_flat_for_text_that_packs_a_thousandfold(tmp_path: Path) -> None:
    body = b"again and again " * 100 + b"<|endoftext|>"
    packed = zstandard.ZstdCompressor().compress(body * 50_000)
    (tmp_path / "a.txt.zst").write_bytes(packed)
    assert len(body) * 50_000 > 1000 * len(packed)
    tracemalloc.start()
    assert sum(1 for _ in documents(tmp_path / "a.txt.zst")) == 50_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20, f"{peak / 2**20:.1f} MiB"


# ---- real data


@pytest.mark.shared
@pytest.mark.parametrize("name", ["pubmed_abstracts", "stackexchange"])
def test_pile_text_in_another_field_and_as_lm_dataformat(shared: Path, tmp_path: Path, name: str) -> None:
    path = shared / "pile_nonmembers" / f"{name}.ngram7.test_raw.jsonl.gz"
    original = [document.text or "" for document in documents(path, text="original")]
    assert len(original) == 1000
    assert min(map(len, original)) > 100
    lines = gzip.decompress(path.read_bytes()).splitlines()
    assert original == [json.loads(line)["original"] for line in lines]
    pile = {"pubmed_abstracts": "PubMed Abstracts", "stackexchange": "StackExchange"}[name]
    rows: list[dict[str, object]] = [{"text": t, "meta": {"pile_set_name": pile}} for t in original]
    (tmp_path / "00.jsonl.zst").write_bytes(PACKS[".zst"](jsonl(rows)))
    found = list(documents(tmp_path / "00.jsonl.zst"))
    assert [d.text for d in found] == original
    assert {d.meta["pile_set_name"] for d in found} == {pile}
    assert [d.number for d in found] == list(range(1, 1001))


@pytest.mark.shared
def test_tinystories_and_its_last_story_which_is_cut(shared: Path) -> None:
    path = shared / "tinystories" / "train_head_2MiB.txt"
    stories = [document.text or "" for document in documents(path, strip=True)]
    assert len(stories) == path.read_text().count("<|endoftext|>") + 1 == 2317
    assert stories[0].startswith("One day, a little girl named Lily found a needle in her room.")
    assert stories[-1].endswith("She said it was")
    assert "<|endoftext|>".join(d.text or "" for d in documents(path)) == path.read_text()
