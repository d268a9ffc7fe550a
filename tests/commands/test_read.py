"""`read`: a corpus without a run, user errors, output and exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.programs import Program
from support.reading import Ask

from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.run import RunDirectory


@pytest.fixture
def megatron(tmp_path: Path, corpus: Corpus) -> Path:
    """The corpus as a Megatron data set; returns its PREFIX."""
    from wellread.data.sources.megatron_write import write

    write(tmp_path / "document", (corpus.tokens(i) for i in range(corpus.n)))
    return tmp_path / "document"


def test_corpus_without_a_run(megatron: Path, ask: Ask, corpus: Corpus, tmp_path: Path, texts: list[str]) -> None:
    corpus_flags = ("--corpus", megatron, "--order", "sequential", "--batch_size", 16)
    printed = ask(*corpus_flags, "--batch", "3:5", of=None)
    heads = [line for line in printed.splitlines() if " slot " in line]
    assert [int(line.split()[5]) for line in heads] == list(range(48, 80))
    assert f"    {' '.join(map(str, corpus.tokens(48).tolist()))}\n" in printed
    decoded = ask(*corpus_flags, "--batch", "3", "--tokenizer", corpus.tokenizer, of=None)
    assert all(f"    {line}".rstrip() in decoded for line in texts[50].split("\n"))
    ask(*corpus_flags, "--batch", "3", "--save", tmp_path / "b.npy", of=None)
    assert (np.load(tmp_path / "b.npy")[2] >= 0).sum() == len(corpus.tokens(50))
    printed_matches = ask(*corpus_flags, "--text", texts[50][30:60], "--tokenizer", corpus.tokenizer, of=None)
    assert "    batch 3 slot 2  epoch 0  will be read" in printed_matches
    last = -(-corpus.n // 16) - 1
    with pytest.raises(UserError, match=rf"has batches 0 … {last}$"):
        ask(*corpus_flags, "--batch", last + 1, of=None)
    with pytest.raises(UserError, match="give one with --tokenizer"):
        ask(*corpus_flags, "--text", "x", of=None)


def test_pythia_order_is_refused_for_other_sizes(megatron: Path, ask: Ask) -> None:
    for order, size, error in (
        ("pythia", (), "sequence 0 has .* tokens"),
        ("pythia", ("--batch_size", 16), "use --batch_size 1024"),
        ("shuffled", ("--batch_size", 16), "choose sequential, pythia"),
        ("sequential", (), "--batch_size is missing"),
    ):
        with pytest.raises(UserError, match=error):
            ask("--corpus", megatron, "--order", order, *size, "--batch", 0, of=None)


def test_a_data_set_of_pythias_sizes_is_read_in_its_order(tmp_path: Path, ask: Ask) -> None:
    from wellread.data.sources.megatron_write import write

    sequences = np.random.default_rng(0).integers(50000, size=(2048, 2049), dtype=np.uint16)
    write(tmp_path / "document", iter(sequences))
    corpus_flags = ("--corpus", tmp_path / "document", "--order", "pythia")
    ask(*corpus_flags, "--batch", "1", "--save", tmp_path / "b.npy", of=None)
    assert (np.load(tmp_path / "b.npy") == sequences[1024:]).all()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--checkpoint", "step-5"], "no checkpoint step-5; it has step-0, step-4, step-8, step-12"),
        (["--checkpoint", "newest"], "expected a step, e.g. step-400 or 400, or last"),
        (["--batch", "12"], "out of range, .* has batches 0 … 11"),
        (["--batch", "3:13"], r"has batches 0 … 11 \(as a range 0:12, the end not included\)"),
        (["--batch", "5:3"], "--batch 5:3: is reversed, the end is not included; write 3:5"),
        (["--batch", "5:5"], "--batch 5:5: is empty, the end is not included; write 5"),
        (["--batch", "x"], "expected a batch or a range"),
        (["--sample", "99999"], "out of range, .* has samples 0 … "),
        (["--sample", "x"], "expected a sample id, 0 … "),
        (["--row", "dolly.jsonl:1"], "no source 'dolly.jsonl'; the sources of the corpus are sample"),
        (["--row", "sample:9999"], "sample has rows 1 … "),
        (["--row", "sample"], "expected SOURCE:ROW"),
        (["--text", ""], "--text: empty"),
        (["--diff", "8", "4"], "swap them"),
        (["--save", "x.npy"], "--save goes with --batch"),
        (["--batch", "1", "--sample", "2"], "one question at a time"),
        (["--corpus", "x"], "give a run directory, or a corpus"),
        (["--batch", "1", "--jsonl", "/nowhere/x.jsonl"], "the directory /nowhere does not exist"),
        (["--sampel", "1"], "did you mean --sample"),
    ],
)
def test_user_errors_are_one_line(ask: Ask, words: list[str], error: str) -> None:
    with pytest.raises(UserError, match=error) as caught:
        ask(*words)
    assert "\n" not in str(caught.value)


def test_output_and_exit_codes_of_the_program(program: Any, tiny_run: RunDirectory) -> None:
    process = program("eval", "read", tiny_run.path, "--sample", 3, check=True)
    assert process.stdout.startswith("sample 3  sample:")
    assert "\x1b" not in process.stdout
    refused = program("eval", "read", tiny_run.path, "--batch", 12)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --batch 12: out of range")
    assert refused.stderr.count("\n") == 1
    assert "examples:" in program("eval", "read", "--help", check=True).stdout


def test_control_characters_are_escaped() -> None:
    from wellread.terminal import visible

    assert visible("a\x1b[2Jb\r\x9bc\td\ne") == "a\\x1b[2Jb\\x0d\\x9bc\td\ne"


def test_index_maps_give_the_order_of_a_megatron_data_set(in_process: Program, tmp_path: Path) -> None:
    from wellread.data.sources.megatron_write import write

    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 2048, size=int(size)) for size in rng.integers(20, 90, size=40)]
    write(tmp_path / "pile", documents, "uint16")
    order, length = rng.permutation(40), 32
    stream = np.concatenate([documents[i] for i in order])
    starts = np.cumsum([0, *(len(documents[i]) for i in order)])
    samples = (len(stream) - 1) // length
    document = [int(np.searchsorted(starts, k * length, "right")) - 1 for k in range(samples + 1)]
    index = [(d, k * length - starts[d]) for k, d in enumerate(document)]
    shuffle = rng.permutation(samples)
    maps = {"doc": order.astype(np.int32), "sample": np.array(index, np.int32), "shuffle": shuffle.astype(np.uint32)}
    for name, values in maps.items():
        np.save(tmp_path / f"{name}.npy", values)
    kind = "megatron:" + ",".join(str(tmp_path / f"{name}.npy") for name in maps)
    out = tmp_path / "batch.npy"
    flags = ["--corpus", tmp_path / "pile", "--order", kind, "--batch_size", 4, "--batch", 3, "--save", out]
    in_process("eval", "read", *flags, check=True)
    expected = [stream[shuffle[12 + slot] * length :][: length + 1] for slot in range(4)]
    assert np.load(out).reshape(4, -1).tolist() == [tokens.tolist() for tokens in expected]
