"""An untouched run of every kind is verified, to the last byte; large tables are read in parts."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from support.programs import SHARED, Program
from support.whole_runs import OLD, make

from wellread.corpus.segments import Segments
from wellread.files import sha256_file, with_checksum, write_json
from wellread.record import verify_corpus, verify_tables
from wellread.record.verify import verify
from wellread.run import RunDirectory

MODEL = OLD / "finetune" / "model"
FEW = [
    "--steps",
    "3",
    "--batch_size",
    "4",
    "--seq_len",
    "64",
    "--save_every",
    "3",
    "--generations",
    "0",
    "--snapshot",
    "off",
]
ONE, TWO = ["--ranks_per_node", "1"], ["--ranks_per_node", "2"]
ROWS = ["--model", MODEL, "--data", OLD / "finetune" / "data.jsonl", "--max_bad_rows", "9", *FEW]
TEXT = ["--size", "8x1x2", "--data", "stories:60", "--vocab", "512", *FEW]


def megatron(folder: Path) -> Path:
    """A pair of Megatron files with 40 documents of 20 tokens each."""
    tokens = np.random.default_rng(0).integers(1, 300, 800).astype("<u2")
    sizes, pointers = np.full(40, 20, "<i4"), np.arange(0, 1600, 40, dtype="<i8")
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 40, 41)
    documents = np.arange(41, dtype="<i8")
    (folder / "pile.idx").write_bytes(header + sizes.tobytes() + pointers.tobytes() + documents.tobytes())
    (folder / "pile.bin").write_bytes(tokens.tobytes())
    return folder / "pile"


def curriculum(folder: Path) -> Path:
    np.save(folder / "few.npy", np.arange(2))
    content = {
        "phases": [{"order": "sorted:n_tokens:asc", "steps": 2}, {"order": "shuffle", "steps": 1}],
        "insert": [{"tag": "twice", "file": "few.npy", "at": [0, 2]}],
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(content))
    return folder / "c.yaml"


def ids(folder: Path) -> Path:
    np.save(folder / "ids.npy", np.arange(8)[::-1].copy())
    return folder / "ids.npy"


RUNS: dict[str, list[Any]] = {
    "sorted, two ranks": ["finetune", *ROWS, *TWO, "--order", "sorted:n_tokens:desc"],
    "filter": ["finetune", *ROWS, *ONE, "--order", "filter:n_tokens>10"],
    "file, control, fast": ["finetune", *ROWS, *ONE, "--order", "file:IDS", "--order_control", "--fast", "on"],
    "curriculum": ["finetune", *ROWS, *ONE, "--order", "curriculum:CURRICULUM"],
    "canaries, curriculum": [
        "finetune",
        *ROWS,
        *ONE,
        "--order",
        "curriculum:CURRICULUM",
        "--canaries",
        "1",
        "--canary_repeats",
        "0,1",
        "--canary_controls",
        "19",
        "--canary_tokens",
        "8",
    ],
    "zero2, packed, two ranks": ["finetune", *ROWS, *TWO, "--pack", "--strategy", "zero2"],
    "megatron, sequential": [
        "finetune",
        "--model",
        MODEL,
        "--data",
        "text@MEGATRON",
        *FEW,
        *ONE,
        "--order",
        "sequential",
    ],
    "stories, metrics": ["pretrain", *TEXT, *TWO, "--metrics", "--save_schedule", "linear", "--packing", "story"],
    "imported, frozen": ["finetune", "--model", "IMPORTED", *ROWS[2:], *ONE, "--freeze", "*.embed_tokens.*"],
    "exported, no holdout": ["finetune", "--model", "EXPORTED", *ROWS[2:], *ONE, "--holdout", "0"],
}


@pytest.mark.long
@pytest.mark.minutes(0.3)
@pytest.mark.parametrize("kind", RUNS)
def test_an_untouched_run_of_this_kind_is_verified(
    kind: str, program: Program, in_process: Program, corpora: Path, tmp_path: Path, shared: Path
) -> None:
    places = {"MEGATRON": megatron, "CURRICULUM": curriculum, "IDS": ids}
    words = [str(word) for word in RUNS[kind]]
    if "IMPORTED" in words:
        stories = SHARED / "stories260K"
        bin_file, vocabulary = stories / "stories260K.bin", stories / "tok512.model"
        in_process("wellread", "import", bin_file, vocabulary, "--out", tmp_path / "IMPORTED", check=True)
    if "EXPORTED" in words:
        in_process("wellread", "export", OLD / "finetune" / "run", "--out", tmp_path / "EXPORTED", check=True)
    for name, make_data in places.items():
        words = [word.replace(name, str(make_data(tmp_path))) if name in word else word for word in words]
    words = [str(tmp_path / word) if word in ("IMPORTED", "EXPORTED") else word for word in words]
    run = tmp_path / "run"
    program("wellread", "run", *words, "--out", run, "--corpora", corpora, check=True)
    result = in_process("wellread", "verify", run)
    expected = "verified: 3 batches, 12 readings, 2 checkpoints agree, head "
    assert (result.returncode, result.stdout[: len(expected)]) == (0, expected), result.stdout


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of 60 rows are read as those of 60 million are."""
    monkeypatch.setattr(verify_tables, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(verify_corpus, "SAMPLES_AT_ONCE", 5)
    monkeypatch.setattr(Segments, "table", property(lambda _: pytest.fail("the whole table is read")))


@pytest.mark.parametrize("kind", ["packed", "finetune"])
def test_a_run_whose_tables_are_read_in_parts_is_verified(kind: str, tmp_path: Path, in_parts: None) -> None:
    assert verify(make(kind, tmp_path / "run")) == []


@pytest.mark.parametrize(
    ("column", "value", "line"),
    [
        ("n_targets", 9, "segments.parquet: n_targets: segment 59: 9, expected 2"),
        ("sample_id", 0, "segment 59: is not part of the sample that the segments table names"),
        ("digest", bytes(16), "segment 59: its tokens or loss mask do not match its digest"),
        ("document", 1, "its document does not match its segments"),
        ("rows", [7], "rows: sample "),
    ],
)
def test_the_last_segment_of_the_last_part_is_compared(
    column: str, value: object, line: str, tmp_path: Path, in_parts: None
) -> None:
    run = make("packed", tmp_path / "run")
    path, meta = run.corpus / "segments.parquet", run.corpus / "corpus.json"
    table = pyarrow.parquet.read_table(path)
    values = [*table[column].to_pylist()[:-1], value]
    place = table.column_names.index(column)
    altered = table.set_column(place, table.field(column), pyarrow.array(values, table.field(column).type))
    pyarrow.parquet.write_table(altered, path)
    content = json.loads(meta.read_text())
    content["sizes"][path.name], content["sha256"][path.name] = path.stat().st_size, sha256_file(path)
    write_json(meta, with_checksum(content))
    problems = verify(RunDirectory.open(run.path))
    assert any(line in problem for problem in problems), problems


def test_a_span_outside_its_sample_in_a_later_part_is_named(tmp_path: Path, in_parts: None) -> None:
    run = make("finetune", tmp_path / "run")
    path = run.corpus / "targets.npy"
    spans = np.load(path)
    spans[-1, 1] = 10_000
    np.save(path, spans)
    assert any(f"targets.npy: row {len(spans) - 1}: outside its sample" in line for line in verify(run))
