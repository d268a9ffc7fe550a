"""Compiling: files on disk, restarts, merging, digests, and incomplete corpora."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from finetune import prepare as preparing
from wellread.config import RunConfig
from wellread.corpus.batch import collate
from wellread.corpus.building import building
from wellread.corpus.columns import duplicates
from wellread.corpus.digest import corpus_key, digest
from wellread.corpus.merge import merge
from wellread.corpus.read import Corpus
from wellread.corpus.shards import Sample, Shard, write_shard
from wellread.corpus.workers import write_chunks
from wellread.errors import UserError


def sample(row: int, tokens: list[int], spans: list[tuple[int, int]], *, sealed: bool = False) -> Sample:
    return Sample(
        tokens=tokens,
        spans=spans,
        document=row % 5,
        sealed=sealed,
        set_id=row % 2,
        row=row,
        category="open_qa",
        author="human",
    )


SHARDS = [
    Shard([sample(1, [5, 6, 7], [(1, 3)], sealed=True), sample(2, [8, 9], [(1, 2)])], Counter(response_cut=1)),
    Shard([], Counter(dropped_empty_response=3)),
    Shard(
        [sample(4, [65535, 1, 2, 3], [(1, 2), (3, 4)]), sample(6, [5, 6, 7], [(1, 3)], sealed=True)],
        Counter(response_cut=1),
    ),
]


def written(build: Path, count: int, make: Callable[[int], Shard]) -> list[int]:
    """Write the missing ones of the shards 0 … count-1; return what is yielded meanwhile."""
    return [*write_chunks(build, range(count), lambda path, i: write_shard(path, make(i)), 1, lambda _: 1)]


def compiled(target: Path, shards: list[Shard] = SHARDS, vocab: int = 65536) -> Corpus:
    with building(target) as build:
        assert build is not None
        written(build, len(shards), shards.__getitem__)
        merge(
            build,
            sets=("toy", "odd"),
            vocab_size=vocab,
            settings={"a": 1},
            extra={"kind": "toy", "sets": [{"name": "toy"}, {"name": "odd"}]},
        )
    return Corpus.open(target)


def contents(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_trainable_samples_come_first(tmp_path: Path) -> None:
    corpus = compiled(tmp_path / "c")
    assert [corpus.tokens(i).tolist() for i in range(4)] == [[8, 9], [65535, 1, 2, 3], [5, 6, 7], [5, 6, 7]]
    assert [corpus.targets(i).tolist() for i in range(3)] == [
        [False, True], [False, True, False, True], [False, True, True],
    ]  # fmt: skip
    assert (corpus.n, corpus.n_trainable) == (4, 2)
    assert corpus.lengths(np.array([1, 0, 3])).tolist() == [4, 2, 3]
    assert corpus.n_targets(np.array([0, 1, 2, 3])).tolist() == [1, 2, 2, 2]
    assert corpus.meta["counts"] == {
        "samples": 4, "trainable": 2, "sealed": 2, "tokens": 12, "targets": 7, "sealed_tokens": 6, "longest": 4,
        "duplicates": 1, "dropped_empty_response": 3, "response_cut": 2,
    }  # fmt: skip


def test_the_table_of_samples(tmp_path: Path) -> None:
    corpus = compiled(tmp_path / "c")
    table = corpus.samples().to_pydict()
    digests = table.pop("digest")
    assert table == {
        "sample_id": [0, 1, 2, 3],
        "split": ["trainable", "trainable", "sealed", "sealed"],
        "n_tokens": [2, 4, 3, 3],
        "n_targets": [1, 2, 2, 2],
        "document": [2, 4, 1, 1],
        "source": ["toy", "toy", "odd", "toy"],
        "rows": [[2], [4], [1], [6]],
        "category": ["open_qa"] * 4,
        "author": ["human"] * 4,
    }
    assert digests == [corpus.digest(i) for i in range(4)]
    assert corpus.set_names == ("toy", "odd")
    assert corpus.sets(np.array([2, 3, 0])).tolist() == [1, 0, 0]


def test_a_digest_is_that_of_tokens_and_mask() -> None:
    """blake2b-128 of the tokens as little-endian uint32, then of the mask as bytes; this never changes."""
    tokens, targets = np.array([1, 65535], dtype="<u2"), np.array([False, True])
    expected = hashlib.blake2b(bytes.fromhex("01000000ffff0000" + "0001"), digest_size=16).digest()
    assert digest(tokens, targets) == expected
    assert digest(tokens.astype(np.int64), targets) == expected
    assert digest(tokens, ~targets) != expected
    assert digest(tokens[::-1], targets) != expected


@pytest.mark.parametrize(("vocab", "dtype", "width"), [(65536, "<u2", 2), (65537, "<u4", 4)])
def test_width_of_tokens(vocab: int, dtype: str, width: int, tmp_path: Path) -> None:
    corpus = compiled(tmp_path / "c", vocab=vocab)
    assert corpus.meta["dtype"] == dtype
    assert (corpus.path / "tokens.bin").stat().st_size == 12 * width
    assert corpus.tokens(1)[0] == 65535


def test_the_hash_depends_on_samples_and_not_on_files(tmp_path: Path) -> None:
    corpus_hash = compiled(tmp_path / "c").hash
    assert compiled(tmp_path / "wide", vocab=70000).hash == corpus_hash
    assert compiled(tmp_path / "one", [Shard([s for shard in SHARDS for s in shard.samples])]).hash == corpus_hash
    assert compiled(tmp_path / "d", SHARDS[:1] + SHARDS[2:]).hash == corpus_hash
    for changes in ({"tokens": [8, 8]}, {"spans": [(0, 2)]}, {"sealed": True}, {"document": 3}):
        other = dataclasses.replace(SHARDS[0].samples[1], **changes)  # type: ignore[arg-type]
        shards = [Shard([SHARDS[0].samples[0], other]), SHARDS[2]]
        assert compiled(tmp_path / str(changes), shards).hash != corpus_hash
    swapped = [SHARDS[2], SHARDS[0]]
    assert compiled(tmp_path / "swapped", swapped).hash != corpus_hash


def test_compiling_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    config = RunConfig.of(holdout=0.25)
    paths = [preparing.prepare(config.replace(corpora=str(tmp_path / name))) for name in "ab"]
    assert contents(paths[0]) == contents(paths[1])
    assert {p.name for p in paths[0].iterdir()} == {
        "corpus.json", "offsets.npy", "samples.parquet", "target_offsets.npy", "targets.npy", "tokenizer", "tokens.bin",
    }  # fmt: skip


def build_until(error: type[BaseException], target: Path, make) -> None:  # type: ignore[no-untyped-def]
    with building(target) as build:
        assert build is not None
        written(build, 3, make)
        raise error("stop")


def test_an_interrupted_build_continues_where_it_stopped(tmp_path: Path) -> None:
    target, calls = tmp_path / "c", []

    def make(index: int) -> Shard:
        calls.append(index)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return SHARDS[index]

    with pytest.raises(KeyboardInterrupt):
        build_until(KeyboardInterrupt, target, make)
    assert not target.exists()
    with building(target) as build:
        assert build is not None
        progress = written(build, 3, make)
        merge(
            build,
            sets=("toy", "odd"),
            vocab_size=65536,
            settings={"a": 1},
            extra={"kind": "toy", "sets": [{"name": "toy"}, {"name": "odd"}]},
        )
    assert calls == [0, 1, 2, 2]
    assert progress == [1, 2, 3]
    assert contents(target) == contents(compiled(tmp_path / "whole").path)


def test_a_failed_build_leaves_no_files(tmp_path: Path) -> None:
    target = tmp_path / "c"
    with pytest.raises(UserError, match="stop"):
        build_until(UserError, target, SHARDS.__getitem__)
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_waited_for_one_that_failed(tmp_path: Path) -> None:
    """The first build removes its lock and the folder that it created; the second creates both again."""
    target, waiting, built = tmp_path / "new" / "c", threading.Event(), list[bool]()

    def second() -> None:
        waiting.set()
        with pytest.raises(UserError, match="second"):
            fails("second", lambda: None)

    def fails(name: str, meanwhile: Callable[[], object]) -> None:
        with building(target) as build:
            meanwhile()
            built.append(build is not None and build.is_dir())
            raise UserError(name)

    def wait() -> None:
        thread.start()
        waiting.wait()
        time.sleep(0.2)  # until it waits for the lock
        assert built == []

    thread = threading.Thread(target=second)
    with pytest.raises(UserError, match="first"):
        fails("first", wait)
    thread.join()
    assert built == [True, True]
    assert list(tmp_path.iterdir()) == []


def test_a_finished_corpus_is_not_built_again(tmp_path: Path) -> None:
    compiled(tmp_path / "c")
    before = contents(tmp_path / "c")
    with building(tmp_path / "c") as build:
        assert build is None
    assert contents(tmp_path / "c") == before


def test_a_killed_build_is_finished_by_the_next(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process is killed during tokenizing; the corpus is equal to one of an uninterrupted build."""
    monkeypatch.setattr(preparing, "ROWS_PER_SHARD", 50)
    code = (
        "import sys, time; from finetune import prepare\n"
        "from wellread.config import RunConfig\n"
        "prepare.ROWS_PER_SHARD = 50; fast = prepare.tokenize\n"
        "def slow(*rows, **settings): time.sleep(1); return fast(*rows, **settings)\n"
        "prepare.tokenize = slow; prepare.prepare(RunConfig.of(corpora=sys.argv[1]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")], cwd=root, stdout=subprocess.DEVNULL
    ) as job:
        while job.poll() is None and len(list(tmp_path.glob("a/.*.building/shards/*.npz"))) < 3:
            time.sleep(0.01)
        assert job.poll() is None
        job.send_signal(signal.SIGKILL)
    (shards,) = tmp_path.glob("a/.*.building/shards")
    n_written = len(list(shards.glob("*.npz")))
    assert 3 <= n_written < 14
    tokenize = preparing.tokenize
    first_rows: list[int] = []

    def counted(rows, **settings):  # type: ignore[no-untyped-def]
        first_rows.append(rows[0].row)
        return tokenize(rows, **settings)

    monkeypatch.setattr(preparing, "tokenize", counted)
    continued = preparing.prepare(RunConfig.of(corpora=str(tmp_path / "a")))
    assert first_rows == [1 + 50 * i for i in range(n_written, 14)]  # 664 rows: 14 shards
    uninterrupted = preparing.prepare(RunConfig.of(corpora=str(tmp_path / "b")))
    assert contents(continued) == contents(uninterrupted)


def test_a_corpus_with_only_sealed_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        compiled(tmp_path / "c", [SHARDS[1], Shard([SHARDS[0].samples[0]])])
    assert str(refused.value) == (
        "toy+odd: no trainable sample is left (dropped empty response: 3, sealed: 1); "
        "lower --holdout or provide more rows"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"toy\+odd: no trainable sample is left \(dropped empty response: 3, sealed: 0\)"
    ):
        compiled(tmp_path / "c", SHARDS[1:2])


def test_incomplete_corpora_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        Corpus.open(tmp_path)
    assert str(refused.value) == f"{tmp_path}: not a corpus (corpus.json is missing); compile it again"
    for name in ("tokens.bin", "offsets.npy", "targets.npy", "target_offsets.npy", "samples.parquet"):
        path = compiled(tmp_path / name).path
        os.truncate(path / name, 5)
        with pytest.raises(UserError, match=f"{name}: missing or not [0-9,]+ bytes long; delete .* and compile again"):
            Corpus.open(path)
        (path / name).unlink()
        with pytest.raises(UserError, match=f"{name}: missing or not"):
            Corpus.open(path)


def test_samples_out_of_range(tmp_path: Path) -> None:
    corpus = compiled(tmp_path / "c")
    for i in (-1, 4):
        for read in (corpus.tokens, corpus.targets, corpus.digest):
            with pytest.raises(UserError) as refused:
                read(i)
            assert str(refused.value) == f"sample {i}: out of range, c has samples 0 … 3"


def test_batches_have_the_samples_of_the_corpus(tmp_path: Path) -> None:
    corpus = compiled(tmp_path / "c")
    batch = collate(corpus, np.array([1, 0]))
    assert batch.tokens.tolist() == [[65535, 1, 2, 3, 0], [8, 9, 0, 0, 0]]  # up to 4 tokens are computed
    assert batch.targets.sum(1).tolist() == [2, 1]
    assert (batch.sample_ids.tolist(), batch.lengths.tolist()) == ([1, 0], [4, 2])
    assert batch.digests() == [corpus.digest(1), corpus.digest(0)]
    batch.tokens[0, 2] = 99
    batch.targets[1, 0] = True
    assert not set(batch.digests()) & {corpus.digest(i) for i in range(4)}


def test_the_key_of_settings_ignores_their_order() -> None:
    assert corpus_key({"a": 1, "b": 2}) == corpus_key({"b": 2, "a": 1}) == "d8497d9d8277"
    assert corpus_key({"a": 1, "b": 3}) != corpus_key({"a": 1, "b": 2})


def test_the_sample_corpus(corpus: Corpus) -> None:
    meta = corpus.meta
    assert (meta["kind"], meta["dtype"], meta["sets"][0]["rows"]) == ("instruction", "<u2", 664)
    assert (corpus.n, corpus.n_trainable) == (664, 518)  # sealing is a draw per document: 146 of 664, 22%
    table = corpus.samples()
    assert table["split"].to_pylist() == ["trainable"] * 518 + ["sealed"] * 146
    assert sorted(r for rows in table["rows"].to_pylist() for r in rows) == list(range(1, 665))
    assert all(corpus.digest(i) == d for i, d in enumerate(table["digest"].to_pylist()))
    assert max(table["n_tokens"].to_pylist()) == 256
    assert json.loads((corpus.path / "corpus.json").read_text())["tokenizer"]["size"] == 2048
    first, mask = corpus.tokens(0), corpus.targets(0)
    assert not mask[0]
    assert mask[-1]
    assert first[-1] == 0  # end of text
    assert pyarrow.parquet.read_schema(corpus.path / "samples.parquet").names == table.column_names


def test_a_copy_elsewhere_is_the_same_corpus(corpus: Corpus, tmp_path: Path) -> None:
    shutil.copytree(corpus.path, tmp_path / "copy")
    assert Corpus.open(tmp_path / "copy").hash == corpus.hash


def test_one_long_category_costs_its_own_bytes_only(tmp_path: Path) -> None:
    samples = [dataclasses.replace(sample(i, [i, 1], [(1, 2)]), category="short") for i in range(2000)]
    samples[7] = dataclasses.replace(samples[7], category="x" * 1_000_000, author="ends with\0")
    tracemalloc.start()
    corpus = compiled(tmp_path / "c", [Shard(samples[:1000]), Shard(samples[1000:])])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000  # as wide as the longest in every row, the column would take 4 GB
    table = corpus.samples()
    assert table["category"].to_pylist() == [each.category for each in samples]
    assert table["author"].to_pylist() == [each.author for each in samples]


def test_windows_of_a_document_are_not_duplicates() -> None:
    documents, sets = np.array([5, 5, 5, 9, 5]), np.array([0, 0, 0, 0, 1])
    assert duplicates(documents, sets, np.array([1, 1, 1, 2, 7])) == 1  # row 7 of the other data set
    assert duplicates(documents, sets, np.array([1, 1, 3, 2, 1])) == 2
    assert duplicates(documents[:0], sets[:0], sets[:0]) == 0
