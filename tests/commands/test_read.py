"""`eval read`: every answer is compared with the corpus, the order or the source, worked out another way."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.programs import Program

from wellread import open_run
from wellread.checkpoint import list_checkpoints
from wellread.commands import read
from wellread.corpus.decoder import Decoder
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.errors import UserError
from wellread.record import search
from wellread.record.history import History
from wellread.record.reader import Record
from wellread.run import RunDirectory

STEPS, BATCH = 12, 16
Ask = Callable[..., str]


@pytest.fixture
def ask(tiny_run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run `read` on the finished run (with `of`, on another run; None: without a run); return its output."""

    def call(*words: object, of: object = tiny_run.path) -> str:
        assert read.main([*([str(of)] if of else []), *map(str, words)]) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def history(tiny_run: RunDirectory) -> History:
    return open_run(tiny_run.path).history


@pytest.fixture(scope="module")
def texts(corpus: Corpus) -> list[str]:
    """Text of every sample, as the tokenizer decodes it."""
    tokenizer = Tokenizer.load(corpus.tokenizer)
    return [tokenizer.decode(corpus.tokens(i).tolist()) for i in range(corpus.n)]


def value(printed: str, name: str) -> str:
    """The value after a name at the start of a line."""
    return next(line[len(name) :].strip() for line in printed.splitlines() if line.startswith(f"{name}  "))


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_checkpoint_shows_what_it_has_read(ask: Ask, tiny_run: RunDirectory, corpus: Corpus) -> None:
    printed = ask("--checkpoint", "step-8")
    ids = Record.open(tiny_run.record).sample_ids((0, 8))
    checkpoint = next(c for c in list_checkpoints(tiny_run.checkpoints) if c.step == 8)
    assert value(printed, "samples").startswith(f"{len(set(ids.tolist()))} distinct of {corpus.n_trainable} trainable")
    assert value(printed, "readings") == "128"
    assert value(printed, "tokens") == f"{corpus.lengths(ids).sum():,}" == f"{checkpoint.tokens:,}"
    assert value(printed, "targets") == f"{corpus.n_targets(ids).sum():,}"
    assert value(printed, "epochs") == f"{128 / corpus.n_trainable:.4f}"
    assert value(printed, "interval").startswith("batches 4:8, 64 readings of 64 samples")
    assert value(printed, "record head") == checkpoint.head
    assert ask("--checkpoint", "8") == printed
    assert value(ask(), "step") == "12 of 12"


def test_checkpoint_counts_categories_and_means_of_metrics(ask: Ask, tiny_run: RunDirectory, corpus: Corpus) -> None:
    printed = ask("--checkpoint", 8)
    ids = Record.open(tiny_run.record).sample_ids((0, 8))
    table = corpus.samples()
    categories = table["category"].to_pylist()
    expected = Counter(categories[i] for i in ids)
    rows = {line.split()[1]: line.split() for line in printed.splitlines() if line.startswith("sample ")}
    assert {name: int(row[3]) for name, row in rows.items()} == dict(expected)
    assert sum(int(row[4].replace(",", "")) for row in rows.values()) == corpus.lengths(ids).sum()
    assert value(printed, "n_targets").split()[0] == f"{table['n_targets'].to_numpy()[ids].mean():.4f}"
    assert value(printed, "n_targets").split()[1] == f"{table['n_targets'].to_numpy()[ids[64:]].mean():.4f}"


def test_a_metric_is_averaged_without_missing_values(copied_run: RunDirectory, ask: Ask) -> None:
    import pyarrow.parquet

    grades = [float(i) if i % 3 else None for i in range(Corpus.open(copied_run.corpus).n)]
    path = copied_run.corpus / "samples.parquet"
    table = pyarrow.parquet.read_table(path).append_column("grade", pyarrow.array(grades))
    pyarrow.parquet.write_table(table, path)
    meta = json.loads((copied_run.corpus / "corpus.json").read_text())
    meta["sizes"]["samples.parquet"] = path.stat().st_size
    (copied_run.corpus / "corpus.json").write_text(json.dumps(meta))
    ids = Record.open(copied_run.record).sample_ids((0, 4))
    expected = np.mean([i for i in ids if i % 3])
    assert value(ask("--checkpoint", 4, of=copied_run.path), "grade").split()[0] == f"{expected:.4f}"
    lines = list(csv.DictReader(io.StringIO(ask("--csv", of=copied_run.path))))
    assert np.mean([i for i in ids[:BATCH] if i % 3]) == pytest.approx(float(lines[0]["mean_grade"]), abs=1e-6)


def test_diff_shows_what_the_second_read_in_addition(ask: Ask, tiny_run: RunDirectory) -> None:
    printed = ask("--diff", "step-4", "step-12")
    record = Record.open(tiny_run.record)
    old, new = set(record.sample_ids((0, 4)).tolist()), set(record.sample_ids((4, 12)).tolist())
    assert value(printed, "new samples").startswith(f"{len(new - old)} ")
    assert value(printed, "between").startswith("batches 4:12, 128 readings")
    assert value(printed, "read again").startswith(f"{len(new & old)} ")


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batch_prints_every_slot_as_it_was_read(
    ask: Ask, tiny_run: RunDirectory, history: History, texts: list[str]
) -> None:
    printed = ask("--batch", 7)
    rows = Record.open(tiny_run.record).table(batches=(7, 8)).to_pylist()
    heads = [line for line in printed.splitlines() if line.startswith("batch 7 slot ")]
    assert len(heads) == BATCH
    for slot, (row, head) in enumerate(zip(rows, heads, strict=True)):
        assert head.startswith(f"batch 7 slot {slot}  sample {row['sample_id']}  sample:")
        assert f"loss {row['loss']:.4f}" in head
        assert all(f"    {line}".rstrip() in printed for line in texts[row["sample_id"]].split("\n"))


def test_jsonl_has_one_object_per_sample(ask: Ask, tmp_path: Path, corpus: Corpus, history: History) -> None:
    ask("--batch", "3:5", "--jsonl", tmp_path / "out.jsonl")
    objects = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(o["batch_id"], o["slot"]) for o in objects] == [(b, s) for b in (3, 4) for s in range(BATCH)]
    assert [o["sample_id"] for o in objects] == history.order.batches(3, 5).ravel().tolist()
    source = corpus.samples()["rows"].to_pylist()
    assert all(o["rows"] == source[o["sample_id"]] and o["n_tokens"] > o["n_targets"] > 0 for o in objects)


def test_save_writes_token_ids_padded_with_minus_one(
    ask: Ask, tmp_path: Path, corpus: Corpus, history: History
) -> None:
    ask("--batch", "3:5", "--save", tmp_path / "out.npy")
    ids, array = history.order.batches(3, 5).ravel(), np.load(tmp_path / "out.npy")
    assert array.shape == (2 * BATCH, corpus.lengths(ids).max())
    for row, sample_id in zip(array, ids, strict=True):
        assert row[row >= 0].tolist() == corpus.tokens(sample_id).tolist()
    assert ((array == -1).sum(axis=1) == array.shape[1] - corpus.lengths(ids)).all()


def test_call_gives_one_line_per_batch(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history: History, texts: list[str]
) -> None:
    (tmp_path / "my_counts.py").write_text(
        "def words(batch):\n    return [batch.batch_id, sum(len(t.split()) for t in batch.texts)]\n"
        "def bad(batch):\n    return {1, 2}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    lines = [json.loads(line) for line in ask("--batch", "2:5", "--call", "my_counts:words").splitlines()]
    assert lines == [[b, sum(len(texts[i].split()) for i in history.order.batch(b))] for b in (2, 3, 4)]
    with pytest.raises(UserError, match="batch 2: did not return a JSON value"):
        ask("--batch", "2", "--call", "my_counts:bad", "--jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    for name, error in {
        "nowhere:f": "no module nowhere",
        "my_counts:g": "has no function g",
        "f": "MODULE:FUN",
    }.items():
        with pytest.raises(UserError, match=error):
            ask("--batch", "2", "--call", name)


def test_csv_has_one_line_per_batch(ask: Ask, tmp_path: Path, tiny_run: RunDirectory, corpus: Corpus) -> None:
    lines = list(csv.DictReader(io.StringIO(ask("--csv"))))
    assert [int(line["batch_id"]) for line in lines] == list(range(STEPS))
    assert sum(int(line["tokens"]) for line in lines) == list_checkpoints(tiny_run.checkpoints)[-1].tokens
    table = Record.open(tiny_run.record).table(batches=(9, 10))
    loss, weights = table["loss"].to_numpy().astype(np.float64), table["n_targets"].to_numpy()
    assert float(lines[9]["loss"]) == pytest.approx((loss * weights).sum() / weights.sum(), abs=1e-6)
    assert float(lines[9]["mean_n_targets"]) == pytest.approx(weights.mean(), abs=1e-6)
    ask("--batch", "3:5", "--csv", tmp_path / "b.csv")
    assert [line.split(",")[0] for line in (tmp_path / "b.csv").read_text().splitlines()] == ["batch_id", "3", "4"]


# --- samples and rows ------------------------------------------------------------------------------------------------


def test_readings_of_a_sample_equal_the_record(history: History, tiny_run: RunDirectory) -> None:
    table = Record.open(tiny_run.record).table()
    places: dict[int, list[Any]] = {}
    for row in table.to_pylist():
        places.setdefault(row["sample_id"], []).append((row["batch_id"], row["slot"], row["epoch"], row["loss"]))
    assert len(places) > 100
    for sample_id in range(history.order.n):
        readings = [(r.batch_id, r.slot, r.epoch, r.loss) for r in history.sample(sample_id)]
        assert readings == places.get(sample_id, [])


def test_past_and_future_readings_are_distinguished(ask: Ask, history: History) -> None:
    sample_id = int(history.order.batch(6)[3])
    assert "read 1 time by step 12\n" in ask("--sample", sample_id)
    printed = ask("--sample", sample_id, "--checkpoint", "step-4")
    assert "read 0 times by step 4, 1 more to come by step 12" in printed
    assert printed.splitlines()[-1].split() == ["6", "3", "0", "7", "-", "will", "be", "read"]


def test_future_batches_come_from_the_order(copied_run: RunDirectory, ask: Ask, history: History) -> None:
    manifest = json.loads(copied_run.manifest_file.read_text())
    manifest["identity"]["steps"] = 100  # as if the run was stopped at step 12
    copied_run.manifest_file.write_text(json.dumps(manifest))
    printed = ask("--batch", 99, of=copied_run.path)
    assert "not read yet" in printed.splitlines()[0]
    sample_ids = [int(line.split()[5]) for line in printed.splitlines() if line.startswith("batch 99 slot ")]
    assert sample_ids == history.order.batch(99).tolist()
    places = [[str(x) for x in place] for place in history.order.locate(sample_ids[0], batches=100)]
    lines = [line.split() for line in ask("--sample", sample_ids[0], of=copied_run.path).splitlines()[3:]]
    assert [line[:2] for line in lines] == places
    assert lines[-1][:2] == ["99", "0"]
    assert lines[-1][-3:] == ["will", "be", "read"]


def test_sealed_samples_are_named(ask: Ask, corpus: Corpus) -> None:
    assert "sealed: never read" in ask("--sample", corpus.n - 1)


@pytest.mark.parametrize("name", ["sample", "sample.jsonl"])
def test_row_leads_to_its_sample(ask: Ask, corpus: Corpus, name: str) -> None:
    rows = corpus.samples()["rows"].to_pylist()
    assert ask("--row", f"{name}:{rows[77][0]}") == ask("--sample", 77)


# --- text ------------------------------------------------------------------------------------------------------------


def test_two_hundred_parts_of_read_rows_are_found(history: History, texts: list[str], root: Path) -> None:
    """Parts of rows of the source file, also from the middle of words; compared with a plain search."""
    from wellread.data import sets
    from wellread.data.sources import tables

    rows = {row.number: row.fields for row in tables.rows(sets.find("sample").sources[0]) if row.fields}
    rng, read = random.Random(0), history.order.batches(0, STEPS).ravel().tolist()
    assert history.tokenizer is not None
    checked = 0
    while checked < 200:
        sample_id = rng.choice(read)
        row = history.samples.rows(np.array([sample_id]))[0]["rows"][0]
        text = str(rows[row]["response"])
        start = rng.randrange(max(1, len(text) - 40))
        piece = text[start : start + rng.randrange(4, 40)]
        if not (text[max(0, start - 1)].isalpha() and piece[0].isalpha() and piece[-1].isalpha()):
            continue
        if piece not in texts[sample_id]:
            continue  # truncated at the end of the sample
        matches = [hit.sample_id for hit in search.search(history.reader, history.tokenizer, piece)]
        assert sample_id in matches, piece
        assert matches == [i for i, text_of_sample in enumerate(texts) if piece in text_of_sample]
        checked += 1


def test_occurrences_are_counted_and_overlap(history: History, texts: list[str]) -> None:
    assert history.tokenizer is not None
    for piece in ("e", "th", "\n\n###", " the ", "ess", "Response:\n", "<|endoftext|>", "é", "..."):
        matches = {hit.sample_id: hit.count for hit in search.search(history.reader, history.tokenizer, piece)}
        counts = {i: sum(text.startswith(piece, k) for k in range(len(text))) for i, text in enumerate(texts)}
        assert matches == {i: count for i, count in counts.items() if count}


def test_no_match_spans_two_samples(history: History, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert history.tokenizer is not None
    for at_once in (1, 1000, search.TOKENS_AT_ONCE):  # blocks of one sample, of a few, of all
        monkeypatch.setattr(search, "TOKENS_AT_ONCE", at_once)
        for i in range(0, 300, 30):
            across = texts[i][-20:] + texts[i + 1][:20]
            assert search.search(history.reader, history.tokenizer, across) == []
            assert i in [hit.sample_id for hit in search.search(history.reader, history.tokenizer, texts[i][-20:])]


def test_text_names_samples_and_readings(ask: Ask, history: History, texts: list[str], tmp_path: Path) -> None:
    sample_id = int(history.order.batch(5)[2])
    piece = texts[sample_id][-60:-20]
    printed = ask("--text", piece)
    assert f"sample {sample_id}  sample:" in printed
    assert "    batch 5 slot 2  epoch 0  loss " in printed
    assert printed.splitlines()[-1].endswith("read 1 time by step 12, in 1 batch from 5 to 5")
    assert "read 0 times by step 4" in ask("--text", piece, "--checkpoint", "4").splitlines()[-1]
    ask("--text", piece, "--jsonl", tmp_path / "hits.jsonl")
    (hit,) = map(json.loads, (tmp_path / "hits.jsonl").read_text().splitlines())
    assert hit["sample_id"] == sample_id
    assert [(r["batch_id"], r["slot"]) for r in hit["readings"]] == [(5, 2)]
    assert ask("--text", "xyzzy plugh") == f"none of {history.reader.n} samples contains it\n"


class Samples:
    """A reader of token sequences, with the methods that a search needs."""

    def __init__(self, sequences: list[list[int]]) -> None:
        self.sequences = [np.array(s, dtype=np.uint16) for s in sequences]
        self.n = len(sequences)

    def tokens(self, sample_id: int) -> np.ndarray[Any, Any]:
        return self.sequences[sample_id]

    def lengths(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array([len(self.sequences[i]) for i in ids])


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["pythia", "llama2", "stories260K"])
def test_search_with_published_tokenizers(shared: Path, tmp_path: Path, kind: str) -> None:
    """GPT-NeoX's byte-level BPE, and SentencePiece with byte fallback, over texts of many scripts."""
    file = {
        "pythia": "tokenizers/pythia_20B_tokenizer.json",
        "llama2": "tokenizers/llama2_tokenizer.model",
        "stories260K": "stories260K/tok512.model",
    }[kind]
    shutil.copy(shared / file, tmp_path / ("tokenizer.json" if kind == "pythia" else "tokenizer.model"))
    eos = {"eos_token": "<|endoftext|>" if kind == "pythia" else "</s>"}
    name = "PreTrainedTokenizerFast" if kind == "pythia" else "LlamaTokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **eos}))
    tokenizer, decoder = Tokenizer.load(tmp_path), Decoder.load(tmp_path)
    stories = (shared / "tinystories/validation_head.txt").read_text()[:20000]
    texts = [
        "Ünïcödé 日本語 🦙🦙 naïve",
        " leading blank",
        "tab\tand  many     blanks\n\n    code()",
        "aaaaaaa",
        stories,
    ]
    reader: Any = Samples([[*tokenizer.continuations([text])[0], tokenizer.eos] for text in texts])
    decoded = [tokenizer.decode(reader.tokens(i).tolist()) for i in range(reader.n)]
    rng = random.Random(1)
    pieces = ["日", "本語 🦙", "🦙", "aa", "aaaaaa", "  many  ", "\n\n  ", "é 日"]
    pieces += [stories[k : k + rng.randrange(1, 50)] for k in (rng.randrange(len(stories) - 50) for _ in range(20))]
    for piece in pieces:
        matches = {hit.sample_id: hit.count for hit in search.search(reader, decoder, piece)}
        expected = {i: sum(d.startswith(piece, k) for k in range(len(d))) for i, d in enumerate(decoded)}
        assert matches == {i: count for i, count in expected.items() if count}, piece


def test_a_tokenizer_with_other_bytes_is_refused(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    assert history.tokenizer is not None
    table = search.token_bytes(history.tokenizer)
    monkeypatch.setattr(search, "token_bytes", lambda _: [token.swapcase() for token in table])
    with pytest.raises(UserError, match="sample 0 decodes to other bytes"):
        search.search(history.reader, history.tokenizer, "the")


# --- SQL -------------------------------------------------------------------------------------------------------------


def test_sql_joins_record_and_samples(ask: Ask, corpus: Corpus, tiny_run: RunDirectory, tmp_path: Path) -> None:
    query = "select category, count(*) n from record join samples using (sample_id) group by category order by category"
    lines = [line.split("\t") for line in ask("--sql", query).splitlines()]
    categories = corpus.samples()["category"].to_pylist()
    expected = Counter(categories[i] for i in Record.open(tiny_run.record).sample_ids())
    assert lines == [["category", "n"], *([name, str(n)] for name, n in sorted(expected.items()))]
    ask("--sql", "select digest from record limit 1", "--csv", tmp_path / "q.csv")
    digest = corpus.digest(int(Record.open(tiny_run.record).sample_ids()[0])).hex()
    assert (tmp_path / "q.csv").read_text() == f"digest\n{digest}\n"
    with pytest.raises(UserError, match=r"--sql: .*tables are record and samples"):
        ask("--sql", "select * from recrod")


def test_sql_without_duckdb_names_the_package_to_install(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UserError, match="pip install 'duckdb"):
        ask("--sql", "select 1")


# --- a corpus without a run ------------------------------------------------------------------------------------------


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
        ("pythia", ("--batch_size", 16), "whose batches are of 1024"),
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


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--checkpoint", "step-5"], "no checkpoint step-5; it has step-0, step-4, step-8, step-12"),
        (["--checkpoint", "last"], "expected a step, e.g. step-400 or 400"),
        (["--batch", "12"], "out of range, .* has batches 0 … 11"),
        (["--batch", "3:13"], r"has batches 0 … 11 \(as a range 0:12, the end not included\)"),
        (["--batch", "5:3"], "out of range"),
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


def test_index_maps_give_the_order_of_a_megatron_data_set(program: Program, tmp_path: Path) -> None:
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
    program("eval", "read", *flags, check=True)
    expected = [stream[shuffle[12 + slot] * length :][: length + 1] for slot in range(4)]
    assert np.load(out).reshape(4, -1).tolist() == [tokens.tolist() for tokens in expected]
