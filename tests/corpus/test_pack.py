"""Packing: the algorithm, the files of a packed corpus, a run on it, and queries of that run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from support.programs import Program

from eval.evaluate import evaluate
from eval.groups import Groups
from eval.membership.evaluation import Membership
from finetune.prepare import prepare
from wellread.config import RunConfig
from wellread.corpus.batch import Batch, collate
from wellread.corpus.pack import first_fit_decreasing, joined_document, pack
from wellread.corpus.read import Corpus
from wellread.corpus.segments import Segments
from wellread.errors import UserError
from wellread.models.load import load_model
from wellread.models.score import log_likelihoods
from wellread.record.reader import Record
from wellread.record.verify import verify
from wellread.run import RunDirectory

# --- the algorithm


def one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """First-fit decreasing, the textbook version."""
    free: list[int] = []
    bins = [0] * len(lengths)
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((b for b, space in enumerate(free) if space >= lengths[item]), len(free))
        free += [capacity] * (place == len(free))
        free[place] -= lengths[item]
        bins[item] = place
    return bins


def test_it_is_first_fit_decreasing() -> None:
    draws = np.random.default_rng(0)
    for _ in range(200):
        capacity = int(draws.integers(1, 60))
        lengths = draws.integers(1, capacity + 1, int(draws.integers(0, 80)))
        assert first_fit_decreasing(lengths, capacity).tolist() == one_by_one(lengths.tolist(), capacity)


def test_a_known_packing() -> None:
    lengths, sets = np.array([6, 3, 9, 4, 1, 5, 2]), np.array([0, 0, 0, 0, 0, 1, 1])
    # of set 0 by length: 9 | 6 4 | 3, and the 1 goes into the first bin with enough space
    assert [p.tolist() for p in pack(lengths, sets, 10)] == [[0, 3], [1], [2, 4], [5, 6]]
    assert pack(np.empty(0, np.int64), np.empty(0, np.int64), 10) == []


# --- the corpus


@pytest.fixture(scope="module")
def plain(corpora: Path) -> Corpus:
    """The data set `sample` with longer sequences than usual."""
    return Corpus.open(prepare(RunConfig.of(corpora=str(corpora), seq_len=512)))


@pytest.fixture(scope="module")
def packed(corpora: Path) -> Corpus:
    """The same data set, packed."""
    return Corpus.open(prepare(RunConfig.of(corpora=str(corpora), seq_len=512, pack=True)))


def test_packing_keeps_every_sample(plain: Corpus, packed: Corpus) -> None:
    samples, segments = plain.samples(), Segments(packed).table
    names = ["digest", "split", "n_tokens", "n_targets", "document", "source", "rows", "category", "author"]
    rows = [sorted(table.select(names).to_pylist(), key=lambda row: row["rows"]) for table in (samples, segments)]
    assert rows[0] == rows[1]
    assert (packed.hash, packed.path) != (plain.hash, plain.path)
    counts = packed.meta["counts"]
    assert (counts["segments"], counts["sealed_segments"]) == (664, 146)
    assert (counts["tokens"], counts["targets"]) == (plain.meta["counts"]["tokens"], plain.meta["counts"]["targets"])
    assert (plain.n, packed.n, packed.n_trainable) == (664, 207, 160)


def test_a_packed_sample_consists_of_its_segments(plain: Corpus, packed: Corpus) -> None:
    table, segments = packed.samples().to_pylist(), Segments(packed)
    rows = segments.table.to_pylist()
    of_row = {row["rows"][0]: row["sample_id"] for row in plain.samples().to_pylist()}
    for i, sample in enumerate(table):
        members = [row for row in rows if row["sample_id"] == i]
        starts, low = packed.starts(i), int(packed.segment_offsets[i])
        assert starts.tolist() == [0, *np.cumsum([row["n_tokens"] for row in members])[:-1]]
        assert not packed.targets(i)[starts].any()  # it would be predicted from the previous segment
        assert {row["split"] for row in members} == {sample["split"]}
        assert sample["rows"] == [row["rows"][0] for row in members] == sorted(sample["rows"])
        assert sample["document"] == joined_document([row["document"] for row in members])
        assert (len(packed.tokens(i)) <= 512, sample["n_targets"]) == (True, int(packed.targets(i).sum()))
        for place, row in enumerate(members):
            unpacked = of_row[row["rows"][0]]
            assert (segments.tokens(low + place) == plain.tokens(unpacked)).all()
            assert (segments.targets(low + place) == plain.targets(unpacked)).all()
            assert segments.digest(low + place) == plain.digest(unpacked)
    split = packed.samples()["split"].to_pylist()
    assert split == ["trainable"] * packed.n_trainable + ["sealed"] * (packed.n - packed.n_trainable)
    assert segments.n_trainable == 518


def test_digests_cover_where_segments_begin(packed: Corpus) -> None:
    several = next(i for i in range(packed.n) if len(packed.starts(i)) > 2)
    one = next((i for i in range(packed.n) if len(packed.starts(i)) == 1), None)
    ids = np.array([several] if one is None else [several, one])
    batch = collate(packed, ids)
    assert batch.digests() == [packed.digest(i) for i in ids.tolist()]
    assert packed.samples()["digest"][several].as_py() == packed.digest(several)
    assert batch.segments is not None
    moved = batch.segments.clone()
    moved[0, packed.starts(several)[1]] = 0  # the second segment begins one token later
    other = Batch(batch.sample_ids, batch.lengths, batch.tokens, batch.targets, moved)
    assert other.digests()[0] != batch.digests()[0]
    assert Batch(batch.sample_ids, batch.lengths, batch.tokens, batch.targets).digests()[0] != batch.digests()[0]


def test_padding_is_a_separate_segment(packed: Corpus) -> None:
    ids = np.arange(packed.n)[np.argsort(packed.lengths(np.arange(packed.n)))][[0, -1]]
    batch = collate(packed, ids)
    assert batch.segments is not None
    for row, i in enumerate(ids.tolist()):
        n, k = len(packed.tokens(i)), len(packed.starts(i))
        assert batch.segments[row, :n].unique().tolist() == list(range(k))
        assert (batch.segments[row, n:] == k).all()


def test_data_sets_are_packed_separately(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {i}.", "response": f"{i} " * (i % 9 + 1), "category": "c"} for i in range(200)]
    for name, part in (("one", rows[:120]), ("two", rows[120:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    data = f"{tmp_path / 'one.jsonl'},{tmp_path / 'two.jsonl'}"
    corpus = Corpus.open(prepare(RunConfig.of(data=data, corpora=str(tmp_path / "c"), pack=True, seq_len=64)))
    table = Segments(corpus).table.to_pandas()
    assert table.groupby("sample_id", observed=True)["source"].nunique().max() == 1
    names = [corpus.set_names[k] for k in corpus.sets(np.arange(corpus.n)).tolist()]
    assert names == table.groupby("sample_id")["source"].first().tolist()
    assert table["source"].value_counts().to_dict() == {"one": 120, "two": 80}


# --- what is refused


def test_a_model_family_without_proven_isolation_is_refused(in_process: Program, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64, "vocab_size": 9})
    )
    process = in_process("launch", "plan", "finetune", "--model", tmp_path, "--data", "sample", "--pack")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "is a gpt2; samples of one sequence are isolated only in " in process.stderr


def test_a_megatron_set_is_refused(tmp_path: Path) -> None:
    from wellread.data.sources.megatron_write import write

    write(tmp_path / "set", [np.arange(9, dtype=np.uint16)] * 4)
    with pytest.raises(UserError, match="is a Megatron data set; its sequences already have one length"):
        prepare(RunConfig.of(data=f"text@{tmp_path / 'set'}", corpora=str(tmp_path / "c"), pack=True))


# --- a run


@pytest.fixture(scope="module")
def packed_run(
    program: Program, packed: Corpus, corpora: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    """A finished run on the packed sample set: 6 steps of 8 on 2 ranks."""
    out = tmp_path_factory.mktemp("packed") / "run"
    flags = [
        "--steps",
        6,
        "--seq_len",
        512,
        "--save_every",
        3,
        "--batch_size",
        8,
        "--ranks_per_node",
        2,
        "--corpora",
        corpora,
    ]
    program("launch", "run", "finetune", "--pack", *flags, "--out", out, check=True)
    return RunDirectory.open(out)


def test_the_record_matches_the_order(packed_run: RunDirectory, packed: Corpus) -> None:
    assert verify(packed_run) == []
    identity = packed_run.manifest()["identity"]
    assert (identity["pack"], identity["order"]["n"]) == (True, packed.n_trainable)
    rows = Record.open(packed_run.record).table().to_pylist()
    assert len(rows) == 48
    assert all(row["digest"] == packed.digest(row["sample_id"]) for row in rows)


def test_losses_in_training_are_those_of_separate_rows(packed_run: RunDirectory, packed: Corpus) -> None:
    """The first batch, with the model before its step: bf16 in training, fp32 here."""
    rows = Record.open(packed_run.record).table(batches=(0, 1)).to_pylist()[:3]
    model = load_model(packed_run.checkpoints / "step-00000000" / "model")
    segments = Segments(packed)
    for row in rows:
        members = np.arange(*packed.segment_offsets[row["sample_id"] : row["sample_id"] + 2])
        separate, n_targets = log_likelihoods(model, segments, members)
        assert n_targets.sum() == row["n_targets"]
        assert row["loss"] == pytest.approx(-separate.sum() / n_targets.sum(), rel=2e-3)
        together, _ = log_likelihoods(model, packed, np.array([row["sample_id"]]))
        assert together[0] == pytest.approx(separate.sum(), rel=1e-5)


def test_verify_finds_altered_segments(packed_run: RunDirectory, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(packed_run.path, tmp_path / "run", symlinks=False)
    run = RunDirectory.open(tmp_path / "run")
    table = pyarrow.parquet.read_table(run.corpus / "segments.parquet")
    documents = table["document"].to_pylist()
    place = table.column_names.index("document")
    altered = table.set_column(place, "document", pyarrow.array([documents[0] + 1, *documents[1:]]))
    pyarrow.parquet.write_table(altered, run.corpus / "segments.parquet")
    meta = json.loads((run.corpus / "corpus.json").read_text())
    meta["sizes"]["segments.parquet"] = (run.corpus / "segments.parquet").stat().st_size
    (run.corpus / "corpus.json").write_text(json.dumps(meta))
    problems = [line.partition(": ")[2] for line in verify(run)]
    assert [line for line in problems if not line.startswith(("checksum: ", "sha256: ", "split "))] == [
        "sample 0: its document does not match its segments"
    ]
    starts = np.load(run.corpus / "segments.npy")
    starts[1] += 1
    np.save(run.corpus / "segments.npy", starts)
    assert any("sample 0: its tokens or loss mask do not match its digest" in line for line in verify(run))


def test_membership_compares_segments(packed_run: RunDirectory, packed: Corpus) -> None:
    groups = Groups.of(packed_run, 10_000, 0).at(6)
    read = set(Record.open(packed_run.record).sample_ids().tolist())
    table = Segments(packed).table
    segments_read = [i for i, sample in enumerate(table["sample_id"].to_pylist()) if sample in read]
    assert groups["read"].tolist() == segments_read
    assert groups["sealed"].tolist() == list(range(518, 664))
    results = evaluate(Membership(packed_run, steps=[6], bootstrap=100, max_samples=20), progress=False)
    sizes = {result.group: result.n for result in results if result.metric == "mean_loss"}
    assert sizes == {"read": 20, "sealed": 20}


def ask(in_process: Program, run: RunDirectory, *arguments: Any) -> str:
    return in_process("eval", "read", run.path, *arguments, check=True).stdout


def test_read_prints_every_row_of_a_packed_sample(
    in_process: Program, packed_run: RunDirectory, packed: Corpus, tmp_path: Path
) -> None:
    sample_id = Record.open(packed_run.record).sample_ids()[0]
    rows = packed.samples()["rows"][sample_id].as_py()
    members = [row for row in Segments(packed).table.to_pylist() if row["sample_id"] == sample_id]
    output = ask(in_process, packed_run, "--row", f"sample.jsonl:{rows[-1]}")
    assert output.startswith(f"sample {sample_id}  sample:{','.join(map(str, rows))}")
    for place, row in enumerate(members, 1):
        assert f"  segment {place} of {len(members)}  sample:{row['rows'][0]}  category {row['category']}" in output
    assert "read 1 time by step 6" in output
    ask(in_process, packed_run, "--batch", "0", "--jsonl", tmp_path / "batch.jsonl")
    first = json.loads((tmp_path / "batch.jsonl").read_text().splitlines()[0])
    assert [segment["rows"] for segment in first["segments"]] == [row["rows"] for row in members]
    assert "".join(segment["text"] for segment in first["segments"]) == first["text"]
    query = "select count(*) from record join segments using (sample_id) where step <= 3"
    expected = sum(len(packed.starts(i)) for i in Record.open(packed_run.record).sample_ids((0, 3)).tolist())
    assert ask(in_process, packed_run, "--sql", query).splitlines()[1] == str(expected)


def test_a_text_does_not_span_segments(packed_run: RunDirectory, packed: Corpus) -> None:
    from wellread import open_run
    from wellread.record.search import search

    history = open_run(packed_run.path).history
    assert history.tokenizer is not None
    several = next(i for i in range(packed.n) if len(packed.starts(i)) > 1)
    boundary, tokens = int(packed.starts(several)[1]), packed.tokens(several).tolist()
    across = history.tokenizer.decode(tokens[boundary - 6 : boundary + 6])
    inside = history.tokenizer.decode(tokens[boundary - 12 : boundary - 2])
    assert several in [hit.sample_id for hit in search(packed, history.tokenizer, across)]
    assert search(history.units, history.tokenizer, across) == []
    hits = [hit.sample_id for hit in search(history.units, history.tokenizer, inside)]
    assert int(packed.segment_offsets[several]) in hits


def test_a_packed_run_is_not_continued_unpacked(in_process: Program, packed_run: RunDirectory, corpora: Path) -> None:
    flags = [
        "--steps",
        6,
        "--seq_len",
        512,
        "--batch_size",
        8,
        "--ranks_per_node",
        2,
        "--corpora",
        corpora,
        "--out",
        packed_run.path,
    ]
    process = in_process("launch", "run", "finetune", *flags)
    assert process.returncode == 2
    assert "contains another run (" in process.stderr
