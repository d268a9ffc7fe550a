"""Shards written by other processes: the same corpus, errors, restarts, and tokenizers that are sent to them."""

import pickle
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from support.chat_models import write_models

from finetune import prepare as preparing
from wellread.config import RunConfig
from wellread.corpus import workers
from wellread.corpus.shards import Shard, shard_path, write_shard
from wellread.corpus.tokenizer import Tokenizer
from wellread.corpus.workers import write_chunks
from wellread.errors import UserError


def write(seconds: float, path: Path, chunk: list[int]) -> None:
    """A shard with one count; number 3 cannot be written."""
    if chunk == [3]:
        raise UserError(f"row {chunk[0]}: cannot be used")
    time.sleep(seconds)
    write_shard(path, Shard([], Counter(rows=chunk[0])))


def test_two_processes_give_the_bytes_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora = []
    monkeypatch.setattr(preparing, "ROWS_PER_SHARD", 50)
    for number, fewest in ((1, 10_000), (2, 100)):
        monkeypatch.setattr(preparing, "PARALLEL", fewest)
        monkeypatch.setattr(preparing, "cores", lambda number=number: number)
        corpora.append(preparing.prepare(RunConfig.of(corpora=str(tmp_path / f"{number}"))))
    files = [{p.relative_to(c): p.read_bytes() for p in c.rglob("*") if p.is_file()} for c in corpora]
    assert len(files[0]) > 7
    assert files[0] == files[1]


def test_an_error_of_a_process_is_that_of_its_first_shard(tmp_path: Path) -> None:
    """A finished shard is not written again, and an error ends the others, with the message that one process has."""
    write_shard(shard_path(tmp_path, 1), Shard([], Counter(rows=100)))
    before = shard_path(tmp_path, 1).read_bytes()
    for count in (1, 2):
        with pytest.raises(UserError, match=r"^row 3: cannot be used$"):
            list(write_chunks(tmp_path, [[n] for n in range(60)], partial(write, 0.05), count))
        assert shard_path(tmp_path, 1).read_bytes() == before
        assert {path.stem for path in tmp_path.glob("shards/*.npz")} >= {"00000", "00001", "00002"}
        assert not shard_path(tmp_path, 40).exists()
    assert not shard_path(tmp_path, 3).exists()


def test_few_characters_wait_for_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most MOST characters wait, or one chunk, if it is longer."""
    sizes, waiting = [5, 5, 5, 30, 4, 4], list[int]()
    monkeypatch.setattr(workers, "MOST", 10)

    class Later:
        def __init__(self, size: int) -> None:
            waiting.append(size)
            assert sum(waiting) <= 10 or len(waiting) == 1

        def result(self) -> None:
            waiting.pop(0)

    monkeypatch.setattr(workers, "_written", lambda write, path, chunk: Later(len(chunk)))
    counts = list(write_chunks(tmp_path, ["x" * size for size in sizes], lambda path, chunk: None, 1))
    assert counts == [1, 2, 3, 4, 5, 6]
    assert waiting == []


def test_a_tokenizer_that_is_sent_encodes_as_before(tmp_path: Path) -> None:
    write_models(tmp_path)
    original = Tokenizer.load(tmp_path / "chatml")
    copy = pickle.loads(pickle.dumps(original))
    texts = ["Say it. Ä ö", "", "<|im_end|> the"]
    assert copy.prompts(texts) == original.prompts(texts)
    assert copy.starts(texts) == original.starts(texts)
    assert copy.continuations(texts) == original.continuations(texts)
    assert (copy.eos, copy.begins) == (original.eos, original.begins)
    assert "backend" not in vars(copy)  # nothing of the above needs it
    messages = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It."}]
    assert copy.chat(messages, "2026-01-02") == original.chat(messages, "2026-01-02")
