"""Tampering that contradicts something inside a run is named, with its file; a run that is restored is verified."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from math import ceil
from pathlib import Path
from random import Random

import pyarrow
import pytest
from support.made_once import made_once
from support.tampering import (
    ALL,
    CHECKED,
    LAST,
    LISTED,
    LORA,
    METRICS,
    PACKED,
    REAL,
    Kind,
    added,
    array,
    corpus_column,
    edited,
    flipped,
    in_corpus,
    json_value,
    longer,
    no_checkpoints,
    put,
    recorded,
    recorded_column,
    removed,
    setting,
    stale,
    swap,
    without_key,
    written,
)
from support.tampering_kinds import ENTRIES, KEYS, TYPES
from support.whole_runs import make

from wellread.commands.verify import main
from wellread.errors import UserError
from wellread.record.verify import examine
from wellread.run import RunDirectory

CORPUS = "corpus/corpus.json"
HEAD = "record/head.json"
PLAIN_WEIGHTS = ("finetune", "packed", "pretrain")
COMPLETE = ("packed", "lora")
"""Runs that have read all their steps; the others were stopped."""
KINDS = [
    # files of a checkpoint
    Kind(
        "an adapter is added",
        "adapter_model.safetensors: not listed",
        written("checkpoints/last/model/adapter_model.safetensors"),
        PLAIN_WEIGHTS,
    ),
    Kind("code is added", "modeling.py: not listed", written("checkpoints/last/model/modeling.py")),
    Kind("a hidden file is added", ".x: not listed", written("checkpoints/first/.x")),
    Kind("a folder is added", "new/a.json: not listed", written("checkpoints/last/new/a.json")),
    Kind("a state is added", "state/more.pt: not listed", written("checkpoints/first/state/more.pt")),
    Kind("a tokenizer is removed", "tokenizer.json: missing", removed("checkpoints/last/model/tokenizer.json")),
    Kind("a tokenizer is altered", "tokenizer.json: altered", flipped("checkpoints/last/model/tokenizer.json")),
    Kind("an adapter is altered", "altered", flipped("checkpoints/last/model/adapter_model.safetensors"), LORA),
    Kind("a manifest lists nothing", "files: lists no weights", json_value(LAST, "files", {})),
    Kind("a manifest is a list", "checkpoint.json: damaged", written(LAST, b"[]")),
    Kind("a manifest is cut", "checkpoint.json: damaged", written(LAST, b'{"step": 6')),
    Kind("a manifest has no files", "files: lists no weights", without_key(LAST, "files")),
    Kind(
        "a file is outside",
        "outside the checkpoint",
        json_value(LAST, "files", lambda v: v | {"../x": {"size": 1, "sha256": ""}}),
    ),
    Kind("a checkpoint is removed", "record.batches", removed("checkpoints/middle")),
    Kind(
        "the last checkpoint is removed",
        "is missing; the last attempt has finished",
        removed("checkpoints/last"),
        COMPLETE,
    ),
    Kind("all checkpoints are removed", "step-00000000 is missing", no_checkpoints),
    Kind(
        "precision in which gradients are added up",
        "strategy, ranks, grad_accum_dtype: ",
        json_value(LAST, "grad_accum_dtype", "fp16"),
    ),
    Kind("an adapter is listed", "does not have LoRA", added("model/adapter_model.safetensors"), PLAIN_WEIGHTS),
    Kind("weights are listed", "has LoRA", added("model/model.safetensors"), LORA),
    Kind("a model's file is listed as dropped", "x.py: not listed", added("model/x.py", "dropped")),
    # fields of a checkpoint
    Kind("tokens", "checkpoint.json: tokens", json_value(LAST, "tokens", lambda n: n + 1)),
    Kind("tokens as text", "damaged (tokens: ", json_value(LAST, "tokens", str)),
    Kind("step", "checkpoint.json: step", json_value(LAST, "step", lambda n: n - 1)),
    Kind("step as text", "damaged (step: ", json_value(LAST, "step", str)),
    Kind("head", "has head", json_value(LAST, "record.head", "0" * 64)),
    Kind("first batch", "record.batches", json_value(LAST, "record.batches.0", 1)),
    Kind("last batch", "record.batches", json_value(LAST, "record.batches.1", lambda n: n + 1)),
    Kind("skipped batches", "skipped batches", json_value(LAST, "skipped", 1)),
    Kind("corpus of a checkpoint", "checkpoint.json: corpus", json_value(LAST, "corpus", "0" * 64)),
    Kind("seed in a checkpoint", "identity.seed", json_value(LAST, "identity.seed", 1)),
    Kind("model in a checkpoint", "identity.model", json_value(LAST, "identity.model", "fresh:0")),
    Kind("an identity is added to", "identity.more", json_value(LAST, "identity.more", 1)),
    Kind("dtype of a checkpoint", "checkpoint.json: dtype", json_value(LAST, "dtype", "fp16")),
    Kind("strategy of a checkpoint", "strategy, ranks", json_value(LAST, "strategy", "zero3")),
    Kind("ranks of a checkpoint", "strategy, ranks", json_value(LAST, "ranks", 64)),
    Kind("holdout loss below 0", "holdout_loss", json_value(LAST, "holdout_loss", -1.0)),
    Kind("holdout loss as text", "holdout_loss", json_value(LAST, "holdout_loss", "low")),
    Kind("version of a checkpoint", "checkpoint.json: version", json_value(LAST, "version", 2)),
    Kind("no identity in a checkpoint", "identity", without_key(LAST, "identity")),
    Kind("no head in a checkpoint", "checkpoint.json: damaged", json_value(LAST, "record", {"batches": [0, 0]})),
    Kind("a checkpoint's manifest is removed", "checkpoint.json: cannot be read", removed(LAST)),
    Kind("a key of a checkpoint is added", "checkpoint.json: more: is not a key", json_value(LAST, "more", 1)),
    Kind("the first checkpoint is removed", "step-00000000 is missing", removed("checkpoints/first")),
    Kind("an entry that is not a checkpoint", "is not a checkpoint", written("checkpoints/first/../more", b"")),
    Kind("a checkpoint's checksum", "checkpoint.json: altered", stale(LAST, "holdout_loss", 1.0), CHECKED),
    # record
    Kind("epoch", "epoch is", recorded_column("epoch", put(3, lambda n: n + 1))),
    Kind("step of a row", "step is", recorded_column("step", put(3, lambda n: n + 1))),
    Kind("targets of a row", "n_targets is", recorded_column("n_targets", put(2, lambda n: n + 1))),
    Kind("a row is skipped", "skipped is", recorded_column("skipped", put(2, True))),
    Kind("a batch is skipped", "skipped batches", recorded_column("skipped", lambda v: [True] * 4 + v[4:])),
    Kind("loss below 0", "loss is", recorded_column("loss", put(0, -1.0))),
    Kind("loss is nan", "loss is", recorded_column("loss", put(0, float("nan")))),
    Kind("sample", "the order says", recorded_column("sample_id", swap)),
    Kind("a sealed sample was read", "the order says", recorded_column("sample_id", put(0, 58))),
    Kind("sample -1", "the order says", recorded_column("sample_id", put(0, -1))),
    Kind("digest", "are not those of the corpus", recorded_column("digest", put(0, bytes(16)))),
    Kind("slot", "wrong place", recorded_column("slot", swap)),
    Kind("batch of a row", "wrong place", recorded_column("batch_id", put(0, 1))),
    Kind("rows are removed", "rows:", recorded(lambda table: table.slice(1))),
    Kind("rows are added", "rows:", recorded(lambda table: pyarrow.concat_tables([table, table.slice(0, 1)]))),
    Kind("a column is removed", "columns", recorded(lambda table: table.drop_columns(["epoch"]))),
    Kind("a column is added", "columns", recorded(lambda table: table.append_column("x", table["slot"]))),
    Kind("losses in a part", "altered", flipped("record/part-00000000-00000008.parquet"), LISTED),
    Kind("genesis", "genesis", json_value(HEAD, "genesis", "0" * 64)),
    Kind("head of the record", "its chain ends at", json_value(HEAD, "head", "0" * 64)),
    Kind("version of the record", "head.json: version", json_value(HEAD, "version", 2)),
    Kind("rows of a part", "head.json: rows of", json_value(HEAD, "parts.0.rows", 7)),
    Kind("name of a part", "missing", json_value(HEAD, "parts.0.name", "part-1.parquet")),
    Kind("a part begins later", "expected 0", json_value(HEAD, "parts.0.from", 1)),
    Kind("record ends earlier", "parts end at", json_value(HEAD, "step", lambda n: n - 1)),
    Kind("no parts", "head.json", without_key(HEAD, "parts")),
    Kind("a key of the record is added", "head.json: parts[0].more", json_value(HEAD, "parts.0.more", 1)),
    Kind("the record's checksum", "head.json: checksum", stale(HEAD, "version", 2), CHECKED),
    Kind("record is removed", "head.json is missing", removed(HEAD)),
    # corpus
    Kind("sealed becomes trainable", "split", corpus_column("split", put(-1, "trainable"))),
    Kind("trainable becomes sealed", "split", corpus_column("split", put(0, "sealed"))),
    Kind("tokens of a sample", "n_tokens", corpus_column("n_tokens", put(0, lambda n: n + 1))),
    Kind("targets of a sample", "n_targets", corpus_column("n_targets", put(0, lambda n: n + 1))),
    Kind("ids of samples", "sample_id", corpus_column("sample_id", swap)),
    Kind("document", "hash", corpus_column("document", put(0, 7))),
    Kind("digest of a sample", "match its digest", corpus_column("digest", put(0, bytes(16)))),
    Kind("source", "is not a data set", corpus_column("source", put(0, "other"))),
    Kind("row of a sample", "rows: row 0", corpus_column("rows", put(0, [-1]))),
    Kind("no row of a sample", "rows: row 0", corpus_column("rows", put(0, []))),
    Kind("a sample is removed", "rows:", in_corpus("samples.parquet", lambda table: table.slice(1))),
    Kind("tokens", "match its digest", flipped("corpus/tokens.bin")),
    Kind("offsets", "offsets.npy", array("corpus/offsets.npy", put(-1, lambda n: n - 1))),
    Kind("empty target", "targets.npy", array("corpus/targets.npy", put(0, (1, 1)))),
    Kind("target offsets", "target_offsets.npy", array("corpus/target_offsets.npy", put(0, 1))),
    *(
        Kind(f"count {name}", f"corpus.json: counts.{name}", json_value(CORPUS, f"counts.{name}", lambda n: n + 1))
        for name in ("tokens", "targets", "sealed_tokens", "longest", "duplicates", "sealed")
    ),
    Kind("number of samples", "offsets.npy: int64", json_value(CORPUS, "counts.samples", lambda n: n + 1)),
    Kind("number of trainable samples", "counts.trainable", json_value(CORPUS, "counts.trainable", lambda n: n - 1)),
    Kind("number of segments", "counts.segments", json_value(CORPUS, "counts.segments", 1), PACKED),
    Kind("hash of the corpus", "corpus.json: hash", json_value(CORPUS, "hash", "0" * 64)),
    Kind("type of tokens", "dtype", json_value(CORPUS, "dtype", "O")),
    Kind("sha256 of the tokenizer", "tokenizer.sha256", json_value(CORPUS, "tokenizer.sha256", "0" * 64)),
    Kind("size of the vocabulary", "tokenizer.size", json_value(CORPUS, "tokenizer.size", lambda n: n + 1)),
    Kind("end of sequence", "tokenizer.eos", json_value(CORPUS, "tokenizer.eos", 7)),
    Kind("tokenizer of the corpus", "tokenizer", flipped("corpus/tokenizer/tokenizer.json")),
    Kind("a tokenizer's file is added", "tokenizer.sha256", written("corpus/tokenizer/chat_template.jinja")),
    Kind("holdout of the corpus", "settings.holdout", json_value(CORPUS, "settings.holdout", 0.5)),
    Kind("seed of the holdout", "settings.holdout_seed", json_value(CORPUS, "settings.holdout_seed", 3)),
    Kind("a file of the corpus is added", "not listed in corpus.json", written("corpus/more.npy")),
    Kind("a byte after the tokens", "bytes after the last token", longer("tokens.bin")),
    Kind("a file of the tokenizer is added", "tokenizer/x.py: not listed", written("corpus/tokenizer/x.py")),
    Kind("kind of the corpus", "corpus.json: kind", json_value(CORPUS, "kind", "chat")),
    Kind("rows taken", "corpus.json: sets", json_value(CORPUS, "sets.0.taken", 3)),
    Kind("rows of a data set", "corpus.json: sets", json_value(CORPUS, "sets.0.rows", 3)),
    Kind("a key of the corpus is added", "corpus.json: more: is not a key", json_value(CORPUS, "more", 1)),
    Kind(
        "a column of samples is added",
        "x: is not a column",
        in_corpus("samples.parquet", lambda t: t.append_column("x", t["split"])),
    ),
    Kind("bad rows of the corpus", "corpus.json: bad_rows", json_value(CORPUS, "bad_rows", ["row 1: empty"])),
    Kind("the corpus's checksum", "corpus.json: checksum", stale(CORPUS, "counts.response_cut", 1), CHECKED),
    Kind("category without a new hash", "samples.parquet: sha256", flipped("corpus/samples.parquet"), CHECKED),
    Kind("packing of the corpus", "corpus.json: packing", json_value(CORPUS, "packing", "story"), LISTED),
    Kind(
        "sha256 of a data set",
        "sets: sha256 of",
        json_value(CORPUS, "sets.0.sha256", "0" * 64),
        ("finetune", "pretrain"),
    ),
    Kind(
        "schema of a data set", "sets: schema of", json_value(CORPUS, "sets.0.schema", "hc3"), ("finetune", "pretrain")
    ),
    Kind("size of a file", "tokens.bin", json_value(CORPUS, "sizes", {"tokens.bin": 1})),
    Kind(
        "a metric is removed",
        "metrics.parquet: columns",
        in_corpus("metrics.parquet", lambda t: t.drop_columns(["words"])),
        METRICS,
    ),
    Kind("ids of metrics", "sample_id", corpus_column("sample_id", swap, "metrics.parquet"), METRICS),
    Kind(
        "segment's sample", "segment 0: is not part", corpus_column("sample_id", put(0, 9), "segments.parquet"), PACKED
    ),
    Kind("segment's tokens", "n_tokens", corpus_column("n_tokens", put(0, 9), "segments.parquet"), PACKED),
    Kind("segment's split", "split", corpus_column("split", put(0, "sealed"), "segments.parquet"), PACKED),
    Kind(
        "segment's document",
        "its document does not match",
        corpus_column("document", put(0, 9), "segments.parquet"),
        PACKED,
    ),
    Kind("segment's rows", "rows: sample", corpus_column("rows", put(0, [9]), "segments.parquet"), PACKED),
    Kind("no segments", "segments.parquet: rows", in_corpus("segments.parquet", lambda t: t.slice(0, 0)), PACKED),
    Kind("bounds of segments", "segment", array("corpus/segments.npy", put(1, lambda n: n + 1)), PACKED),
    # settings
    Kind("seed", "identity.seed", json_value("manifest.json", "identity.seed", 1)),
    Kind("steps", "steps", json_value("manifest.json", "identity.steps", 99)),
    Kind("model", "identity.model", json_value("manifest.json", "identity.model", "fresh:1")),
    Kind("learning rate", "optim", json_value("manifest.json", "identity.optim.lr", 1.0)),
    Kind("order's seed", "genesis", json_value("manifest.json", "identity.order.seed", 5)),
    Kind("corpus", "hash", json_value("manifest.json", "identity.corpus", "0" * 64)),
    Kind("attempt's number", "attempts", json_value("manifest.json", "attempts.0.attempt", 2)),
    Kind("ranks of an attempt", "ranks of attempt 1", json_value("manifest.json", "attempts.0.nodes", 3), LISTED),
    Kind("a key of manifest.json is added", "more: is not a key", json_value("manifest.json", "more", 1)),
    Kind("hosts of an attempt", "manifest.json: checksum", stale("manifest.json", "attempts.0.host", "x"), CHECKED),
    Kind("no identity", "manifest.json: damaged", without_key("manifest.json", "identity")),
    Kind("a list as manifest", "manifest.json: damaged", written("manifest.json", b"[]")),
    Kind("LoRA's rank", "config.yaml: lora", setting("lora", "rank", 9), LORA),
    Kind("seed in config.yaml", "config.yaml: seed", setting("", "seed", 9)),
    Kind("learning rate in config.yaml", "config.yaml: optim", setting("optim", "lr", 9.0)),
    Kind("holdout in config.yaml", "settings.holdout", setting("", "holdout", 0.5)),
    Kind("packing in config.yaml", "config.yaml: pack", setting("", "pack", False), PACKED),
    Kind("order in config.yaml", "config.yaml: order", setting("", "order", "sequential")),
    Kind("bad rows in config.yaml", "settings.max_bad_rows", setting("", "max_bad_rows", 7), LISTED),
    Kind("checkpoints in config.yaml", "plan.json: save_steps", setting("", "save_every", 5)),
    Kind("initial weights in config.yaml", "config.yaml: init", setting("", "init", "fresh"), ("finetune", "lora")),
    Kind(
        "a comment in config.yaml",
        "config.yaml: sha256",
        edited("config.yaml", b"keep_states: 1", b"keep_states: 2"),
        REAL,
    ),
    Kind(
        "the last line of config.yaml",
        "config.yaml: its last line",
        edited("config.yaml", b"# sha256", b"# sha257"),
        CHECKED,
    ),
    Kind("config.yaml is a list", "config.yaml", written("config.yaml", b"[1]")),
    *(
        Kind(f"{name} in plan.json", f"plan.json: {name}", json_value("plan.json", name, lambda n: n + 1))
        for name in (
            "steps",
            "batch_size",
            "seq_len",
            "trainable",
            "sealed",
            "samples",
            "warmup_steps",
            "micro_batch_size",
        )
    ),
    Kind("saves in plan.json", "plan.json: save_steps", json_value("plan.json", "save_steps", [0])),
    Kind("strategy in plan.json", "plan.json: strategy", json_value("plan.json", "strategy", "zero1")),
    Kind("engine in plan.json", "plan.json: engine", json_value("plan.json", "engine", "deepspeed")),
    Kind("nodes in plan.json", "plan.json: nodes", json_value("plan.json", "nodes", 2)),
    Kind("order in plan.json", "plan.json: order", json_value("plan.json", "order", "sequential")),
    Kind("counts in plan.json", "plan.json: counts_exact", json_value("plan.json", "counts_exact", False)),
    Kind("a prediction in plan.json", "plan.json: checksum", stale("plan.json", "host_mem", 1.5), CHECKED),
    Kind("plan.json is removed", "plan.json: cannot be read", removed("plan.json")),
    Kind("pass in plan.json", "plan.json: pass_samples", json_value("plan.json", "pass_samples", 7)),
    Kind("plan.json is damaged", "plan.json: damaged", written("plan.json", b"{")),
    Kind("order.npy", "order.npy", array("order.npy", swap), LISTED),
    Kind("order.npy is removed", "order.npy", removed("order.npy"), LISTED),
    Kind("insertion", "order.json: inserted", json_value("order.json", "inserted.0.sample_id", 5), LISTED),
    Kind("insertion's slot", "order.json: inserted", json_value("order.json", "inserted.0.slot", 0), LISTED),
    Kind(
        "an insertion is removed", "order.json: inserted", json_value("order.json", "inserted", lambda v: v[1:]), LISTED
    ),
    Kind("phase", "order.json: phases", json_value("order.json", "phases.1.start", 11), LISTED),
    Kind("control", "order.json: control", json_value("order.json", "control", True), LISTED),
    Kind("a tag in order.json", "order.json: checksum", stale("order.json", "inserted.0.tag", "x"), ("real-pretrain",)),
    Kind("a key of order.json is added", "order.json: more: is not a key", json_value("order.json", "more", 1), LISTED),
    Kind("header of order.npy", "order.npy", edited("order.npy", b"False", b"False ", True), LISTED),
    Kind("order.json is removed", "order.json", removed("order.json"), LISTED),
    *ENTRIES,
    *KEYS,
    *TYPES,
]
CASES = [pytest.param(kind, run, id=f"{kind.name}-{run}") for kind in KINDS for run in kind.runs if run not in REAL]
FEW = CASES[:: len(CASES) // 12]
TRAINED = [
    pytest.param(kind, run, id=f"{kind.name}-{run}")
    for kind in KINDS
    for run in REAL
    if run in kind.runs or run.removeprefix("real-") in kind.runs
]
OTHERS = ("code", "eval", "lock", "log", "report", "submit", "tb", "wandb")
"""Entries of a run that docs/trust.md names as not checked."""


@pytest.fixture
def run_of(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Callable[[str], RunDirectory]:
    """A copy of a run of some kind, which a test may alter."""

    def copied(kind: str) -> RunDirectory:
        original = made_once(tmp_path_factory, f"whole-{kind}", lambda folder: make(kind, folder / "run")) / "run"
        return RunDirectory.open(shutil.copytree(original, tmp_path / "run"))

    return copied


def assert_named(kind: Kind, run: RunDirectory) -> None:
    kind.change(run)
    problems = examine(run).problems
    assert any(kind.line in line for line in problems), problems
    assert not any("\n" in line for line in problems)


def test_the_table_is_long() -> None:
    assert len({kind.name for kind in KINDS}) >= 80


@pytest.mark.parametrize(("kind", "run"), FEW)
def test_some_tampering_is_named(kind: Kind, run: str, run_of: Callable[[str], RunDirectory]) -> None:
    assert_named(kind, run_of(run))


@pytest.mark.long
@pytest.mark.minutes(0.005)
@pytest.mark.parametrize(("kind", "run"), CASES)
def test_tampering_is_named(kind: Kind, run: str, run_of: Callable[[str], RunDirectory]) -> None:
    assert_named(kind, run_of(run))


@pytest.mark.long
@pytest.mark.minutes(0.005)
@pytest.mark.parametrize(("kind", "run"), TRAINED)
def test_tampering_with_a_run_that_was_trained_is_named(
    kind: Kind, run: str, run_of: Callable[[str], RunDirectory]
) -> None:
    assert_named(kind, run_of(run))


def files_of(run: RunDirectory) -> list[Path]:
    """All files that verify reads."""
    names = (path.relative_to(run.path) for path in sorted(run.path.rglob("*")) if path.is_file())
    return [run.path / name for name in names if name.parts[0] not in OTHERS]


def kind_of(path: Path) -> str:
    """Name of a file without its numbers; a corpus and the checkpoints have the same tokenizer."""
    return re.sub(r"\d+", "", path.name)


def assert_flips_are_found(run: RunDirectory, path: Path, flips: int, random: Random) -> None:
    """One altered byte anywhere in a file is found, unless a JSON file has the same values as before."""
    content = path.read_bytes()
    for _ in range(flips):
        place, altered = random.randrange(len(content)), bytearray(content)
        altered[place] ^= random.randrange(1, 256)
        path.write_bytes(altered)
        if path.suffix == ".json" and path.parent.name != "tokenizer" and same_values(content, bytes(altered)):
            continue
        assert examine(run).problems, f"{path}: byte {place} is {altered[place]}, was {content[place]}"
    path.write_bytes(content)


def same_values(content: bytes, altered: bytes) -> bool:
    try:
        return bool(json.loads(content) == json.loads(altered))
    except (ValueError, RecursionError):
        return False


@pytest.mark.parametrize("kind", ["packed"])
def test_a_flipped_byte_is_found(kind: str, run_of: Callable[[str], RunDirectory]) -> None:
    run, random = run_of(kind), Random(1)
    for path in files_of(run):
        assert_flips_are_found(run, path, 1, random)
    assert examine(run).problems == []


@pytest.mark.long
@pytest.mark.minutes(0.5)
@pytest.mark.parametrize("kind", ["packed", "lora", *REAL])
def test_a_flipped_byte_anywhere_is_found(kind: str, run_of: Callable[[str], RunDirectory]) -> None:
    """Files of the same name, such as the weights of each checkpoint, share 20 flips, and have at least 4 each."""
    run, random = run_of(kind), Random(2)
    files = files_of(run)
    of_a_name = Counter(kind_of(path) for path in files)
    for path in files:
        assert_flips_are_found(run, path, max(4, ceil(20 / of_a_name[kind_of(path)])), random)
    assert examine(run).problems == []


@pytest.mark.parametrize("kind", ["packed", *(pytest.param(kind, marks=pytest.mark.long) for kind in REAL)])
def test_a_file_that_is_removed_is_named(kind: str, run_of: Callable[[str], RunDirectory]) -> None:
    run = run_of(kind)
    for path in files_of(run):
        content = path.read_bytes()
        path.unlink()
        if path == run.config_file:
            with pytest.raises(UserError, match="not a run directory"):
                RunDirectory.open(run.path)
        else:
            assert examine(run).problems, path
        path.write_bytes(content)
    assert examine(run).problems == []


@pytest.mark.long
@pytest.mark.parametrize("run", REAL)
def test_a_run_that_was_trained_is_verified(
    run: str, run_of: Callable[[str], RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_of(run).path)]) == 0
    batches, checkpoints = (24, 4) if run == "real-pretrain" else (12, 3)
    expected = f"verified: {batches} batches, {4 * batches} readings, {checkpoints} checkpoints agree, head "
    assert capsys.readouterr().out.startswith(expected)


@pytest.mark.parametrize("run", ALL)
def test_an_untouched_run_is_verified(
    run: str, run_of: Callable[[str], RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_of(run).path)]) == 0
    batches = 10 if run in ("finetune", "pretrain") else 6
    expected = f"verified: {batches} batches, {4 * batches} readings, 3 checkpoints agree, head "
    assert capsys.readouterr().out.startswith(expected)


@pytest.mark.parametrize("run", ALL)
def test_a_run_that_is_altered_and_restored_is_verified(run: str, run_of: Callable[[str], RunDirectory]) -> None:
    copy = run_of(run)
    for name in (HEAD, CORPUS, "manifest.json"):
        content = (copy.path / name).read_bytes()
        (copy.path / name).write_text("{}")
        assert examine(copy).problems
        (copy.path / name).write_text(json.dumps(json.loads(content), sort_keys=True))  # the same values
    assert examine(copy).problems == []


def test_a_line_feed_in_the_path_of_a_run_is_escaped(
    run_of: Callable[[str], RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("finetune")
    moved = run.path.rename(run.path.with_name("two\nlines"))
    (moved / "record" / "head.json").write_text("{")
    assert main([str(moved)]) == 1
    problem, verdict = capsys.readouterr().out.splitlines()
    assert ("two\\nlines/record/head.json" in problem, verdict[:7]) == (True, "FAILED:")


def test_exit_codes(run_of: Callable[[str], RunDirectory], capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of("finetune")
    (run.record / "head.json").write_text("{")
    assert main([str(run.path)]) == 1
    *_, verdict = capsys.readouterr().out.splitlines()
    assert verdict.startswith("FAILED: 1 problem: 0 batches, 0 readings, 3 checkpoints")
