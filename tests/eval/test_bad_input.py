"""What evaluations refuse, on a real run: one line that says what, where and what to do; exit code 2."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.programs import Program
from support.small_evaluations import write_texts
from support.tampering import Change, json_value
from support.whole_runs import OLD

from wellread.run import RunDirectory

Flags = Callable[[Path], list[str]]
"""Flags of a command, given a folder with files of texts and a model."""


def as_it_is(run: RunDirectory) -> None:
    """Leave the run as it is."""


def without_model(run: RunDirectory) -> None:
    """Lose the model of a checkpoint, and all that was kept of it."""
    shutil.rmtree(run.checkpoints / "step-00000008" / "model")


def with_one_checkpoint(run: RunDirectory) -> None:
    for step in ("00000008", "00000010"):
        shutil.rmtree(run.checkpoints / f"step-{step}")


def flags(*words: str) -> Flags:
    return lambda folder: [word.format(folder) for word in words]


SORTED = json_value("manifest.json", "identity.order.kind", "sorted")
LATER = "the order is sorted, so samples that are read later differ from those read earlier; leave it out"
TEXTS = ("--model", "{}/model", "--bootstrap", "100", "--members", "{}/a.jsonl", "--nonmembers")
REFUSED: dict[str, tuple[str, Change, Flags, str]] = {
    "unread of a sorted order": (
        "membership", SORTED, flags("--groups", "read,unread"), f"error: --groups unread: {LATER}",
    ),
    "order test of a sorted order": (
        "membership", SORTED, flags("--tests", "order"), f"error: --tests order: {LATER}",
    ),
    "transcript of a sorted order": (
        "membership", SORTED, flags("--transcript", "{}/t.parquet"),
        f"error: --transcript {{folder}}/t.parquet: {LATER}",
    ),
    "no model and no tokens": (
        "membership", without_model, flags("--steps", "8"),
        "error: {run}/checkpoints/step-00000008: has no model/, and {run}/eval has not kept all that was asked for; "
        "restore it, or leave step 8 out of --steps",
    ),
    "no model and no texts": (
        "generations", without_model, flags("--steps", "8"),
        "error: {run}/checkpoints/step-00000008: has no model/, and {run}/eval has not kept all that was asked for; "
        "restore it, or leave step 8 out of --steps",
    ),
    "reference with other words": (
        "membership", as_it_is, flags("--reference", "{}/other"),
        "error: --reference {folder}/other: has another vocabulary than the samples; choose one with the same",
    ),
    "few readings": (
        "membership", as_it_is, flags("--vulnerable", "50"),
        "error: --vulnerable: needs 4 readings of a sample, but no sample of {run} has more than 1; train for more "
        "epochs",
    ),
    "forgetting without sealed losses": (
        "forgetting", as_it_is, flags(),
        "error: {run}/record: no losses of sealed samples (sealed-*.parquet); the run is of an older version, train "
        "again",
    ),
    "overlapping files": (
        "", as_it_is, flags(*TEXTS, "{}/both.jsonl"),
        'error: --members, --nonmembers: 7 texts are in both ("text 0", "text 1", "text 2", "text 3", "text 4"); '
        "remove them from one",
    ),
    "few non-members": (
        "", as_it_is, flags(*TEXTS, "{}/few.jsonl", "--threshold", "{}/a.jsonl", "--out", "{}/out"),
        "error: --threshold: needs 100 non-members, but {folder}/few.jsonl has fewer; add texts",
    ),
    "reference with other words, without a run": (
        "", as_it_is, flags(*TEXTS, "{}/few.jsonl", "--reference", "{}/other"),
        "error: --reference {folder}/other: has another vocabulary than the samples; choose one with the same",
    ),
    "saturation of one checkpoint": (
        "saturation", with_one_checkpoint, flags(),
        "error: {run}: has 1 checkpoint, and saturation needs at least 3; train further, or with a smaller "
        "--save_every",
    ),
    "saturation without texts": (
        "saturation", as_it_is, flags(),
        "error: {run}: no checkpoint has values of single texts; run wellread generations {run}",
    ),
}  # fmt: skip
"""Name -> evaluation, or none for texts under a model; change of the run; flags; line."""


@pytest.fixture
def folder(tmp_path: Path, small_model: Path) -> Path:
    write_texts(tmp_path / "a.jsonl", [f"text {number}" for number in range(120)])
    write_texts(tmp_path / "both.jsonl", [f"text {number}" for number in (*range(7), *range(200, 320))])
    write_texts(tmp_path / "few.jsonl", ["x y", "z"])
    (tmp_path / "other").symlink_to(small_model)
    (tmp_path / "model").symlink_to(OLD / "finetune" / "model")
    return tmp_path


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, folder: Path, in_process: Program) -> None:
    evaluation, change, words, line = REFUSED[name]
    run = RunDirectory.open(shutil.copytree(OLD / "finetune" / "run", folder / "run"))
    change(run)
    result = in_process("wellread", *([evaluation, run.path] if evaluation else ["membership"]), *words(folder))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == line.format(run=run.path, folder=folder)
    assert result.stderr.count("error:") == 1
    assert not list(run.eval.rglob("*.parquet"))
