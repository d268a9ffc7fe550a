"""Verifying a run: problems of record, order and checkpoints, each named with its place."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support.reading import BATCH
from support.whole_runs import make

from wellread import whole
from wellread.checkpoint import list_checkpoints
from wellread.errors import UserError
from wellread.files import sha256_file, with_checksum, write_json
from wellread.record.reader import Record
from wellread.record.verify import verify
from wellread.record.writer import RecordWriter
from wellread.run import RunDirectory


def rewrite_first_part(run: RunDirectory, rows: list[int]) -> None:
    """Replace the first part by these rows of it, and name its new hash in head.json."""
    head = json.loads((run.record / "head.json").read_text())
    path = run.record / head["parts"][0]["name"]
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).take(rows), path)
    head["parts"][0]["sha256"] = sha256_file(path)
    write_json(run.record / "head.json", with_checksum(head))


def test_a_finished_run_has_no_problems(tiny_run: RunDirectory) -> None:
    assert verify(tiny_run) == []


def test_swapped_rows_are_named(copied_run: RunDirectory) -> None:
    read = Record.open(copied_run.record).sample_ids((0, 1))[:2].tolist()
    size = Record.open(copied_run.record).parts[0]["rows"]
    rewrite_first_part(copied_run, [1, 0, *range(2, size)])
    problems = verify(copied_run)
    first = problems.index("batch 0 slot 0: missing, duplicate or in the wrong place")
    assert problems[first : first + 4] == [
        "batch 0 slot 0: missing, duplicate or in the wrong place",
        "batch 0 slot 1: missing, duplicate or in the wrong place",
        f"batch 0 slot 0: read sample {read[1]}, the order says {read[0]}",
        f"batch 0 slot 1: read sample {read[0]}, the order says {read[1]}",
    ]
    assert any(line.startswith("checkpoint step-00000004: has head ") for line in problems)
    assert any(": its chain ends at " in line for line in problems)


def test_a_record_that_ends_before_a_checkpoint(copied_run: RunDirectory) -> None:
    record = Record.open(copied_run.record)
    parts = [part for part in record.parts if part["to"] <= 8]
    head = next(checkpoint.head for checkpoint in list_checkpoints(copied_run.checkpoints) if checkpoint.step == 8)
    sealed = [part for part in record.info["sealed"] if part["to"] <= 8]
    info = record.info | {"step": 8, "head": head, "parts": parts, "sealed": sealed}
    write_json(copied_run.record / "head.json", with_checksum(info))
    assert verify(copied_run) == [
        f"{copied_run.manifest_file}: the last attempt has finished, but the record ends at 8 of 12",
        f"{copied_run.record / 'part-00000008-00000012.parquet'}: not listed in head.json; remove it",
        f"{copied_run.record / 'sealed-00000012-00000012.parquet'}: not listed in head.json; remove it",
        "checkpoint step-00000012: the record ends earlier, at step 8",
    ]


def test_a_part_that_was_written_before_a_kill_is_not_a_problem(copied_run: RunDirectory) -> None:
    """head.json is written after the files that it names; the next start removes what it does not name."""
    record = Record.open(copied_run.record)
    parts, measured = ([each for each in record.info[key] if each["to"] <= 8] for key in ("parts", "sealed"))
    last = copied_run.checkpoints / "step-00000012"
    head = next(each.head for each in list_checkpoints(copied_run.checkpoints) if each.step == 8)
    shutil.move(last, last.with_name(f".{last.name}.tmp"))
    written = record.info | {"step": 8, "head": head, "parts": parts, "sealed": measured}
    write_json(copied_run.record / "head.json", with_checksum(written))
    manifest = copied_run.manifest()
    manifest["attempts"][-1].pop("ended")
    manifest["attempts"][-1].pop("exit_code")
    write_json(copied_run.manifest_file, with_checksum(manifest))
    (copied_run.record / ".part-00000012-00000016.parquet.77.tmp").write_bytes(b"PAR1")
    (copied_run.path / ".manifest.json.77.tmp").write_bytes(b"{")
    assert verify(copied_run) == []
    for name in ("part-00000008-00000012.parquet", "sealed-00000012-00000012.parquet"):
        (copied_run.record / name).rename(copied_run.record / name.replace("12", "11"))
        assert len(verify(copied_run)) > 0, name
        (copied_run.record / name.replace("12", "11")).rename(copied_run.record / name)


def test_notes_in_a_run_are_not_a_problem(copied_run: RunDirectory) -> None:
    for name in ("notes.md", ".notes", "plan.md", "scores.parquet", "model.bin"):
        (copied_run.path / name).write_text("mine")
    assert verify(copied_run) == []


def test_a_run_that_has_not_saved_step_0_is_not_damaged(copied_run: RunDirectory) -> None:
    """As between the first head.json and the first checkpoint; but not if the run says that it has finished."""
    start = Record.open(copied_run.record).info["genesis"]
    for folder in (copied_run.checkpoints, copied_run.record):
        shutil.rmtree(folder)
        folder.mkdir()
    RecordWriter(copied_run.record, start=start).flush()
    assert any("step-00000000 is missing" in problem for problem in verify(copied_run))
    manifest = json.loads(copied_run.manifest_file.read_text())
    for attempt in manifest["attempts"]:
        del attempt["ended"], attempt["exit_code"]
    write_json(copied_run.manifest_file, with_checksum(manifest))
    with pytest.raises(UserError, match="nothing to verify yet: the run has not saved step 0"):
        verify(copied_run)


def test_an_altered_digest_of_a_sample_is_named(copied_run: RunDirectory) -> None:
    """The corpus no longer has the hash of the run, and the tokens do not match the new digest."""
    path: Path = copied_run.corpus / "samples.parquet"
    table = pyarrow.parquet.read_table(path)
    digests = table["digest"].to_pylist()
    digests[3] = bytes(16)
    column = pyarrow.array(digests, table["digest"].type)
    pyarrow.parquet.write_table(table.set_column(table.column_names.index("digest"), "digest", column), path)
    meta = json.loads((copied_run.corpus / "corpus.json").read_text())
    meta["sizes"]["samples.parquet"] = path.stat().st_size
    meta["sha256"]["samples.parquet"] = sha256_file(path)
    write_json(copied_run.corpus / "corpus.json", with_checksum(meta))
    problems = verify(copied_run)
    assert problems[0] == f"{copied_run.corpus}: sample 3: its tokens or loss mask do not match its digest"
    assert problems[1].startswith(f"{copied_run.corpus / 'corpus.json'}: hash: {meta['hash']}, expected ")
    ids = Record.open(copied_run.record).sample_ids()
    places = [f"batch {place // BATCH} slot {place % BATCH}" for place in np.flatnonzero(ids == 3).tolist()]
    assert problems[2:] == [f"{place}: the tokens read as sample 3 are not those of the corpus" for place in places]


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "plan.json",
        "manifest.json",
        "record/head.json",
        "record/part-00000000-00000008.parquet",
        "checkpoints/step-00000008/checkpoint.json",
        "checkpoints/step-00000008/model/model.safetensors",
        "corpus/corpus.json",
        "corpus/tokens.bin",
        "corpus/samples.parquet",
        "corpus/tokenizer/tokenizer.json",
        "corpus/tokenizer/tokenizer_config.json",
    ],
)
def test_a_pipe_in_place_of_a_file_is_named_and_not_waited_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "SECONDS", 0.0)
    run = make("finetune", tmp_path / "run")
    (run.path / name).unlink()
    os.mkfifo(run.path / name)
    try:
        problems = verify(RunDirectory.open(run.path))
    except UserError as error:
        problems = [str(error)]
    assert any(name.rpartition("/")[2] in line or name.split("/")[-2] in line for line in problems), problems
