"""lm_dataformat's archives: each form that its Reader 0.0.20 opens, document for document."""

from __future__ import annotations

import gzip
import io
import json
import random
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from wellread.data import documents as stories
from wellread.data import sets
from wellread.data.sources import text
from wellread.data.sources.text import documents
from wellread.errors import UserError

TEXTS = ["One story.", "Über  zwei\n\nZeilen. ", "three <|endoftext|> not split"]


def write(path: Path, content: bytes) -> Path:
    data = zstandard.ZstdCompressor().compress(content) if path.suffix == ".zst" else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO(data))
    return path


def texts(path: Path) -> list[str | None]:
    return [document.text for document in documents(path)]


def test_lists_of_strings_and_paragraphs(tmp_path: Path) -> None:
    lines = "".join(json.dumps(each) + "\n" for each in TEXTS).encode()
    assert texts(write(tmp_path / "data_0_time1_default.jsonl.zst", lines)) == TEXTS
    assert texts(write(tmp_path / "data_0_1.json.zst", json.dumps(TEXTS).encode())) == TEXTS
    assert texts(write(tmp_path / "a.json.gz", lines)) == TEXTS  # a string per line, not a list
    paragraphs = {"text": ["One.", "Two."], "meta": {"pile_set_name": "Books3"}}
    (document,) = documents(write(tmp_path / "p.jsonl.zst", json.dumps(paragraphs).encode()))
    assert (document.text, document.meta) == ("One.\n\nTwo.", {"pile_set_name": "Books3"})
    (document,) = documents(write(tmp_path / "m.jsonl", json.dumps({"text": ["One.", 2]}).encode()))
    assert document.error == "'text' is list, not text"


def test_dat_archives(tmp_path: Path) -> None:
    encoded = [each.encode() for each in TEXTS]
    content = b"".join(b"%016d" % len(each) + each for each in encoded)
    assert texts(write(tmp_path / "data_0_x.dat.zst", content)) == TEXTS
    with pytest.raises(UserError, match=r"a\.dat\.zst: damaged \(cut off inside document 3\)"):
        texts(write(tmp_path / "a.dat.zst", content[:-1]))
    with pytest.raises(UserError, match=r"document 4 does not begin with its length in 16 digits"):
        texts(write(tmp_path / "a.dat.zst", content + b"x" * 20))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("place", [45, 60, 100, -300])
def test_a_member_with_a_flipped_byte_is_one_error(method: int, place: int, tmp_path: Path) -> None:
    """Each method of compression has errors of its own."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.txt", random.Random(0).randbytes(2000).hex())
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.zip: damaged \(.*\); copy or download it again"):
        texts(path)


@pytest.mark.parametrize("make", [zipped, tarred])
def test_members_are_documents_or_tables(tmp_path: Path, make: object) -> None:
    assert callable(make)
    members = {f"folder/{i}.txt": each.encode() for i, each in enumerate(TEXTS)} | {"folder/": b"", "plain": b"last"}
    path = tmp_path / ("a.zip" if make is zipped else "a.tar.gz")
    assert texts(make(path, members)) == [*TEXTS, "last"]
    rows = {
        "a.jsonl": b'{"text": "one"}\n{"text": 2}\n"three"',
        "b.json": b'[{"text": "four"}]',
        "c.csv": b"text,x\nfive,1\n",
        "d.txt": b"\xff",
    }
    results = list(documents(make(path, rows)))
    assert [each.text for each in results] == ["one", None, "three", "four", "five", None]
    assert [each.number for each in results] == [1, 2, 3, 4, 5, 6]
    assert results[5].error == "member 'd.txt' row 1: not UTF-8 at byte 0"
    for name in ("a.parquet", "b.jsonl.zst"):
        with pytest.raises(UserError, match=rf"member '{name}' is a \.\w+ file; take it out of the archive"):
            texts(make(path, {name: b"x"}))
    with pytest.raises(UserError, match=r"member '\.\./a\.txt' has \.\. in its name"):
        texts(make(path, {"../a.txt": b"x"}))
    make(path, {"a.txt": bytes(range(256)) * 300})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=rf"{path.name}: damaged \("):
        texts(path)


@pytest.mark.parametrize("make", [zipped, tarred])
def test_hidden_members_are_skipped_as_in_a_folder(tmp_path: Path, make: object) -> None:
    assert callable(make)
    path = tmp_path / ("a.zip" if make is zipped else "a.tar.gz")
    mac = bytes.fromhex("00051607") + bytes(60)  # how AppleDouble files begin
    hidden = (".git/config", "x/.ipynb_checkpoints/a-checkpoint.txt", ".a.parquet", "__MACOSX/x/._a.txt", "._a.txt")
    make(path, dict.fromkeys(hidden, mac) | {"./x/a.txt": b"one", "b..txt": b"two"})
    assert [(each.number, each.text) for each in documents(path)] == [(1, "one"), (2, "two")]


@pytest.mark.parametrize("make", [zipped, tarred])
@pytest.mark.parametrize("ending", [".tsv", ".ndjson", ".NDJSON", ".feather", ".xlsx", ".lz4", ".rar", ".arrow"])
def test_members_of_other_kinds_are_refused_as_in_a_folder(tmp_path: Path, make: object, ending: str) -> None:
    assert callable(make)
    path = make(tmp_path / ("a.zip" if make is zipped else "a.tar.gz"), {"a.txt": b"one", f"b{ending}": b'{"text": 1}'})
    with pytest.raises(UserError, match=rf"member 'b{ending}' is a {ending.lower()} file; take it out of the archive"):
        texts(path)


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    """In a .zip, the content of a link is the path it names, which is not a document."""
    paths = [tmp_path / "a.zip"]
    with zipfile.ZipFile(paths[0], "w") as archive:
        member = zipfile.ZipInfo("b.txt")
        member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "a.txt")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        paths.append(tmp_path / f"{kind.decode()}.tar.gz")
        with tarfile.open(paths[-1], "w:gz") as tar:
            other = tarfile.TarInfo("b.txt")
            other.type, other.linkname = kind, "a.txt"
            tar.addfile(other)
    for path in paths:
        with pytest.raises(UserError, match=r"member 'b\.txt' is a link or a device; write the archive again without"):
            texts(path)


def test_archives_of_a_folder_are_read_and_unfinished_ones_are_not(tmp_path: Path) -> None:
    zipped(tmp_path / "b.zip", {"a.txt": b"x"})
    write(tmp_path / "a.dat.zst", b"%016d" % 1 + b"y")
    (tmp_path / "current_chunk_incomplete").write_bytes(b"x")
    assert [path.name for path in sets.documents(str(tmp_path)).paths] == ["a.dat.zst", "b.zip"]


def test_a_cut_archive_is_damaged_even_if_its_members_are_complete(tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar.gz", {"a.txt": b"one", "b.txt": b"two"})
    assert texts(path) == ["one", "two"]
    for end in (-4, -12, -20):
        path.write_bytes(tarred(tmp_path / "b.tar.gz", {"a.txt": b"one", "b.txt": b"two"}).read_bytes()[:end])
        with pytest.raises(UserError, match=r"a\.tar\.gz: damaged \(Compressed file ended before .*; copy or download"):
            texts(path)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.dat.zst", "a.jsonl.zst", "a.txt.gz", "a.json.zst"])
def test_a_document_that_expands_without_end_stops_at_the_limit(tmp_path: Path, name: str) -> None:
    bomb, path = b"0" * (3 << 20), tmp_path / name
    if name in ("a.zip", "a.tar.gz"):
        (zipped if name == "a.zip" else tarred)(path, {"x.txt": bomb})
    else:
        start = {"a.dat.zst": b"%016d" % len(bomb), "a.json.zst": b'[{"a": "'}.get(name, b"")
        write(path, start + bomb)
    with pytest.raises(UserError, match=rf"{name}: .* is longer than 1 MiB, the most that one document may have"):
        list(text.documents(path, limit=1 << 20))


def test_each_file_of_a_folder_is_a_document_except_files_with_separators(tmp_path: Path) -> None:
    for i, each in enumerate(["one", "two<|endoftext|>three", "four"]):
        (tmp_path / f"{i}.txt").write_text(each)
    source = sets.documents(str(tmp_path))
    results = [content.text for _, content in stories.read(source) if not isinstance(content, str)]
    assert results == ["one", "two", "three", "four"]
    assert stories.unseparated(source) == []  # so that --packing story takes them
    assert stories.split_files(source) == (
        f"{tmp_path}: 1 of 3 text files contain <|endoftext|> and are split there into several documents (1.txt); "
        "each of the others is one document"
    )
    (tmp_path / "1.txt").unlink()
    assert stories.split_files(sets.documents(str(tmp_path))) == ""
    (tmp_path / "2.txt").unlink()
    assert stories.unseparated(sets.documents(str(tmp_path))) == [tmp_path / "0.txt"]


MEMBERS = {f"{i}.txt": f"Document {i}. ".encode() * (200 * i + 1) for i in range(8)}


def with_one_byte_flipped(tar: bytes) -> bytes:
    """The tar with a damaged header of its third member."""
    place = 512 * [tar[at : at + 5] for at in range(0, len(tar), 512)].index(b"2.txt")
    return tar[: place + 3] + b"T" + tar[place + 4 :]


def cut_at_a_member(tar: bytes) -> bytes:
    """The tar without its fourth member and what follows."""
    return tar[: 512 * [tar[at : at + 5] for at in range(0, len(tar), 512)].index(b"3.txt")]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tar: tar + tar, r"a second archive begins at byte [\d,]+ of its content; unpack them into one"),
        (lambda tar: tar.rstrip(b"\0") + bytes(-len(tar.rstrip(b"\0")) % 512 + 1024) + tar, r"a second archive begins"),
        (with_one_byte_flipped, r"damaged \(at byte [\d,]+ of the tar: bad checksum\)"),
        (cut_at_a_member, r"damaged \(at byte [\d,]+ of the tar: empty header\)"),
        (lambda tar: cut_at_a_member(tar) + b"3.txt", r"damaged \(at byte [\d,]+ of the tar: truncated header\)"),
        (lambda tar: cut_at_a_member(tar) + bytes(512), r"damaged \(cut off: the tar does not end with two blocks"),
        (lambda tar: tar + b"x" * 600, r"damaged \(the tar ends before byte [\d,]+, but data follow\)"),
        (lambda tar: tar + b"x", r"damaged \(the tar ends before byte [\d,]+, but data follow\)"),
    ],
)
def test_a_tar_that_ends_early_is_refused(damage: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    """tarfile takes a damaged header, and the end of the first of several archives, for the end of all."""
    path = tarred(tmp_path / "a.tar.gz", MEMBERS)
    assert len(texts(path)) == len(MEMBERS)
    path.write_bytes(gzip.compress(damage(gzip.decompress(path.read_bytes()))))
    with pytest.raises(UserError, match=message):
        texts(path)


def test_two_files_in_one_are_refused(tmp_path: Path) -> None:
    tar, archive = tarred(tmp_path / "a.tar.gz", MEMBERS), zipped(tmp_path / "a.zip", MEMBERS)
    size, both = archive.stat().st_size, archive.read_bytes()
    tar.write_bytes(tar.read_bytes() * 2)
    empty = zipped(tmp_path / "empty.zip", {}).read_bytes()
    for path, content in ((tar, tar.read_bytes()), (archive, both * 2), (archive, both + empty)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r": a second archive begins at byte [\d,]+ of its content; unpack them"):
            texts(path)
    archive.write_bytes(b"#!/bin/sh\n" * 10 + both)
    with pytest.raises(UserError, match=r"a\.zip: 100 bytes precede the archive, e\.g\. a program; unpack it"):
        texts(archive)
    archive.write_bytes(both + both[:1000])
    with pytest.raises(UserError, match=r"a\.zip: damaged \(its last 1,000 bytes are after its end\)"):
        texts(archive)
    archive.write_bytes(b"PK00" + both + bytes(100))  # one part of an archive of several, and padding
    assert len(texts(archive)) == len(MEMBERS)
    assert size == len(both)


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "ustar", "v7"])
def test_archives_of_gnu_tar_are_complete(form: str, tmp_path: Path) -> None:
    name = "n" * (90 if form in ("v7", "ustar") else 300)
    for i in range(3):
        (tmp_path / f"{name[:200]}{i}.txt").write_text(f"Document {i}. " * 100)
    files = sorted(path.name for path in tmp_path.iterdir())
    subprocess.run(["tar", f"--format={form}", "-czf", "a.tar.gz", *files], cwd=tmp_path, check=True)
    assert texts(tmp_path / "a.tar.gz") == [f"Document {i}. " * 100 for i in range(3)]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_with_comments_and_long_names_is_complete(form: int, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=form, pax_headers={"comment": "x"}) as archive:
        for i in range(3):
            member = tarfile.TarInfo(f"{'folder/' * 60}ü{i}.txt")
            member.size = 512 * i
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    assert texts(tmp_path / "a.tar.gz") == ["", "x" * 512, "x" * 1024]
