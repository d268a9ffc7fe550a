"""Preparing a pretraining corpus: sources, holdout, restarts after kill -9, metrics, perplexity, and errors."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece
from support.waiting import wait_until

from pretrain import prepare as preparing
from pretrain.__main__ import main
from pretrain.prepare import prepare
from wellread.config import PretrainConfig
from wellread.corpus.holdout import document_id, is_sealed
from wellread.corpus.read import Corpus
from wellread.corpus.sentencepiece import Pieces
from wellread.corpus.tokenizer import Tokenizer
from wellread.data import documents, sets
from wellread.data.sources import generated
from wellread.data.text_metrics import NAMES, measure
from wellread.errors import UserError

STORIES = [generated.story(i) for i in range(300)]
TEXT = "\n<|endoftext|>\n".join(STORIES)
Program = Callable[..., "subprocess.CompletedProcess[str]"]


def corpus_of(folder: Path, **settings: object) -> Corpus:
    return Corpus.open(prepare(PretrainConfig.of(vocab="600", corpora=str(folder), **settings)))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stories") / "mine.txt"
    path.write_text(TEXT + "\n<|endoftext|>\n")
    return path


@pytest.fixture(scope="module")
def one_each(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus with one story per sample, and metrics."""
    return corpus_of(
        tmp_path_factory.mktemp("c"), data=str(file), packing="story", seq_len=1024, metrics=True, holdout=0.3
    )


def test_one_story_per_sample(one_each: Corpus) -> None:
    pieces = Pieces((one_each.tokenizer / "tokenizer.model").read_bytes())
    rows = [row for (row,) in one_each.samples()["rows"].to_pylist()]
    assert sorted(rows) == list(range(1, 301))
    for i in (0, 1, one_each.n_trainable, one_each.n - 1):
        story = STORIES[rows[i] - 1]
        assert one_each.tokens(i).tolist() == [1, *pieces.encode(story), 1]
        assert one_each.targets(i).tolist() == [False] + [True] * (len(one_each.tokens(i)) - 1)
        assert (i >= one_each.n_trainable) == is_sealed(document_id(story), 0.3, 0)
    assert 0.2 < 1 - one_each.n_trainable / one_each.n < 0.4
    backend = Tokenizer.load(one_each.tokenizer)
    assert backend.decode(one_each.tokens(0)) == f"<s> {STORIES[rows[0] - 1]}<s>"
    assert one_each.meta["tokenizer"]["size"] == backend.size == 600


def test_metrics_depend_only_on_the_sample(one_each: Corpus) -> None:
    rows = [row - 1 for (row,) in one_each.samples()["rows"].to_pylist()]
    assert one_each.metrics == NAMES
    expected = measure([STORIES[row] for row in rows])
    for k, name in enumerate(NAMES):
        assert np.array_equal(one_each.metric(name), expected[:, k]), name
    with pytest.raises(UserError, match="no metric 'length'; it has words, sentence_length, "):
        one_each.metric("length")


def test_windows_of_a_stream_are_sealed_by_document(file: Path, tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, data=str(file), seq_len=64, holdout=0.3, metrics=True)
    sealed = {row for row in range(1, 301) if is_sealed(document_id(STORIES[row - 1]), 0.3, 0)}
    table = corpus.samples()
    for rows, split in zip(table["rows"].to_pylist(), table["split"].to_pylist(), strict=True):
        assert {row in sealed for row in rows} == {split == "sealed"}
    lengths = corpus.lengths(np.arange(corpus.n))
    assert sorted(set(lengths.tolist()))[-1] == 64
    assert (lengths < 64).sum() <= 2
    backend, text = Tokenizer.load(corpus.tokenizer), corpus.metric("words")
    decoded = backend.decode(corpus.tokens(0)).replace("<s>", "\n\n")
    assert text[0] == measure([decoded])[0, 0]
    again = corpus_of(tmp_path / "again", data=str(file), seq_len=64, holdout=0.3)
    assert again.hash == corpus.hash
    assert again.metrics == ()
    with pytest.raises(UserError, match="it has none; prepare it with --metrics"):
        again.metric("words")


def test_all_kinds_of_sources_give_the_same_stories(file: Path, tmp_path: Path) -> None:
    """The files of TinyStories' archive, compressed JSONL, Parquet, text."""
    archive = tmp_path / "archive"
    archive.mkdir()
    more_fields = {"instruction": {"words": ["a"]}, "summary": "s", "source": "GPT-4"}
    rows = [{"story": f"\n\n{story}"} | more_fields for story in STORIES]
    (archive / "data00.json").write_text(json.dumps(rows[:100]))
    (archive / "data01.json").write_text(json.dumps(rows[100:], indent=1))
    (tmp_path / "x.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps({"text": s}) + "\n" for s in STORIES).encode())
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": STORIES}), tmp_path / "x.parquet")  # fmt: skip
    for data in (file, archive, tmp_path / "x.jsonl.gz", tmp_path / "x.parquet", f"tinystories@{archive}"):
        stories = list(documents.read(sets.documents(str(data))))
        assert [story.text for _, story in stories if not isinstance(story, str)] == STORIES
        assert [number for number, _ in stories] == list(range(1, 301))
    assert {story.category for _, story in stories if not isinstance(story, str)} == {"GPT-4"}
    names = [sets.documents(data).name for data in (f"tinystories@{archive}", str(archive))]
    assert names == ["tinystories", "archive"]
    hub = sets.documents("tinystories")
    assert (hub.hub, hub.published_rows) == ("roneneldan/TinyStories", 2_119_719)
    synthetic = list(documents.read(sets.documents("stories:5")))
    assert [story.text for _, story in synthetic if not isinstance(story, str)] == STORIES[:5]


@pytest.mark.slow
def test_prepare_continues_after_kill_9(tmp_path: Path) -> None:
    """After kill -9 with one shard on disk, workers end too; the next start uses the shard, with the same result."""
    flags = ["--data=stories:4500", "--vocab=600", "--metrics", "--seq_len=128"]
    command = [sys.executable, "-m", "pretrain", "prepare", *flags, f"--corpora={tmp_path}"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    shards = wait_until(lambda: list(tmp_path.glob(".*.building/shards/*.npz")), "a shard is written", running)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.send_signal(signal.SIGKILL)
    running.wait()
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), "the workers end, too")
    first_shards = {path: path.stat().st_ino for path in shards}
    written: list[Path] = []
    original_write = preparing.write
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            preparing,
            "write",
            lambda path, *args, **settings: (written.append(path), original_write(path, *args, **settings)),
        )
        patched.setattr(os, "sched_getaffinity", lambda pid: {0})
        corpus = Corpus.open(
            prepare(
                PretrainConfig.of(data="stories:4500", vocab="600", metrics=True, seq_len=128, corpora=str(tmp_path))
            )
        )
    assert not first_shards.keys() & set(written)
    assert len(written) < 3
    assert corpus.meta["counts"]["samples"] > 4500
    other = corpus_of(tmp_path / "fresh", data="stories:4500", metrics=True, seq_len=128)
    assert other.hash == corpus.hash
    for name in ("tokens.bin", "metrics.parquet", "samples.parquet", "tokenizer/tokenizer.model"):
        assert (other.path / name).read_bytes() == (corpus.path / name).read_bytes(), name


def test_perplexity_of_each_sample(file: Path, tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(vocab_size=600, max_position_embeddings=64, **sizes)).save_pretrained(tmp_path / "m")
    corpus = corpus_of(tmp_path / "c", data=f"{file}:20", seq_len=64, perplexity=str(tmp_path / "m"))
    assert corpus.metrics == (*NAMES, "perplexity")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "m").eval()
    tokens = torch.tensor(corpus.tokens(3).astype(np.int64))[None]
    with torch.no_grad():
        assert corpus.metric("perplexity")[3] == pytest.approx(float(model(tokens, labels=tokens).loss.exp()), rel=1e-4)
    LlamaForCausalLM(LlamaConfig(vocab_size=512, **sizes)).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="its vocabulary is not that of the corpus \\(600 pieces\\)"):
        corpus_of(tmp_path / "d", data=f"{file}:20", seq_len=64, perplexity=str(tmp_path / "other"))
    assert not (tmp_path / "d").exists()


def test_perplexity_needs_a_position_for_each_token(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is compiled, and although rotary positions can be extrapolated."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(vocab_size=600, max_position_embeddings=63, **sizes)).save_pretrained(tmp_path / "m")
    capsys.readouterr()
    with pytest.raises(UserError, match=r"/m: reads 63 tokens, but samples have up to 64; choose a model that reads"):
        corpus_of(tmp_path / "c", data=f"{file}:20", seq_len=64, perplexity=str(tmp_path / "m"))
    assert "compiling" not in capsys.readouterr().out


REFUSED = [
    ([], b"a<|endoftext|> \n<|endoftext|>b", "1 malformed row, 0 allowed: FILE row 2: empty story; fix them, or"),
    ([], b"ab<|endoftext|>c\xffd<|endoftext|>", "1 malformed row, 0 allowed: FILE row 2: not UTF-8 at byte 16 of"),
    (["--packing=story"], b"One story. Another one.", "FILE: contains no <|endoftext|>, so its stories cannot be"),
    (["--vocab=9000"], TEXT.encode(), "--vocab 9000: larger than the text supports; choose at most "),
    (["--vocab=seven"], b"a", "--vocab seven: not a size, llama2 or a file; e.g. 4096 or tok4096.model"),
    (["--vocab=llama2"], b"a", "--vocab llama2: no llama2/tokenizer.model in the directories of WELLREAD_MODELS;"),
    (["--seq_len=3"], b"a", "--seq_len 3: choose at least 4"),
    (["--word_list=FILE"], b"two words", "--word_list FILE line 1: 'two words' is not a single word"),
    (["--holdout=0.9999"], b"x y z<|endoftext|>" * 3, "x: no trainable sample is left ("),
    (["--packing=pages"], b"a", "--packing pages: expected stream, story"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "content", "message"), REFUSED)
def test_invalid_flags_and_data(flags: list[str], content: bytes, message: str, tmp_path: Path) -> None:
    file, corpora = tmp_path / "x.txt", tmp_path / "corpora"
    file.write_bytes(content)
    vocabulary = [] if any("vocab" in flag for flag in flags) else [f"--vocab={tmp_path / 'x.model'}"]
    if vocabulary:
        from collections import Counter

        from wellread.corpus import sentencepiece as pieces

        (tmp_path / "x.model").write_bytes(pieces.train(Counter(TEXT.split()), 600))
    resolved = [flag.replace("FILE", str(file)) for flag in flags]
    with pytest.raises(UserError) as refused:
        main(["prepare", f"--data={file}", f"--corpora={corpora}", *vocabulary, *resolved])
    assert str(refused.value).startswith(message.replace("FILE", str(file)))
    assert "\n" not in str(refused.value)
    assert not list(corpora.glob(".*"))
    assert not list(corpora.glob("x-*"))


def test_an_empty_story_is_skipped_if_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.txt").write_text(f"<|endoftext|>{STORIES[0]}<|endoftext|>\n<|endoftext|>{STORIES[1]}<|endoftext|>\n")
    (tmp_path / "x.model").write_bytes(Pieces(_trained()).model)
    settings = {"vocab": str(tmp_path / "x.model"), "corpora": str(tmp_path / "c"), "holdout": 0.0}
    corpus = Corpus.open(prepare(PretrainConfig.of(data=str(tmp_path / "x.txt"), max_bad_rows=1, **settings)))
    line = f"{tmp_path / 'x.txt'} row 3: empty story"
    assert corpus.meta["bad_rows"] == [line]
    assert f"skipping {line}\n" in capsys.readouterr().err
    assert {row for rows in corpus.samples()["rows"].to_pylist() for row in rows} == {2, 4}


def test_unknown_pieces_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A SentencePiece model without bytes has one piece for all unknown characters."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(STORIES), model_writer=model, character_coverage=1.0, vocab_size=200, minloglevel=2
    )
    (tmp_path / "x.model").write_bytes(model.getvalue())
    file, settings = tmp_path / "x.txt", {"vocab": str(tmp_path / "x.model"), "corpora": str(tmp_path / "c")}
    for texts, count in ((STORIES, 0), ([*STORIES, "In Zürich.", "In Łódź."], 3)):
        file.write_text("<|endoftext|>".join(texts))
        corpus = Corpus.open(prepare(PretrainConfig.of(data=str(file), holdout=0.1, **settings)))
        assert corpus.meta["counts"].get("unknown_tokens", 0) == count
        out = capsys.readouterr().out
        assert ("nothing was truncated or left out" in out) == (not count)
    assert f"no token: 3; first, row {len(STORIES) + 1}: 'ü'\n" in out


def _trained() -> bytes:
    from collections import Counter

    from wellread.corpus import sentencepiece as pieces

    return pieces.train(Counter(TEXT.split()), 600)


def test_disk_full(program: Program, disk: Callable[[int], Path], file: Path) -> None:
    corpora = disk(200 << 10) / "corpora"
    flags = ("pretrain", "prepare", "--data", file, "--vocab", "600", "--corpora", corpora)
    process = program(*flags)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
    assert process.stderr.startswith(f"error: disk full: {corpora}: free some space, then run the same command again")
    assert not corpora.exists()
    disk(8 << 20)
    assert "300 stories of mine" in program(*flags, check=True).stdout
